//! From `org/name` to a verified local model, whatever the network does.
//!
//! ```no_run
//! # async fn download() -> mynah::Result<()> {
//! use mynah::hub::{Source, fetch};
//!
//! let source = Source::new("org/name@main")?;
//! let folder = fetch(&source, |progress| println!("{:.0} %", 100.0 * progress.share())).await?;
//! # Ok(()) }
//! ```
//!
//! The hub is asked once what the revision holds. The files that a model needs, and no others, come
//! by a [`Downloader`] into the cache of Python's `huggingface_hub`; each is verified before it has
//! its name. A model that this library does not run is refused before its weights are fetched.

mod arrived;
mod cache;
mod client;
mod fetch;
mod outline;
mod progress;
mod ranges;
mod select;
mod source;
mod store;
mod transfer;
mod verify;

pub use fetch::{fetch, fetch_adapter, fetch_text};
pub(crate) use outline::outline;
pub use progress::Progress;
pub use source::{Repository, Source, Token, default_cache};
pub use store::{CachedModel, CachedRevision, delete, delete_revision, list, move_to};
pub use transfer::{Cancel, Download, Downloader};

/// Attempts of a request in memory, while what is wrong may pass: about four seconds.
const ATTEMPTS: u32 = 5;
