//! Bytes to pixels and samples, and back. This room may use `error` alone; it knows no model and no
//! array.

pub mod audio;
pub mod image;
pub mod interpolate;
pub mod resize;
pub mod video;

use image::Image;
use video::Video;

/// What a message or a prompt has beside text.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Attachment {
    /// A picture.
    Image(Image),
    /// A clip.
    Video(Video),
}

impl From<Image> for Attachment {
    fn from(image: Image) -> Self {
        Attachment::Image(image)
    }
}

impl From<Video> for Attachment {
    fn from(video: Video) -> Self {
        Attachment::Video(video)
    }
}

impl Attachment {
    /// The type of a content part with it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Attachment::Image(_) => "image",
            Attachment::Video(_) => "video",
        }
    }

    /// A hash of the content.
    pub(crate) fn hash(&self) -> u64 {
        match self {
            Attachment::Image(image) => image.hash(),
            Attachment::Video(video) => video.hash(),
        }
    }
}
