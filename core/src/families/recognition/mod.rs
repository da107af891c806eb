//! Speech to text.

mod chunked_encoder;
mod moonshine;
mod parakeet;
mod qwen3_asr;
mod qwen3_forced_aligner;
mod sensevoice;
mod voxtral;
mod whisper;

use crate::families::entry::Entry;

/// The families of this modality.
pub const FAMILIES: &[Entry] = &[
    moonshine::ENTRY,
    parakeet::ENTRY,
    qwen3_asr::ENTRY,
    qwen3_forced_aligner::ENTRY,
    sensevoice::ENTRY,
    voxtral::ENTRY,
    whisper::ENTRY,
];
