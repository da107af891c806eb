//! What a step of a transcription gives.

use crate::generate::transcription::transcript::{Segment, Transcript};

/// What a step of a transcription has given.
pub(crate) enum Progress {
    /// Nothing yet.
    Working,
    /// The next segments, and the share of the recording that is done.
    Segments(Vec<Segment>, f32),
    /// The end.
    Finished(Transcript),
}
