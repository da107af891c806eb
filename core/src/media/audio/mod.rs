//! Audio as applications have it: files in any common format, and samples at any rate. Samples are
//! single-precision floats between -1 and 1.

mod file;
mod recording;
mod resampler;
mod samples;
mod wav;

pub use file::{AudioFile, MonoReader};
pub(crate) use recording::{ReadSamples, Recording};
pub use resampler::Resampler;
pub use samples::Audio;
pub use wav::WavWriter;

#[cfg(test)]
mod tests;
