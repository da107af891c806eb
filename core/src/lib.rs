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

mod adapter;
mod added;
mod checkpoint;
pub mod config;
pub mod decoder;
mod demo;
pub mod error;
pub mod families;
pub mod files;
pub mod generate;
mod handle;
pub mod hub;
mod inspect;
pub mod layer;
mod load;
mod loaded;
mod location;
mod memory;
pub mod mlx;
pub mod model;
mod packed;
pub mod parts;
pub mod prelude;
mod quantization;
mod saved;
pub mod state;
pub mod text;
pub mod weights;

pub use demo::DEMO;
pub use error::{Error, Result};
pub use files::Files;
pub use generate::{
    Canceller, Dry, Engine, Event, FinishReason, GenerateOptions, Generation, Overflow, Prompt,
    Score, Session, SessionOptions, Summary, Token, Xtc,
};
pub use handle::{Model, ModelInfo};
pub use hub::Source;
pub use inspect::{Inspection, Memory, Packing, inspect, inspect_with_adapter};
pub use load::{LoadEvent, LoadOptions, MemoryPolicy};
pub use location::Location;
pub use memory::{MemoryUse, ModelMemory, memory_use, set_memory_limit, shrink_caches};
pub use state::{Bound, CachePlan, CacheQuantization};
pub use text::{Message, TemplateOptions, Tokenizer};
