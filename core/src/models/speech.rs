//! What models of speech and audio can do. Samples are single-precision, mono, between -1 and 1.

use crate::{
    error::Result,
    models::{cache::Cache, decode_step::prefill_embedded, language::LanguageModel},
};
use mlx_rs::Array;
use std::rc::Rc;

/// Speech to text: an encoder, and a decoder that reads its output by cross attention.
pub trait Transcriber {
    /// Features `[batch, frames, bins]` to the output of the encoder `[batch, positions, width]`.
    fn encode(&self, features: &Array) -> Result<Array>;

    /// The decoder. The first pass over a cache brings the output of the encoder
    /// ([`Embedded::encoded`](crate::layers::embedded::Embedded::encoded)); the cache keeps the keys
    /// and values that are made of it, when it is rewound too, so that decode steps and other
    /// attempts need the ids alone.
    fn decoder(&self) -> &Rc<dyn LanguageModel>;

    /// A pass of the decoder over ids `[batch, length]` to logits `[batch, length, vocabulary]`;
    /// `encoded` replaces what the cache has of an encoder.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`](crate::Error::MemoryLimit), [`Error::Mlx`](crate::Error::Mlx);
    /// [`Error::Internal`](crate::Error::Internal) when no pass has brought the output of the encoder.
    fn decode(&self, ids: &Array, encoded: Option<&Array>, cache: &mut Cache) -> Result<Array> {
        let decoder = &**self.decoder();
        let mut x = decoder.embed(ids)?;
        x.encoded = encoded.cloned();
        decoder.logits(&prefill_embedded(decoder, &x, cache)?)
    }
}
