//! What an application holds: models, sessions, prompts, load options, and inspections. This room
//! joins all others and is used by none of them.

mod answering;
mod audio_codec;
mod audio_model;
mod defaults;
mod demo;
mod download;
mod embedder;
mod inspect;
mod load;
mod location;
mod media;
mod model;
mod network;
mod preparation;
mod prompt;
mod reranker;
mod respond;
mod session;
mod session_options;
mod speech_model;
mod text_batches;
mod text_reader;
mod vad_model;

pub use crate::engine::engine_model::ModelMemory;
pub use audio_codec::AudioCodec;
pub use audio_model::{AlignedWord, AudioFeatures, AudioInput, AudioModel, Stage};
pub use demo::DEMO;
pub use download::{download, download_adapter, download_text};
pub use embedder::{EmbedOptions, Embedder, Embeddings};
pub use inspect::{Inspection, Memory, Packing, inspect, inspect_with_adapter};
pub use load::{Load, LoadEvent, LoadOptions, MemoryPolicy};
pub use location::Location;
pub use media::preprocess;
pub use model::{Model, ModelInfo, shrink_caches};
pub use network::LoadAudio;
pub use prompt::Prompt;
pub use reranker::{RankedDocument, RerankOptions, Reranker};
pub use respond::{BoxFuture, CallTool, RespondEvent, Response, ToolError, ToolResult, Tools};
pub use session::Session;
pub use session_options::{Overflow, SessionOptions};
pub use speech_model::SpeechModel;
pub use vad_model::{Detection, VadModel};
