//! Positions of tokens: rotary embedding and the frequencies of its scalings.

pub mod longrope;
pub mod relative;
pub mod rope;
pub mod sections;
pub(crate) mod wavelengths;
