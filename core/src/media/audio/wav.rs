//! WAV files of 32-bit floats, written as the samples come.

use crate::error::{Error, Result};
use std::{
    fs::File,
    io::{BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// A WAV file that is being written. Its header has the length after [`WavWriter::finish`].
pub struct WavWriter {
    path: PathBuf,
    file: BufWriter<File>,
    sample_rate: u32,
    channels: u16,
    /// The bytes of the samples so far.
    written: u64,
}

impl WavWriter {
    /// Creates the file, in place of an older one.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Option`] for no channels or too many.
    pub fn create(path: impl AsRef<Path>, sample_rate: u32, channels: usize) -> Result<Self> {
        let path = path.as_ref();
        // The size of a frame in bytes has 16 bits too.
        let channels =
            u16::try_from(channels).ok().filter(|channels| (1..1 << 14).contains(channels));
        let channels = channels
            .ok_or_else(|| Error::option("channels", "a WAV file has 1 to 16383 channels"))?;
        let file = BufWriter::new(File::create(path).map_err(Error::io(path))?);
        let mut writer = WavWriter { path: path.into(), file, sample_rate, channels, written: 0 };
        writer.write_header()?;
        Ok(writer)
    }

    /// Appends samples, channel after channel within each frame.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Audio`] beyond the 4 GB that the format allows.
    pub fn write(&mut self, samples: &[f32]) -> Result<()> {
        self.written += 4 * samples.len() as u64;
        if self.written > u64::from(u32::MAX) - 64 {
            let reason = "a WAV file holds at most 4.3 GB; write several files".into();
            return Err(Error::Audio { name: self.path.display().to_string(), reason });
        }
        let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        self.file.write_all(&bytes).map_err(Error::io(&self.path))
    }

    /// Writes the length into the header.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<()> {
        self.file.seek(SeekFrom::Start(0)).map_err(Error::io(&self.path))?;
        self.write_header()?;
        self.file.flush().map_err(Error::io(&self.path))
    }

    fn write_header(&mut self) -> Result<()> {
        const FLOATS: u16 = 3;
        let (data, frame) = (self.written as u32, 4 * self.channels);
        let mut header = Vec::with_capacity(58);
        header.extend(b"RIFF");
        header.extend((50 + data).to_le_bytes());
        header.extend(b"WAVEfmt ");
        header.extend(18_u32.to_le_bytes());
        header.extend(FLOATS.to_le_bytes());
        header.extend(self.channels.to_le_bytes());
        header.extend(self.sample_rate.to_le_bytes());
        header.extend(self.sample_rate.saturating_mul(frame.into()).to_le_bytes());
        header.extend(frame.to_le_bytes());
        header.extend(32_u16.to_le_bytes());
        header.extend(0_u16.to_le_bytes());
        header.extend(b"fact");
        header.extend(4_u32.to_le_bytes());
        header.extend((data / u32::from(frame)).to_le_bytes());
        header.extend(b"data");
        header.extend(data.to_le_bytes());
        self.file.write_all(&header).map_err(Error::io(&self.path))
    }
}
