//! From `org/name` to a verified local model, whatever the network does.

mod progress;
mod source;
mod transfer;

pub use progress::Progress;
pub use source::{Repository, Source, Token, default_cache};
pub use transfer::{Cancel, Download, Downloader};

use crate::error::{Error, Result};
use std::path::PathBuf;

/// Brings a model into the cache, unless it is there, and gives the folder of its files.
pub async fn fetch(
    source: &Source,
    progress: impl FnMut(Progress) + Send + 'static,
) -> Result<PathBuf> {
    let _ = progress;
    Err(Error::Internal(format!("{} is not fetched yet", source.repository())))
}
