//! From `org/name` to a verified snapshot of a repository on disk.
//!
//! The client asks the hub once which files a revision has. A [`Downloader`] then moves the files
//! that a model needs, and no others, into the cache that Python's `huggingface_hub` uses; each file
//! is verified against the hub's hash before it gets its name. An interrupted download resumes
//! without fetching a byte twice.
//!
//! This room may use `error` and `checkpoint` (to read configs and headers). It must not know what a
//! model is: the caller passes a [`Plan`] that judges the config before the weights are downloaded.

mod access_token;
mod address;
mod at_once;
mod blob;
mod cache;
mod cached_models;
mod cancel;
mod client;
mod downloader;
mod http;
mod listing;
mod parallel_download;
mod partial_download;
mod pauses;
mod plan;
mod progress;
mod remote_headers;
mod response;
mod select;
mod snapshot;
mod source;
mod verify;

pub use access_token::AccessToken;
pub use cached_models::{CachedModel, CachedRevision, delete, delete_revision, list, move_to};
pub use cancel::Cancel;
pub use downloader::{Download, Downloader};
pub use http::{HttpBody, HttpClient, HttpRequest, HttpResponse, set_http_client};
pub(crate) use plan::{Plan, Wanted};
pub use progress::Progress;
pub(crate) use remote_headers::remote_headers;
pub(crate) use snapshot::download_snapshot;
pub use source::{Repository, Source, default_cache};

/// Attempts of a request whose answer is read into memory, while the error may be temporary: about
/// four seconds of back-off.
const ATTEMPTS: u32 = 5;
