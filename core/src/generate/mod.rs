//! How the next token is sampled: options, penalties, constraints, the sampler, and the scores of
//! texts. This room computes on logits and models; it knows no thread, no session and no file.

mod choice;
mod constraint;
mod governor;
mod guide;
mod lookup;
mod options;
mod penalties;
mod sampler;
mod score;
pub(crate) mod synthesis;
pub mod transcription;

pub use constraint::{Allowed, Constraint, TokenMask};
pub use options::{Dry, GenerateOptions, Speculation, Xtc};
pub use score::Score;

pub(crate) use choice::{QueuedChoice, Sampled};
pub(crate) use governor::{Costs, Governor, LENGTHS, MUCH};
pub(crate) use guide::{Guide, Guided, Wishes};
pub(crate) use lookup::Lookup;
pub(crate) use sampler::{Sampler, random_seed};
pub(crate) use score::{next_logits, score};
