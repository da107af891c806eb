//! Bytes to pixels and samples, and back. This room may use `error` alone; it knows no model and no
//! array.

pub mod audio;
