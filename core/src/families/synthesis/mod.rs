//! Text to speech.

mod kokoro;
mod orpheus;
mod qwen3_tts_base;
mod snac_tokens;
mod soprano;

use crate::families::entry::Entry;

/// The families of speakers.
pub const FAMILIES: &[Entry] =
    &[kokoro::ENTRY, orpheus::ENTRY, qwen3_tts_base::ENTRY, soprano::ENTRY];
