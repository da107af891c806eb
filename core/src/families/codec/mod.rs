//! Audio codecs and vocoders.

mod bigvgan;
mod dac;
mod dacvae;
mod encodec;
mod mimi;
mod snac;
mod vocos;

use crate::families::entry::Entry;

/// The families of codecs.
pub const FAMILIES: &[Entry] =
    &[bigvgan::ENTRY, dac::ENTRY, encodec::ENTRY, mimi::ENTRY, snac::ENTRY, vocos::ENTRY];
