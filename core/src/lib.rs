//! Language models on the device, on top of [MLX](https://github.com/ml-explore/mlx).
//!
//! ```no_run
//! # async fn answer() -> mynah::Result<()> {
//! use mynah::{Event, Model};
//!
//! let model = Model::load("org/model").await?;
//! let options = model.default_options().max_tokens(200);
//! let mut generation = model.generate("Why is the sky blue?", &options)?;
//! while let Some(event) = generation.next().await {
//!     match event? {
//!         Event::Token(token) => print!("{}", token.text),
//!         Event::Text(text) => print!("{text}"),
//!         _ => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! A string is a user's message, rendered with the checkpoint's chat template; [`Prompt::Raw`]
//! continues text. A [`Generation`] is a [`Stream`](futures_core::Stream) of events. A [`Session`]
//! keeps the KV cache of a conversation. [`Error::kind`] says what a caller can do about an error.
//!
//! # Invariants
//!
//! - Every array lives on one thread, that of the [`Engine`]; handles send it work.
//! - A family is constructor code. Families differ in the values that they pass, never in a flag that
//!   a shared layer tests, and no shared layer knows the name of a family.
//! - Every tensor of a checkpoint is read exactly once, with its shape, or named in an error.
//! - A layer's state holds only arrays, so a decode step can be compiled and replayed.
//! - No input of a user (a file, a prompt, an option) panics or ends the process.
//! - Unsafe code is in `mlx/ffi/` alone.

/// Setters for the fields of options, to be chained. Those after `optional` take a value or an
/// `Option`.
macro_rules! setters {
    (
        $type:ident: $($field:ident: $value:ty),+ $(,)?
        $(; optional $($optional:ident: $inner:ty),+ $(,)?)?
    ) => {
        impl $type {
            $(
                #[doc = concat!("Sets [`", stringify!($field), "`](Self#structfield.", stringify!($field), ").")]
                #[must_use]
                pub fn $field(mut self, $field: $value) -> Self {
                    self.$field = $field;
                    self
                }
            )+
            $($(
                #[doc = concat!("Sets [`", stringify!($optional), "`](Self#structfield.", stringify!($optional), ").")]
                #[must_use]
                pub fn $optional(mut self, $optional: impl Into<Option<$inner>>) -> Self {
                    self.$optional = $optional.into();
                    self
                }
            )+)?
        }
    };
}

mod answer;
mod api;
mod checkpoint;
mod engine;
mod error;
mod families;
mod generate;
pub mod hub;
mod layers;
mod media;
mod mlx;
mod models;
mod processors;
mod text;

pub use answer::{
    Effort, OutputFormat, Reasoning, RejectedToolCall, Tool, ToolCall, ToolCallDelta, ToolChoice,
    partial_json,
};
pub use api::{
    AlignedWord, AudioCodec, AudioFeatures, AudioInput, AudioModel, BoxFuture, CallTool, DEMO,
    Detection, EmbedOptions, Embedder, Embeddings, Inspection, Load, LoadAudio, LoadEvent,
    LoadOptions, Location, Memory, MemoryPolicy, Model, ModelInfo, ModelMemory, Overflow, Packing,
    Prompt, RankedDocument, RerankOptions, Reranker, RespondEvent, Response, Session,
    SessionOptions, SpeechModel, Stage, ToolError, ToolResult, Tools, VadModel, download,
    download_adapter, download_text, inspect, inspect_with_adapter, preprocess, shrink_caches,
};
pub use checkpoint::files::Files;
pub use engine::{Answer, Canceller, Engine, Event, FinishReason, Generation, Summary, Token};
pub use engine::{LiveAudio, Transcription, TranscriptionEvent};
pub use error::{Error, ErrorKind, Result};
pub use generate::transcription::{Segment, Task, Timestamps, TranscribeOptions, Transcript, Word};
pub use generate::{Dry, GenerateOptions, Score, Speculation, Xtc};
pub use hub::Source;
/// Dates and times of no time zone, for [`TemplateOptions::local_time`].
pub use jiff::civil;
pub use layers::cache_plan::{Bound, CachePlan, CacheQuantization};
pub use media::{
    Attachment,
    audio::{Audio, AudioFile, MonoReader, Resampler, WavWriter},
    image::Image,
    video::Video,
};
pub use mlx::memory::{MemoryUse, memory_use, set_memory_limit};
pub use models::{
    codec::{Codes, EncodedAudio},
    segments::{SegmentRules, SpeechSegment},
    speaker::{Script, SpeakOptions, Speech, VoiceReference},
};
pub use processors::{NamedTensor, Piece, Prepared, Values};
pub use text::{
    ChatTemplate, Content, Detokenizer, Message, Part, TemplateOptions, Tokenizer,
    phonemes::{Lexicon, read_lexicon},
};

