//! Processors: from a picture to the tensors of a vision tower, and from the marker of a picture in a
//! prompt to its placeholders. A processor is a checkpoint's settings and one of a few mechanisms;
//! this room knows no arrays and no model.

use crate::{
    checkpoint::{config::Json, files::Files},
    error::Result,
    media::image::Pixels,
    text::Tokenizer,
};

/// Prepares the media of a prompt for a model.
pub trait Processor: Send + Sync {
    /// The tensors of a picture, and what stands for it in the prompt.
    ///
    /// # Errors
    /// An error when the model cannot read a picture of this size.
    fn image(&self, image: &Pixels) -> Result<Prepared>;
}

/// Reads the settings of a processor.
pub type Read = fn(&Settings) -> Result<Box<dyn Processor>>;

/// What the settings of a processor are read from.
pub struct Settings<'a> {
    /// `config.json`.
    pub config: &'a Json,
    /// The files of the checkpoint.
    pub files: &'a Files,
    /// The tokenizer; none for a checkpoint that reads token ids only.
    pub tokenizer: Option<&'a Tokenizer>,
}

/// One picture or clip as a model reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// A hash of the content.
    pub hash: u64,
    /// The tensors by the names that transformers' processor gives them.
    pub tensors: Vec<NamedTensor>,
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
