//! Audio files, decoded block by block, so that the length of a file does not decide how much memory it
//! takes. Symphonia decodes; it is Rust alone, with no code of the system.

use super::resampler::Resampler;
use crate::error::{Error, Result};
use std::{
    fs::File,
    io::{Cursor, ErrorKind},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};
use symphonia::core::{
    audio::SampleBuffer,
    codecs::{CODEC_TYPE_NULL, CODEC_TYPE_OPUS, Decoder, DecoderOptions},
    errors::Error as DecodeError,
    formats::{FormatOptions, FormatReader},
    io::{MediaSource, MediaSourceStream},
    meta::MetadataOptions,
    probe::Hint,
};

/// An audio file that is being decoded.
pub struct AudioFile {
    /// What errors call it.
    name: String,
    format: Box<dyn FormatReader>,
    decoder: Box<dyn Decoder>,
    track: u32,
    sample_rate: u32,
    channels: usize,
    frames: Option<u64>,
    block: Vec<f32>,
    is_given: bool,
}

impl AudioFile {
    /// Opens a file: WAV, AIFF, FLAC, MP3, AAC or ALAC in M4A, Vorbis in Ogg. The content decides, not
    /// the name.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Audio`] for a damaged file and for an unknown format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io(path))?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(Error::io(path)(ErrorKind::IsADirectory.into()));
        }
        Self::decode(path.display().to_string(), Box::new(file))
    }

    /// As [`AudioFile::open`], for the bytes of a file.
    ///
    /// # Errors
    /// [`Error::Audio`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::decode("the audio".into(), Box::new(Cursor::new(bytes)))
    }

    fn decode(name: String, source: Box<dyn MediaSource>) -> Result<Self> {
        let stream = MediaSourceStream::new(source, Default::default());
        let options = FormatOptions { enable_gapless: true, ..FormatOptions::default() };
        let probed = guarded(&name, || {
            symphonia::default::get_probe().format(
                &Hint::new(),
                stream,
                &options,
                &MetadataOptions::default(),
            )
        })?;
        let format = probed.format;
        let refused = |reason: &str| Error::Audio { name: name.clone(), reason: reason.into() };
        let tracks = || format.tracks().iter().map(|track| &track.codec_params);
        if tracks().any(|parameters| parameters.codec == CODEC_TYPE_OPUS) {
            return Err(refused("Opus is not supported; convert the file to FLAC or WAV"));
        }
        let is_sound = |parameters: &symphonia::core::codecs::CodecParameters| {
            parameters.codec != CODEC_TYPE_NULL && parameters.sample_rate.is_some()
        };
        let track = format.tracks().iter().find(|track| is_sound(&track.codec_params));
        let track = track.ok_or_else(|| refused("it has no audio track; choose another file"))?;
        let (parameters, id) = (track.codec_params.clone(), track.id);
        let decoder = guarded(&name, || {
            symphonia::default::get_codecs().make(&parameters, &DecoderOptions::default())
        })?;
        let channels = parameters.channels.map_or(0, |channels| channels.count());
        let mut file = AudioFile {
            name,
            format,
            decoder,
            track: id,
            sample_rate: parameters.sample_rate.unwrap_or(0),
            channels,
            frames: parameters.n_frames,
            block: Vec::new(),
            is_given: false,
        };
        if file.channels == 0 {
            // Some formats tell the number of channels only with the first block.
            file.fill()?;
        }
        Ok(file)
    }

    /// Frames a second, in Hz.
    pub fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The length in seconds, where the file says it.
    pub fn seconds(&self) -> Option<f64> {
        Some(self.frames? as f64 / f64::from(self.sample_rate.max(1)))
    }

    /// The next samples, channel after channel within each frame; `None` at the end. A file that was
    /// cut off ends where it was cut.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Audio`] for a damaged file.
    pub fn next_block(&mut self) -> Result<Option<&[f32]>> {
        if self.block.is_empty() || self.is_given {
            self.fill()?;
        }
        self.is_given = true;
        Ok((!self.block.is_empty()).then_some(&self.block))
    }

    /// Decodes the next packet that has samples.
    fn fill(&mut self) -> Result<()> {
        self.block.clear();
        while self.block.is_empty() {
            let packet = guarded(&self.name, || match self.format.next_packet() {
                Err(DecodeError::IoError(error)) if error.kind() == ErrorKind::UnexpectedEof => {
                    Ok(None)
                }
                // Another stream begins in the same file.
                Err(DecodeError::ResetRequired) => Ok(None),
                packet => packet.map(Some),
            })?;
            let Some(packet) = packet else { break };
            if packet.track_id() != self.track {
                continue;
            }
            let (decoder, block) = (&mut self.decoder, &mut self.block);
            let channels = guarded(&self.name, || {
                let decoded = match decoder.decode(&packet) {
                    // A damaged packet is a gap, as players have it.
                    Err(DecodeError::DecodeError(reason)) => {
                        tracing::warn!(reason, "a packet of audio could not be decoded");
                        return Ok(None);
                    }
                    decoded => decoded?,
                };
                let mut samples = SampleBuffer::new(decoded.capacity() as u64, *decoded.spec());
                samples.copy_interleaved_ref(decoded.clone());
                block.extend_from_slice(samples.samples());
                Ok(Some(decoded.spec().channels.count()))
            })?;
            if let Some(channels) = channels {
                self.channels = channels;
            }
        }
        Ok(())
    }
}

