//! Speech to text: from a recording to segments with times.

mod alignment;
mod frames;
mod hallucination;
mod options;
mod pieces;
mod progress;
mod rules;
mod run;
mod score;
mod transcript;
mod vocabulary;
mod window;
mod windows;

pub use options::{Task, Timestamps, TranscribeOptions};
pub use transcript::{Segment, Transcript, Word};

pub(crate) use progress::Progress;
pub(crate) use run::TranscriptionRun;
pub(crate) use score::{Wanted, score_transcript};
pub(crate) use vocabulary::Vocabulary;
