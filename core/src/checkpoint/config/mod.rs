//! Reading `config.json`: typed fields, with errors that name the field at fault. Every value
//! remembers whether a reader consumed it, as [`Scope`](crate::checkpoint::scope::Scope) does for
//! tensors, so that the fields that no reader consumed can be reported or refused.

mod fields;
mod json;
mod known_fields;
mod numbers;
mod text;

pub use fields::{
    field, only, only_one_of, part, read, read_renamed, text, with_defaults, without,
};
pub use json::Json;
pub use known_fields::ignored_fields;
pub use numbers::{
    ByLayer, Count, Epsilon, Float, PerLayer, Positive, Size, check_entries, entry, optional_size,
    positive, product, product_of, size,
};
pub use text::{RopeScaling, Text};
