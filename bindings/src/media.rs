//! Pictures and clips of prompts.

use crate::error::MynahError;
use std::sync::Arc;

/// A picture, which is decoded when a model reads it.
#[derive(Debug, uniffi::Object)]
pub struct Image(pub(crate) mynah::Image);

#[uniffi::export]
impl Image {
    /// A picture in a file.
    ///
    /// # Errors
    /// When the file cannot be read or is no picture of a known format.
    #[uniffi::constructor]
    pub fn open(path: String) -> Result<Arc<Self>, MynahError> {
        Ok(Arc::new(Image(mynah::Image::open(path)?)))
    }

    /// A picture in the bytes of a file.
    ///
    /// # Errors
    /// When they are no picture of a known format.
    #[uniffi::constructor]
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Arc<Self>, MynahError> {
        Ok(Arc::new(Image(mynah::Image::from_bytes(bytes)?)))
    }

    /// A picture of rows of `width` pixels, with one byte for each of red, green and blue.
    ///
    /// # Errors
    /// When a row is not whole, or the picture is empty or too large.
    #[uniffi::constructor]
    pub fn from_rgb(width: u32, rgb: Vec<u8>) -> Result<Arc<Self>, MynahError> {
        Ok(Arc::new(Image(mynah::Image::from_rgb(width, rgb)?)))
    }

    /// Columns, after the orientation is applied.
    pub fn width(&self) -> u32 {
        self.0.width()
    }

    /// Rows, after the orientation is applied.
    pub fn height(&self) -> u32 {
        self.0.height()
    }
}

/// A clip.
#[derive(Debug, uniffi::Object)]
pub struct Video(pub(crate) mynah::Video);

#[uniffi::export]
impl Video {
    /// A clip in a GIF file, or the pictures of a folder in the order of their names.
    ///
    /// # Errors
    /// When the file or a picture cannot be read.
    #[uniffi::constructor]
    pub fn open(path: String) -> Result<Arc<Self>, MynahError> {
        Ok(Arc::new(Video(mynah::Video::open(path)?)))
    }

    /// A clip in the bytes of a GIF file.
    ///
    /// # Errors
    /// When they are no GIF.
    #[uniffi::constructor]
    pub fn from_gif(bytes: Vec<u8>) -> Result<Arc<Self>, MynahError> {
        Ok(Arc::new(Video(mynah::Video::from_gif(&bytes)?)))
    }

    /// A clip of frames of one size. With the frames of each second, a model takes as many of them as its
    /// processor asks for; without it, all of them.
    ///
    /// # Errors
    /// When there are no frames or too many, or they differ in size.
    #[uniffi::constructor]
    pub fn from_frames(
        frames: Vec<Arc<Image>>,
        frames_per_second: Option<f64>,
    ) -> Result<Arc<Self>, MynahError> {
        let frames: Vec<_> = frames.iter().map(|frame| frame.0.clone()).collect();
        Ok(Arc::new(Video(mynah::Video::from_frames(frames, frames_per_second)?)))
    }
}