/// The code of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// The values of `model_type` that are supported, family by family.
pub fn model_types() -> impl Iterator<Item = &'static [&'static str]> {
    families::all().map(|family| family.model_types)
}

/// What the tests and benchmarks of this project reach into. It is no API and changes at any time.
#[doc(hidden)]
pub mod internals {
    pub use crate::{
        answer::Phase,
        checkpoint::scope::Scope,
        engine::{
            engine_model::fail_device,
            prefix_cache::{PrefixCache, Slot},
            prompt::EnginePrompt,
        },
        generate::{Allowed, Constraint, TokenMask},
        layers::{
            attention::{
                bidirectional::{BidirectionalAttention, Heads},
                cross::{CrossAttention, Encoded},
            },
            audio::noise::Noise,
            embedded::{Embedded, Key, MediaRange, PromptPositions},
            position::{
                rope::Rope,
                sections::{contiguous, interleaved},
            },
            state::{Fixed, State},
            step::{Rotary, Step},
        },
        mlx::{
            matrix::Matrix,
            parameter::Parameters,
            quantized::{Format, Mode, Quantized},
        },
        models::{
            cache::{Cache, CacheCheckpoint},
            codec::{Codec, Streaming, Windows},
            codec_stream::CodecStream,
            decode_step::{DecodeStep, prefill, prefill_embedded},
            detector::{Detector, DetectorStream, Task},
            embedder::{Embedder, TextEncoder},
            language::{Input, LanguageModel, Media, Wrapper},
            network::{Kind, Network},
            reranker::Reranker,
            speaker::{Speaker, SpeakerOutput},
            speech::{AlignmentHead, Output, Transcriber, WindowedDecoder},
            text_batch::{TextBatch, Tokens},
        },
    };

    /// What prepares pictures.
    pub mod processors {
        pub use crate::media::{
            image::{Extent, Pixels},
            resize::Filter,
        };
        pub use crate::processors::{
            Processor, Read, Settings, blocks, by_class, canvas, fixed, grids, overlapping,
            padded_tiles, patches, rows, smart_resize, tiles,
        };

        /// The pixels of a picture.
        pub fn decode(image: &crate::Image) -> crate::Result<Pixels> {
            image.pixels()
        }
    }

    /// The list of families.
    pub mod families {
        pub use crate::checkpoint::file_rules::{Contents, FileRules};
        pub use crate::families::{
            Build, Checkpoint, Entry, Family, all, build, family, find, ignored_fields, recognize,
        };
        use crate::{
            checkpoint::{files::Files, scope::Scope},
            error::Result,
        };
        use serde_json::Value;

        /// Opens the weights of a checkpoint as its family has them.
        pub fn open(files: &Files, family: &Entry, config: &Value) -> Result<Scope> {
            Scope::open_with(files, &family.files, None, config)
        }
    }

    /// Front ends of speech.
    pub mod audio {
        pub use crate::layers::audio::{
            filter_bank::{FilterBank, MelScale},
            kaldi::{Fbank, stack_frames},
            log_mel::LogMel,
            normalized_log_mel::{NormalizedLogMel, NormalizedLogMelSizes},
            stft::{Stft, Window, reflect},
        };
    }

    /// Operations on arrays.
    pub mod mlx {
        pub use crate::mlx::{node_count, set_fusing, slice, to_vec};
    }
}
