//! Decoding of codes while they still come.

use crate::{
    error::{Error, Result},
    layers::audio::noise::Noise,
    mlx,
    models::{
        cache::Cache,
        codec::{Codec, Codes, EncodedAudio, Streaming, Windows},
    },
};
use mlx_rs::Array;
use std::rc::Rc;

/// A stream of codes that is being decoded. Its parts make the samples of the whole.
pub struct CodecStream {
    codec: Rc<dyn Codec>,
    /// Codes that are not decoded yet, after those of the context of a window.
    pending: Codes,
    /// Units of context at the beginning of `pending`.
    before: usize,
    cache: Option<Cache>,
    noise: Noise,
}

impl CodecStream {
    /// A stream of nothing yet.
    pub fn new(codec: Rc<dyn Codec>, noise: Noise) -> Self {
        CodecStream { codec, pending: Codes::default(), before: 0, cache: None, noise }
    }

    /// Takes further codes; returns the samples `[1, samples, channels]` that follow from the codes so
    /// far, if there are any.
    ///
    /// # Errors
    /// As [`Codec::decode`]; [`Error::Option`] for another number of codebooks than before.
    pub fn push(&mut self, codes: &Codes) -> Result<Option<Array>> {
        if self.pending.codebooks.is_empty() {
            self.pending.codebooks = vec![Vec::new(); codes.codebooks.len()];
        }
        if self.pending.codebooks.len() != codes.codebooks.len() {
            return Err(Error::option("codes", "a part has another number of codebooks"));
        }
        for (pending, codes) in self.pending.codebooks.iter_mut().zip(&codes.codebooks) {
            pending.extend(codes);
        }
        self.advance(false)
    }

    /// Returns the samples that are left, if there are any.
    ///
    /// # Errors
    /// As [`CodecStream::push`].
    pub fn finish(&mut self) -> Result<Option<Array>> {
        self.advance(true)
    }

    fn advance(&mut self, is_last: bool) -> Result<Option<Array>> {
        let codec = self.codec.clone();
        let frames = self.pending.codebooks.iter().map(Vec::len).max().unwrap_or(0);
        match codec.streaming() {
            _ if frames == 0 => Ok(None),
            Streaming::Causal(decoder) => {
                if self.cache.is_none() && frames < decoder.first_frames() && !is_last {
                    return Ok(None);
                }
                let cache = self.cache.get_or_insert_with(|| decoder.cache());
                let samples = decoder.decode_next(&self.pending, cache)?;
                self.pending.codebooks.iter_mut().for_each(Vec::clear);
                Ok(Some(samples))
            }
            Streaming::Windowed(windows) => self.window(&windows, is_last),
            Streaming::Whole if is_last => {
                let codes = EncodedAudio::Codes(vec![std::mem::take(&mut self.pending)]);
                codec.decode(&codes, self.noise).map(Some)
            }
            Streaming::Whole => Ok(None),
        }
    }

    /// Decodes what is pending, and keeps what is far enough from the end.
    fn window(&mut self, windows: &Windows, is_last: bool) -> Result<Option<Array>> {
        let Windows { codes, samples, context } = windows;
        let units = |(pending, codes): (&Vec<u32>, &usize)| pending.len() / codes;
        let units = self.pending.codebooks.iter().zip(codes).map(units).min().unwrap_or(0);
        let end = if is_last { units } else { units.saturating_sub(*context) };
        if end <= self.before && !is_last {
            return Ok(None);
        }
        let window: Codes = match is_last {
            true => self.pending.clone(),
            // Only whole units have codes of all codebooks.
            false => Codes { codebooks: self.first(codes, units), scale: None },
        };
        let decoded = self.codec.decode(&EncodedAudio::Codes(vec![window]), self.noise)?;
        let (from, to) = ((self.before * samples) as i32, (end * samples) as i32);
        let to = if is_last { decoded.dim(1) } else { to };
        let left = end.saturating_sub(*context);
        for (pending, codes) in self.pending.codebooks.iter_mut().zip(codes) {
            pending.drain(..if is_last { pending.len() } else { left * codes });
        }
        self.before = end - left;
        if to <= from { Ok(None) } else { Ok(Some(mlx::slice(&decoded, 1, from, to)?)) }
    }

    fn first(&self, codes: &[usize], units: usize) -> Vec<Vec<u32>> {
        let first = |(pending, codes): (&Vec<u32>, &usize)| pending[..units * codes].to_vec();
        self.pending.codebooks.iter().zip(codes).map(first).collect()
    }
}
