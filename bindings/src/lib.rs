//! The core as Swift and Kotlin call it.
//!
//! Objects are handles to the core. Optional fields of a record override the defaults of the model.
//! Callers pull streams; a stream has a `cancel`, because a cancelled Swift or Kotlin task does not
//! drop the Rust future that it awaits. The core validates every value; the bindings only convert.

mod codec;
mod detection;
mod device;
mod downloader;
mod error;
mod events;
mod host;
mod http;
mod inspection;
mod loading;
mod logging;
mod media;
mod model;
mod parameters;
mod partial;
mod prompt;
mod pulled;
mod samples;
mod session;
mod source;
mod speech;
mod steps;
mod store;
mod stream;
mod transcription;

uniffi::setup_scaffolding!();
