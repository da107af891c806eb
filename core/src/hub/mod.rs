//! From `org/name` to a verified local model, whatever the network does.
//!
//! The hub is asked once what the revision holds. The files that a model needs, and no others, come
//! by a [`Downloader`] into the cache of Python's `huggingface_hub`; each is verified before it has
//! its name. A model that this library does not run is refused before its weights are fetched.

mod access_token;
mod arrived;
mod cache;
mod client;
mod fetch;
mod listing;
mod outline;
mod plan;
mod progress;
mod ranges;
mod select;
mod source;
mod store;
mod transfer;
mod verify;

pub use access_token::AccessToken;
pub(crate) use fetch::fetch;
pub(crate) use outline::outline;
pub(crate) use plan::{Plan, Wanted};
pub use progress::Progress;
pub use source::{Repository, Source, default_cache};
pub use store::{CachedModel, CachedRevision, delete, delete_revision, list, move_to};
pub use transfer::{Cancel, Download, Downloader};

/// Attempts of a request in memory, while what is wrong may pass: about four seconds.
const ATTEMPTS: u32 = 5;
