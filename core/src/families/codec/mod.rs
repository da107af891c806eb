//! Audio codecs and vocoders.

mod dac;
mod snac;

use crate::families::entry::Entry;

/// The families of codecs.
pub const FAMILIES: &[Entry] = &[snac::ENTRY, dac::ENTRY];
