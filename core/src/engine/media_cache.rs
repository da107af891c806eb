//! The pictures of a model's latest prompts with the features that its tower has made of them, so that a
//! second question about a picture runs no tower.

use crate::{
    models::language::Media,
    processors::{NamedTensor, PreparedMedia, Values},
};
use mlx_rs::Array;

/// The bytes that the cache keeps: tensors and features.
const MOST_BYTES: usize = 256 << 20;

/// The latest pictures, the last one at the end.
#[derive(Default)]
pub struct MediaCache(Vec<Media>);

impl MediaCache {
    /// The media of a prompt, with the features of those that an earlier prompt had.
    pub fn get(&mut self, media: &[PreparedMedia]) -> Vec<Media> {
        let own: Vec<Media> = media.iter().map(|media| self.find(media)).collect();
        let mut bytes: usize = self.0.iter().map(Media::bytes).sum();
        // The media of this prompt stay, however large they are.
        while bytes > MOST_BYTES && self.0.len() > own.len() {
            bytes -= self.0.remove(0).bytes();
        }
        own
    }

    fn find(&mut self, media: &PreparedMedia) -> Media {
        let known = self.0.iter().position(|known| known.hash == media.hash);
        let media = match known {
            Some(index) => self.0.remove(index),
            None => {
                let tensors = media.prepared.tensors.iter();
                let tensors = tensors.map(|tensor| (tensor.name.to_string(), array(tensor)));
                Media::new(media.hash, tensors.collect())
            }
        };
        self.0.push(media.clone());
        media
    }
}

fn array(tensor: &NamedTensor) -> Array {
    match &tensor.values {
        Values::Floats(values) => Array::from_slice(values, &tensor.shape),
        Values::Integers(values) => Array::from_slice(values, &tensor.shape),
    }
}
