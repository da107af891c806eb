//! Processors: from a picture to the tensors of a vision tower, and from the marker of a picture in a
//! prompt to its placeholders. A processor is the settings of a checkpoint and one of a few
//! mechanisms, each a file. This room knows no arrays and no model; the reference of all of it are the
//! processors of transformers 5 on Pillow (`image_processing_pil_*.py` and `processing_*.py`).

pub mod blocks;
pub mod by_class;
pub mod canvas;
mod expansion;
pub mod fixed;
pub mod grids;
mod layouts;
mod normalization;
pub mod overlapping;
pub mod padded_tiles;
pub mod patches;
mod placeholders;
pub mod rows;
mod settings;
pub mod smart_resize;
pub mod tiles;

pub use expansion::Expansion;
pub use normalization::Normalization;
pub use placeholders::{Marker, PLACE, Piece, Surroundings};
pub use settings::{Fields, Settings, SizeField};

use crate::{
    error::{Error, Result},
    media::{
        image::{Extent, Pixels},
        resize::Filter,
        video::Video,
    },
};
use std::sync::Arc;

/// Prepares the pictures of a prompt for a model.
pub trait Processor: Send + Sync {
    /// What marks the place of a picture in a prompt, and after it what marks that of a clip, where the
    /// model reads clips.
    fn markers(&self) -> &[Marker];

    /// The tensors of a picture, and what stands for it in the prompt.
    ///
    /// # Errors
    /// [`Error::Image`] when the model cannot read a picture of this size.
    fn image(&self, picture: &Pixels) -> Result<Prepared>;

    /// The tensors of a clip, and what stands for it in the prompt.
    ///
    /// # Errors
    /// [`Error::Image`] when the model reads no clips, and as [`Processor::image`].
    fn video(&self, _: &Video) -> Result<Prepared> {
        let reason = "the model reads pictures and no clips; pass frames of the clip as pictures";
        Err(Error::Image { reason: reason.into() })
    }

    /// What the prompt has around its text.
    fn surroundings(&self) -> Surroundings {
        Surroundings::default()
    }
}

/// Reads the settings of a processor.
pub type Read = fn(&Settings) -> Result<Box<dyn Processor>>;

/// One picture as a model reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// The tensors by the names that transformers' processor gives them.
    pub tensors: Vec<NamedTensor>,
    /// What replaces the marker in the prompt.
    pub placeholders: Vec<Piece>,
    /// How many of the placeholders stand for a feature vector.
    pub soft_tokens: usize,
    /// How many values of `pixel_values` in a row are of one colour channel.
    pub channel_run: usize,
}

/// A picture or a clip of a prompt.
#[derive(Clone, Debug)]
pub struct PreparedMedia {
    /// A hash of its content.
    pub hash: u64,
    /// `image` or `video`.
    pub kind: &'static str,
    /// What its processor has made of it.
    pub prepared: Arc<Prepared>,
}

impl Prepared {
    /// Whether a token is among the placeholders.
    pub fn has(&self, token: u32) -> bool {
        let is_it = |piece: &Piece| matches!(piece, Piece::Tokens { id, .. } if *id == token);
        self.placeholders.iter().any(is_it)
    }

    /// The bytes of its tensors.
    pub fn bytes(&self) -> usize {
        self.tensors.iter().map(NamedTensor::bytes).sum()
    }
}

/// A tensor of a processor.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Its name, such as `pixel_values`.
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<i32>,
    /// Its values, row by row.
    pub values: Values,
}

/// The values of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Single precision.
    Floats(Vec<f32>),
    /// Signed integers of 32 bits.
    Integers(Vec<i32>),
}

impl NamedTensor {
    /// A tensor in single precision.
    pub fn floats(name: &'static str, shape: &[usize], values: Vec<f32>) -> Self {
        let shape = shape.iter().map(|size| *size as i32).collect();
        NamedTensor { name, shape, values: Values::Floats(values) }
    }

    /// A tensor of sizes, counts or positions.
    pub fn integers(
        name: &'static str,
        shape: &[usize],
        values: impl IntoIterator<Item = usize>,
    ) -> Self {
        NamedTensor::signed(name, shape, values.into_iter().map(|value| value as i32))
    }

    /// As [`NamedTensor::integers`], where some are negative.
    pub fn signed(
        name: &'static str,
        shape: &[usize],
        values: impl IntoIterator<Item = i32>,
    ) -> Self {
        let shape = shape.iter().map(|size| *size as i32).collect();
        NamedTensor { name, shape, values: Values::Integers(values.into_iter().collect()) }
    }

    /// The bytes of its values.
    pub fn bytes(&self) -> usize {
        4 * match &self.values {
            Values::Floats(values) => values.len(),
            Values::Integers(values) => values.len(),
        }
    }
}

/// The most pixels of a picture that a tower reads.
const MOST_PIXELS: usize = 1 << 26;

/// A picture in the size that settings ask for.
///
/// # Errors
/// [`Error::Image`] when that size has no pixels or too many.
fn resized(picture: &Pixels, size: Extent, filter: Filter) -> Result<Pixels> {
    check(picture, size)?;
    Ok(picture.resized(size, filter))
}

/// Refuses a size that settings ask for when it has no pixels or too many.
fn check(picture: &Pixels, size: Extent) -> Result<()> {
    let Extent { width, height } = size;
    if width.checked_mul(height).is_some_and(|area| (1..=MOST_PIXELS).contains(&area)) {
        return Ok(());
    }
    let reason = format!(
        "the settings of the model make {width} x {height} pixels of a picture of {} x {}, which no \
         model reads; choose a picture of another shape",
        picture.width, picture.height
    );
    Err(Error::Image { reason })
}

/// A number rounded to the nearest integer, a half to the even one, as Python rounds.
fn round_half_even(x: f64) -> f64 {
    x.round_ties_even()
}
