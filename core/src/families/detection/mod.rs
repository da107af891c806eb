//! Voice activity and turn detection.

mod silero_vad;
mod smart_turn;
mod sortformer;

use crate::families::entry::Entry;

/// The families of detectors.
pub const FAMILIES: &[Entry] = &[silero_vad::ENTRY, smart_turn::ENTRY, sortformer::ENTRY];
