//! Language models on the device, on top of [MLX](https://github.com/ml-explore/mlx).
//!
//! ```no_run
//! # async fn answer() -> mynah::Result<()> {
//! use mynah::{Event, Message, Model};
//!
//! let model = Model::load("org/model", |event| println!("{event:?}")).await?;
//! let prompt = vec![Message::user("What is 3 + 4?")];
//! let mut stream = model.generate(prompt, &model.default_options())?;
//! while let Some(event) = stream.next().await {
//!     if let Event::Token(token) = event? {
//!         print!("{}", token.text);
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! The [`hub`] brings a repository here, if it is none of this machine's directories. A checkpoint
//! becomes a model in four steps: [`files`] are read, [`families`] finds the file that
//! knows the `model_type`, which composes [`parts`] into a [`model::LanguageModel`] while it reads
//! its [`weights`]. What a request does with it is in [`generate`].
//!
//! # Invariants
//!
//! - Every array lives and dies on one thread, the [`Engine`]'s; handles send it work.
//! - A family is constructor code. Variation is which value is passed, never a flag that a shared
//!   part tests; no shared part knows a family's name.
//! - Every tensor of a checkpoint is read exactly once, with its shape, or named in an error.
//! - A [`state::State`] holds arrays and nothing else, so a decode step can be compiled and replayed.
//! - Nothing that a user gives (a file, a prompt, an option) panics or ends the process.
//! - Unsafe code is in [`mlx`] alone.

mod api;
mod checkpoint;
mod engine;
mod error;
mod families;
mod generate;
pub mod hub;
mod layers;
mod mlx;
mod models;
mod text;

pub use api::{
    DEMO, Inspection, LoadEvent, LoadOptions, Location, Memory, MemoryPolicy, Model, ModelInfo,
    ModelMemory, Overflow, Packing, Prompt, Session, SessionOptions, download, download_adapter,
    download_text, inspect, inspect_with_adapter, shrink_caches,
};
pub use checkpoint::files::Files;
pub use engine::{Canceller, Engine, Event, FinishReason, Generation, Summary, Token};
pub use error::{Error, Result};
pub use generate::{Dry, GenerateOptions, Score, Xtc};
pub use hub::Source;
pub use layers::cache_plan::{Bound, CachePlan, CacheQuantization};
pub use mlx::memory::{MemoryUse, memory_use, set_memory_limit};
pub use text::{ChatTemplate, Content, Detokenizer, Message, Part, TemplateOptions, Tokenizer};

/// The values of `model_type` that are supported, family by family.
pub fn model_types() -> impl Iterator<Item = &'static [&'static str]> {
    families::all().map(|family| family.model_types)
}

/// What the tests and benchmarks of this project reach into. It is no API and changes at any time.
#[doc(hidden)]
pub mod internals {
    pub use crate::{
        checkpoint::scope::Scope,
        layers::{embedded::Embedded, state::State, step::Step},
        mlx::{
            matrix::Matrix,
            quantized::{Format, Mode, Quantized},
        },
        models::{
            cache::{Cache, CacheCheckpoint},
            decode_step::{DecodeStep, prefill},
            language::LanguageModel,
        },
    };

    /// The list of families.
    pub mod families {
        pub use crate::families::{Family, all, build, find, ignored_fields};
    }

    /// Operations on arrays.
    pub mod mlx {
        pub use crate::mlx::{node_count, slice, to_vec};
    }
}
