//! Pictures: files of JPEG, PNG, WebP and GIF to RGB pixels, as Pillow opens them. The EXIF
//! orientation is applied, alpha is dropped, 16 bits become their high byte (grey ones are cut off at
//! 255), and of an animation the first frame is taken.

use crate::error::{Error, Result};
use image::{
    DynamicImage, ImageDecoder, ImageError, ImageReader, Limits,
    metadata::Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH},
};
use sha2::{Digest, Sha256};
use std::{fmt, fs, io::Cursor, path::Path, sync::Arc};

/// The most pixels of a picture, which take 400 MB.
const MOST_PIXELS: u64 = 1 << 27;
/// The longest side of a picture.
const LONGEST_SIDE: u32 = 1 << 16;

/// A picture for a prompt. Clones share it; it is decoded when a model reads it.
#[derive(Clone)]
pub struct Image {
    source: Arc<Source>,
    hash: u64,
    width: u32,
    height: u32,
}

enum Source {
    /// The bytes of a file.
    File(Vec<u8>),
    Pixels(Pixels),
}

impl Image {
    /// A picture in a file.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`Image::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(Error::io(path))?;
        Image::from_bytes(bytes).map_err(|error| match error {
            Error::Image { reason } => {
                Error::Image { reason: format!("{}: {reason}", path.display()) }
            }
            error => error,
        })
    }

    /// A picture in the bytes of a JPEG, PNG, WebP or GIF file. Only its header is read here.
    ///
    /// # Errors
    /// [`Error::Image`] for another format, and for a picture of more than 134 million pixels.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let bytes = bytes.into();
        let mut decoder = decoder(&bytes)?;
        let (mut width, mut height) = decoder.dimensions();
        // A damaged orientation is none.
        let orientation = decoder.orientation();
        if matches!(orientation, Ok(Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)) {
            (width, height) = (height, width);
        }
        drop(decoder);
        let hash = hash(&[b"file", &bytes]);
        Ok(Image { source: Arc::new(Source::File(bytes)), hash, width, height })
    }

    /// A picture of `width` columns and `rgb.len() / 3 / width` rows, with one byte for each of red,
    /// green and blue.
    ///
    /// # Errors
    /// [`Error::Image`] when there is no pixel, a row is not whole, or there are too many pixels.
    pub fn from_rgb(width: u32, rgb: impl Into<Vec<u8>>) -> Result<Self> {
        let rgb = rgb.into();
        let row = 3 * width as usize;
        if row == 0 || rgb.is_empty() || rgb.len() % row != 0 {
            let reason = format!("{} bytes are not rows of {width} RGB pixels", rgb.len());
            return Err(Error::Image { reason });
        }
        let height = u32::try_from(rgb.len() / row).unwrap_or(u32::MAX);
        check_size(width, height)?;
        let hash = hash(&[b"rgb", &width.to_le_bytes(), &rgb]);
        let pixels = Pixels { width: width as usize, height: height as usize, rgb };
        Ok(Image { source: Arc::new(Source::Pixels(pixels)), hash, width, height })
    }

    /// Columns, after the orientation is applied.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows, after the orientation is applied.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// A hash of the content.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The decoded picture.
    ///
    /// # Errors
    /// [`Error::Image`] when the file is damaged.
    pub(crate) fn pixels(&self) -> Result<Pixels> {
        let bytes = match &*self.source {
            Source::File(bytes) => bytes,
            Source::Pixels(pixels) => return Ok(pixels.clone()),
        };
        let mut decoder = decoder(bytes)?;
        let orientation = decoder.orientation().ok();
        let mut picture = DynamicImage::from_decoder(decoder).map_err(refused)?;
        if let Some(orientation) = orientation {
            picture.apply_orientation(orientation);
        }
        Ok(Pixels::of(picture))
    }
}

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Image({} x {})", self.width, self.height)
    }
}

/// A decoded picture: RGB of 8 bits a channel, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`.
    pub rgb: Vec<u8>,
}

impl Pixels {
    /// A picture of one colour.
    pub fn filled(size: Extent, color: [u8; 3]) -> Self {
        let Extent { width, height } = size;
        Pixels { width, height, rgb: color.repeat(width * height) }
    }