/// A panic of a decoder is a damaged file.
fn guarded<T>(name: &str, decode: impl FnOnce() -> Result<T, DecodeError>) -> Result<T> {
    let refused = |reason: String| Error::Audio { name: name.into(), reason };
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(DecodeError::IoError(error))) if error.kind() != ErrorKind::UnexpectedEof => {
            Err(Error::io(Path::new(name))(error))
        }
        Ok(Err(DecodeError::IoError(_))) => {
            Err(refused("the file is cut off or no audio file; save it again".into()))
        }
        Ok(Err(DecodeError::Unsupported(reason))) => Err(refused(format!(
            "unknown audio format ({reason}); WAV, FLAC, MP3, M4A and Ogg Vorbis are supported"
        ))),
        Ok(Err(error)) => Err(refused(format!("{error}; the file is damaged, save it again"))),
        Err(_) => Err(refused("the file is damaged, save it again".into())),
    }
}

/// The mean of the channels of a file, at a rate of choice.
pub struct MonoReader {
    file: AudioFile,
    resampler: Resampler,
    is_finished: bool,
}

impl MonoReader {
    /// Reads a file at `sample_rate` Hz.
    ///
    /// # Errors
    /// Those of [`Resampler::new`].
    pub fn new(file: AudioFile, sample_rate: u32) -> Result<Self> {
        let resampler = Resampler::new(file.sample_rate(), sample_rate)?;
        Ok(MonoReader { file, resampler, is_finished: false })
    }

    /// Appends the next samples to `out`, at least one; `false` at the end.
    ///
    /// # Errors
    /// Those of [`AudioFile::next_block`]; [`Error::Audio`] for a sample that is not a number.
    pub fn read(&mut self, out: &mut Vec<f32>) -> Result<bool> {
        let before = out.len();
        while out.len() == before && !self.is_finished {
            let (name, channels) = (self.file.name.clone(), self.file.channels());
            match self.file.next_block()? {
                Some(block) => {
                    self.resampler.push(&mean_of_channels(&name, block, channels)?, out);
                }
                None => {
                    self.resampler.finish(out);
                    self.is_finished = true;
                }
            }
        }
        Ok(out.len() > before)
    }
}

/// The mean of the channels of each frame; `name` is what an error calls the audio.
pub(super) fn mean_of_channels(name: &str, samples: &[f32], channels: usize) -> Result<Vec<f32>> {
    if let Some(index) = samples.iter().position(|sample| !sample.is_finite()) {
        let frame = index / channels.max(1);
        let reason = format!("sample {frame} is not a number; save the audio again");
        return Err(Error::Audio { name: name.into(), reason });
    }
    let share = 1.0 / channels.max(1) as f32;
    Ok(match channels {
        0 | 1 => samples.to_vec(),
        _ => samples.chunks(channels).map(|frame| frame.iter().sum::<f32>() * share).collect(),
    })
}
