//! The thread that owns every array: its tasks, the generations among them, and the prefix caches
//! of sessions. This room runs models; it knows no handle and no download.

pub(crate) mod engine_model;
mod generation;
pub(crate) mod prefix_cache;
pub(crate) mod prompt;
mod thread;

pub use generation::{Canceller, Event, FinishReason, Generation, Summary, Token};
pub use thread::Engine;

pub(crate) use generation::Request;
pub(crate) use thread::Turn;
