//! Samples, which cross as one packed buffer.

use mynah::Error;

/// Samples of one or more channels.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Audio {
    /// 32-bit floats, little endian, channel after channel within each frame.
    pub samples: Vec<u8>,
    /// The number of channels.
    pub channels: u32,
    /// Frames a second, in Hz.
    pub sample_rate: u32,
}

/// Audio that a model is to hear.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum AudioInput {
    /// A file: WAV, AIFF, FLAC, MP3, AAC or ALAC in M4A, Vorbis in Ogg.
    File {
        /// Its path.
        path: String,
    },
    /// Samples.
    Samples {
        /// The samples.
        audio: Audio,
    },
}

impl AudioInput {
    /// The whole audio in memory.
    pub(crate) fn read(self) -> mynah::Result<mynah::Audio> {
        match self {
            AudioInput::File { path } => mynah::Audio::read(path),
            AudioInput::Samples { audio } => audio.try_into(),
        }
    }
}

impl TryFrom<Audio> for mynah::Audio {
    type Error = Error;

    fn try_from(audio: Audio) -> mynah::Result<Self> {
        let (channels, sample_rate) = (audio.channels as usize, audio.sample_rate);
        let samples = unpacked(&audio.samples);
        if channels == 0 || !samples.len().is_multiple_of(channels) {
            let reason = format!("{} samples are not whole frames of {channels}", samples.len());
            return Err(Error::option("channels", reason));
        }
        Ok(mynah::Audio { samples, channels, sample_rate })
    }
}

impl From<mynah::Audio> for Audio {
    fn from(audio: mynah::Audio) -> Self {
        Audio {
            samples: packed(&audio.samples),
            channels: audio.channels as u32,
            sample_rate: audio.sample_rate,
        }
    }
}

/// The floats of a buffer. Bytes after the last whole one are dropped.
pub(crate) fn unpacked(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Floats as a buffer.
pub(crate) fn packed(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|float| float.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_packed_as_documented() {
        let audio = mynah::Audio { samples: vec![1.0, -0.5], channels: 2, sample_rate: 8000 };
        let packed = Audio::from(audio.clone());
        assert_eq!(packed.samples, [0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf]);
        assert_eq!(mynah::Audio::try_from(packed.clone()).unwrap(), audio);
        assert!(mynah::Audio::try_from(Audio { channels: 3, ..packed }).is_err());
    }
}