    fn of(picture: DynamicImage) -> Self {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let is_deep = picture.color().bytes_per_pixel() > picture.color().channel_count();
        let rgb = match picture {
            // Pillow opens this mode alone in full, and cuts it off where it makes RGB of it.
            DynamicImage::ImageLuma16(grey) => {
                grey.into_raw().into_iter().flat_map(|level| [level.min(255) as u8; 3]).collect()
            }
            deep if is_deep => {
                deep.into_rgb16().into_raw().into_iter().map(|value| (value >> 8) as u8).collect()
            }
            other => other.into_rgb8().into_raw(),
        };
        Pixels { width, height, rgb }
    }

    /// Columns and rows.
    pub fn extent(&self) -> Extent {
        Extent { width: self.width, height: self.height }
    }

    /// The part of this size whose first pixel is at column `x` and row `y`; what lies outside of the
    /// picture has the colour `outside`.
    pub fn window(&self, x: isize, y: isize, size: Extent, outside: [u8; 3]) -> Self {
        let mut part = Pixels::filled(size, outside);
        let columns = overlap(x, size.width, self.width);
        for row in overlap(y, size.height, self.height) {
            let from = 3 * ((row as isize + y) as usize * self.width);
            let from = from + 3 * (columns.start as isize + x) as usize;
            let to = 3 * (row * size.width + columns.start);
            let length = 3 * columns.len();
            part.rgb[to..to + length].copy_from_slice(&self.rgb[from..from + length]);
        }
        part
    }
}

/// Which of `length` places, the first of which is at `start`, lie in `0..limit`.
fn overlap(start: isize, length: usize, limit: usize) -> std::ops::Range<usize> {
    let first = (-start).clamp(0, length as isize);
    let end = (limit as isize - start).clamp(first, length as isize);
    first as usize..end as usize
}

/// The size of a picture in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Extent {
    /// The size of a square.
    pub fn square(side: usize) -> Self {
        Extent { width: side, height: side }
    }

    /// The longer side.
    pub fn longest(self) -> usize {
        self.width.max(self.height)
    }

    /// Columns times rows.
    pub fn area(self) -> usize {
        self.width * self.height
    }
}

/// A decoder that has read the header of a picture of a possible size.
fn decoder(bytes: &[u8]) -> Result<impl ImageDecoder> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let reader = reader.map_err(|error| Error::Image { reason: error.to_string() })?;
    if reader.format().is_none() {
        let reason = "not a JPEG, PNG, WebP or GIF picture; convert it to one of these".into();
        return Err(Error::Image { reason });
    }
    if is_cut_jpeg(bytes) {
        return Err(cut_off());
    }
    let mut decoder = reader.into_decoder().map_err(refused)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(8 * MOST_PIXELS);
    decoder.set_limits(limits).map_err(refused)?;
    Ok(decoder)
}

/// Whether a JPEG has no end after its last scan. Its decoder would leave what is missing grey.
fn is_cut_jpeg(bytes: &[u8]) -> bool {
    const START: [u8; 2] = [0xff, 0xd8];
    const SCAN: [u8; 2] = [0xff, 0xda];
    const END: [u8; 2] = [0xff, 0xd9];
    let last = bytes.windows(2).rev().find(|marker| *marker == SCAN || *marker == END);
    bytes.starts_with(&START) && last != Some(&END[..])
}

fn cut_off() -> Error {
    Error::Image { reason: "the file is cut off; copy or download it again".into() }
}

fn check_size(width: u32, height: u32) -> Result<()> {
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(Error::Image { reason: "the picture has no pixels".into() });
    }
    if pixels > MOST_PIXELS || width.max(height) > LONGEST_SIDE {
        let reason = format!(
            "{width} x {height} pixels are more than the {} million, or a side is longer than the \
             {LONGEST_SIDE} pixels, that are read; make the picture smaller",
            MOST_PIXELS / 1_000_000
        );
        return Err(Error::Image { reason });
    }
    Ok(())
}

pub(crate) fn refused(error: ImageError) -> Error {
    let reason = match error {
        ImageError::Unsupported(error) => format!("{error}; convert it to JPEG or PNG"),
        ImageError::Limits(error) => format!("too large to be decoded: {error}"),
        ImageError::IoError(_) => return cut_off(),
        error => format!("the file is damaged: {error}"),
    };
    Error::Image { reason }
}

/// The first 64 bits of SHA-256.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}
