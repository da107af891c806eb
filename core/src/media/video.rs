//! Clips as frames: from pictures, and from a GIF. Movies are decoded by the application, because systems
//! have the decoders.

use crate::{
    error::{Error, Result},
    media::image::{Image, hash, refused},
};
use image::{AnimationDecoder, codecs::gif::GifDecoder};
use std::{fmt, fs, io::Cursor, path::Path, sync::Arc};

/// The most frames of a clip.
const MOST_FRAMES: usize = 4096;
/// The most pixels of all frames that a GIF may have.
const MOST_PIXELS: usize = 1 << 28;

/// A clip for a prompt. Clones share it.
#[derive(Clone)]
pub struct Video {
    frames: Arc<[Image]>,
    fps: Option<f64>,
    hash: u64,
}

impl Video {
    /// A clip of these frames. With `fps`, the frames of each second, a model takes as many of them as its
    /// processor asks for; without it, all of them.
    ///
    /// # Errors
    /// [`Error::Image`] when there is no frame, when there are more than 4096, or when they differ in size.
    pub fn from_frames(frames: impl Into<Vec<Image>>, fps: Option<f64>) -> Result<Self> {
        let frames: Vec<Image> = frames.into();
        let refuse = |reason: String| Err(Error::Image { reason });
        if frames.is_empty() || frames.len() > MOST_FRAMES {
            return refuse(format!("a clip of {} frames; pass 1 to {MOST_FRAMES}", frames.len()));
        }
        if fps.is_some_and(|fps| !(fps > 0.0 && fps.is_finite())) {
            return Err(Error::option("fps", "must be a positive number"));
        }
        let size = |image: &Image| (image.width(), image.height());
        if let Some(other) = frames.iter().find(|frame| size(frame) != size(&frames[0])) {
            let [(w, h), (x, y)] = [size(&frames[0]), size(other)];
            return refuse(format!(
                "the frames of the clip have {w} x {h} and {x} x {y} pixels; make them of one size"
            ));
        }
        let mut parts = fps.unwrap_or(0.0).to_le_bytes().to_vec();
        frames.iter().for_each(|frame| parts.extend(frame.hash().to_le_bytes()));
        let hash = hash(&[b"clip", &parts]);
        Ok(Video { frames: frames.into(), fps, hash })
    }

    /// A clip in a GIF file, or the pictures of a folder in the order of their names.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Image`] for a file of another format, and those of
    /// [`Video::from_frames`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Video::from_gif(&fs::read(path).map_err(Error::io(path))?);
        }
        let entries = fs::read_dir(path).map_err(Error::io(path))?;
        let mut files: Vec<_> = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()
            .map_err(Error::io(path))?;
        let is_hidden = |file: &Path| {
            file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
        };
        files.retain(|file| !is_hidden(file) && file.is_file());
        files.sort();
        Video::from_frames(files.iter().map(Image::open).collect::<Result<Vec<_>>>()?, None)
    }

    /// A clip in the bytes of a GIF file.
    ///
    /// # Errors
    /// [`Error::Image`] for another format or a damaged file.
    pub fn from_gif(bytes: &[u8]) -> Result<Self> {
        if !bytes.starts_with(b"GIF8") {
            let reason = "the clip is no GIF; pass its frames as a folder of pictures".into();
            return Err(Error::Image { reason });
        }
        // The header is checked as that of a picture.
        let first = Image::from_bytes(bytes)?;
        let area = first.width() as usize * first.height() as usize;
        let decoder = GifDecoder::new(Cursor::new(bytes)).map_err(refused)?;
        let (mut frames, mut seconds) = (Vec::new(), 0.0);
        for frame in decoder.into_frames() {
            if (frames.len() + 1) * area > MOST_PIXELS || frames.len() == MOST_FRAMES {
                let reason = "the clip has too many or too large frames; make it shorter".into();
                return Err(Error::Image { reason });
            }
            let frame = frame.map_err(refused)?;
            let (milliseconds, parts) = frame.delay().numer_denom_ms();
            seconds += f64::from(milliseconds) / f64::from(parts.max(1)) / 1000.0;
            let rgb = frame.buffer().pixels().flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]);
            frames.push(Image::from_rgb(first.width(), rgb.collect::<Vec<_>>())?);
        }
        let fps = (seconds > 0.0).then_some(frames.len() as f64 / seconds);
        Video::from_frames(frames, fps)
    }

    /// The frames.
    pub fn frames(&self) -> &[Image] {
        &self.frames
    }

    /// The frames of each second, where that is known.
    pub fn fps(&self) -> Option<f64> {
        self.fps
    }

    /// A hash of the content.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

impl PartialEq for Video {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl fmt::Debug for Video {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Video({} x {:?})", self.frames.len(), self.frames.first())
    }
}
