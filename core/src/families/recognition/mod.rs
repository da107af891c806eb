//! Speech to text.

mod moonshine;
mod parakeet;
mod qwen3_asr;
mod sensevoice;
mod voxtral;
mod whisper;

use crate::families::entry::Entry;

/// The families of this modality.
pub const FAMILIES: &[Entry] = &[
    moonshine::ENTRY,
    parakeet::ENTRY,
    qwen3_asr::ENTRY,
    sensevoice::ENTRY,
    voxtral::ENTRY,
    whisper::ENTRY,
];
