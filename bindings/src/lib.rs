//! The core as Swift and Kotlin call it.
//!
//! Objects are handles. Records have optional fields over what a model recommends. Streams are
//! pulled, and since a foreign task that is cancelled does not drop the future that it awaits, each
//! has a `cancel`. Nothing is decided here: what a value means, and what it must be, the core knows.

mod device;
mod downloader;
mod error;
mod inspection;
mod loading;
mod model;
mod parameters;
mod prompt;
mod session;
mod source;
mod steps;
mod store;
mod stream;

uniffi::setup_scaffolding!();
