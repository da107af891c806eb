//! Text to speech.

mod kokoro;

use crate::families::entry::Entry;

/// The families of speakers.
pub const FAMILIES: &[Entry] = &[kokoro::ENTRY];
