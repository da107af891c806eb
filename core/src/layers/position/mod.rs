//! Positions of tokens: rotary embedding and the frequencies of its scalings.

pub mod rope;
pub(crate) mod wavelengths;
