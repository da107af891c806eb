//! A prompt as a model reads it: an embedding for each position, and the facts that its order alone
//! does not tell (rotary positions of several axes, spans without a causal mask, the identity of
//! media).

use crate::{
    error::{Error, Result},
    mlx,
};
use mlx_rs::{Array, Dtype, ops};
use std::ops::Range;

/// Tokens and the residual stream that they start, with what attention needs to know of them.
#[derive(Clone)]
pub struct Embedded {
    /// Token ids `[batch, length]`; placeholders where media stand.
    pub ids: Array,
    /// The stream `[batch, length, width]`.
    pub hidden: Array,
    /// Rotary positions, where they are not the positions of the sequence.
    pub rotary: Option<PromptPositions>,
    /// Positions that see each other both ways, in order and apart from each other.
    pub spans: Vec<Range<usize>>,
    /// How far back they do.
    pub span_reach: SpanReach,
    /// Hidden states `[batch, length, width]` that join the stream after the first layers, one a
    /// layer (DeepStack, [Meng et al. 2024](https://arxiv.org/abs/2406.04334)).
    pub deepstack: Vec<Array>,
    /// The output of an encoder `[batch, positions, width]`, which cross attention reads.
    pub encoded: Option<Array>,
    /// Which positions stand for media, in order.
    pub media: Vec<MediaRange>,
}

/// How far back the positions of a span see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanReach {
    /// In every layer, to the start of the span.
    Whole,
    /// In every layer, but no further than the sliding window where a layer has one.
    Window,
    /// As [`SpanReach::Window`], in layers with a sliding window only.
    WindowedLayers,
}

/// Rotary positions of a prompt.
#[derive(Clone)]
pub struct PromptPositions {
    /// `[axes, 1, length]`.
    pub positions: Array,
    /// What the tokens after the prompt add to their position in the sequence, on every axis.
    pub delta: i32,
}

/// Positions that stand for one picture, clip or sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaRange {
    /// The positions in the prompt.
    pub range: Range<usize>,
    /// A hash of the content.
    pub hash: u64,
}

/// What stands at a position of a prompt: equal keys at equal positions make a reusable prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub u64);

impl Key {
    /// The key of a token.
    pub fn token(id: u32) -> Self {
        Key(u64::from(id))
    }

    /// The key of part `index` of media with this hash. It equals that of no token.
    pub fn media(hash: u64, index: usize) -> Self {
        const MEDIA: u64 = 1 << 63;
        // The finalizer of SplitMix64.
        let mut z = hash.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Key((z ^ (z >> 31)) | MEDIA)
    }
}

impl Embedded {
    /// Tokens of text: `ids` `[batch, length]` and `hidden` `[batch, length, width]`.
    pub fn new(ids: Array, hidden: Array) -> Self {
        Embedded {
            ids,
            hidden,
            rotary: None,
            spans: Vec::new(),
            span_reach: SpanReach::Whole,
            deepstack: Vec::new(),
            encoded: None,
            media: Vec::new(),
        }
    }

    /// The same tokens with another residual stream.
    pub fn with_hidden(&self, hidden: Array) -> Self {
        Embedded { hidden, ..self.clone() }
    }

    /// How many positions it has.
    pub fn length(&self) -> usize {
        self.ids.dim(1) as usize
    }

    /// The ids of the first row.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub fn tokens(&self) -> Result<Vec<u32>> {
        let ids = mlx::slice(&self.ids, 0, 0, 1)?;
        mlx::to_vec(&ids.as_dtype(Dtype::Uint32)?)
    }

    /// The keys of all positions.
    ///
    /// # Errors
    /// [`Error::Mlx`]; [`Error::Internal`] when media stand beyond the end.
    pub fn keys(&self) -> Result<Vec<Key>> {
        let mut keys: Vec<Key> = self.tokens()?.into_iter().map(Key::token).collect();
        for media in &self.media {
            let part = keys.get_mut(media.range.clone());
            let part = part.ok_or_else(|| beyond("media", &media.range, self.length()))?;
            for (index, key) in part.iter_mut().enumerate() {
                *key = Key::media(media.hash, index);
            }
        }
        Ok(keys)
    }

    /// Where a chunk may end that starts at `from`, at best at `to`: the last position that cuts no
    /// span, or the end of the span when a single span is longer.
    pub fn border(&self, from: usize, to: usize) -> usize {
        match self.spans.iter().find(|span| span.start < to && to < span.end) {
            Some(span) if span.start > from => span.start,
            Some(span) => span.end,
            None => to,
        }
    }

    /// The positions from `from` up to `to`.
    ///
    /// # Errors
    /// [`Error::Internal`] when that cuts a span or goes beyond the end; [`Error::Mlx`].
    pub fn slice(&self, from: usize, to: usize) -> Result<Embedded> {
        let range = from..to;
        if from >= to || to > self.length() {
            return Err(beyond("a chunk", &range, self.length()));
        }
        if from == 0 && to == self.length() {
            return Ok(self.clone());
        }
        let is_cut = |span: &Range<usize>| {
            [from, to].into_iter().any(|border| span.start < border && border < span.end)
        };
        if let Some(span) = self.spans.iter().find(|span| is_cut(span)) {
            return Err(Error::Internal(format!("a chunk of {range:?} cuts the span {span:?}")));
        }
        let part = |inner: &Range<usize>| {
            let (start, end) = (inner.start.max(from), inner.end.min(to));
            (start < end).then(|| start - from..end - from)
        };
        let cut = |x: &Array, axis: usize| mlx::slice(x, axis, from as i32, to as i32);
        let rotary = self.rotary.as_ref().map(|rotary| {
            let positions = cut(&rotary.positions, 2)?;
            Ok::<_, Error>(PromptPositions { positions, delta: rotary.delta })
        });
        Ok(Embedded {
            ids: cut(&self.ids, 1)?,
            hidden: cut(&self.hidden, 1)?,
            rotary: rotary.transpose()?,
            spans: self.spans.iter().filter_map(part).collect(),
            span_reach: self.span_reach,
            deepstack: self.deepstack.iter().map(|x| cut(x, 1)).collect::<Result<_>>()?,
            encoded: self.encoded.clone(),
            // A slice has no keys of its own: those of the whole prompt are compared.
            media: Vec::new(),
        })
    }
}

/// Which positions of a pass see each other beside what the causal mask shows:
/// `[length, past + length]`, true where both are in one of `spans`.
pub(crate) fn span_mask(spans: &[Range<usize>], past: i32, length: i32) -> Result<Array> {
    let mut numbers = vec![-1_i32; length as usize];
    for (number, span) in (0..).zip(spans) {
        let part = numbers.get_mut(span.clone());
        part.ok_or_else(|| beyond("a span", span, length as usize))?.fill(number);
    }
    let queries = Array::from_slice(&numbers, &[length, 1]);
    let own = Array::from_slice(&numbers, &[1, length]);
    let before = ops::full::<i32>(&[1, past], Array::from_int(-1))?;
    let keys = ops::concatenate(&[before, own], 1)?;
    let is_inside = queries.ge(Array::from_int(0))?;
    Ok(queries.eq(&keys)?.logical_and(is_inside)?)
}

fn beyond(what: &str, range: &Range<usize>, length: usize) -> Error {
    Error::Internal(format!("{what} at {range:?} of a prompt of {length} positions"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(length: i32, spans: &[Range<usize>]) -> Embedded {
        let ids = ops::arange::<_, u32>(0, length, None).unwrap().reshape(&[1, length]).unwrap();
        let hidden = ids.as_dtype(Dtype::Float32).unwrap().reshape(&[1, length, 1]).unwrap();
        let positions = ops::stack(&[&ids, &ids, &ids], 0).unwrap();
        Embedded {
            rotary: Some(PromptPositions { positions, delta: -3 }),
            spans: spans.to_vec(),
            deepstack: vec![hidden.clone()],
            media: vec![MediaRange { range: 2..5, hash: 7 }],
            ..Embedded::new(ids, hidden)
        }
    }

    #[test]
    fn borders_and_slices_leave_spans_whole() {
        let prompt = prompt(12, &[2..5, 7..11]);
        for (from, to, border) in
            [(0, 2, 2), (0, 3, 2), (2, 3, 5), (0, 5, 5), (5, 8, 7), (7, 8, 11), (0, 12, 12)]
        {
            assert_eq!(prompt.border(from, to), border, "{from} {to}");
        }
        let slice = prompt.slice(5, 11).unwrap();
        assert_eq!(slice.spans, vec![2..6; 1]);
        assert_eq!(slice.tokens().unwrap(), [5, 6, 7, 8, 9, 10]);
        let rotary = slice.rotary.unwrap();
        assert_eq!((rotary.positions.shape(), rotary.delta), (&[3, 1, 6][..], -3));
        assert_eq!(slice.deepstack[0].shape(), [1, 6, 1]);
        for (from, to) in [(0, 3), (3, 5), (4, 12), (0, 13), (5, 5)] {
            assert!(matches!(prompt.slice(from, to), Err(Error::Internal(_))), "{from} {to}");
        }
    }

    #[test]
    fn keys_tell_media_from_each_other_and_from_tokens() {
        let keys = |hash| {
            let mut prompt = prompt(8, &[]);
            prompt.media[0].hash = hash;
            prompt.keys().unwrap()
        };
        let (one, other) = (keys(1), keys(2));
        for position in 0..8 {
            let is_media = (2..5).contains(&position);
            assert_eq!(one[position] != other[position], is_media, "{position}");
            assert_eq!(one[position] == Key::token(position as u32), !is_media, "{position}");
        }
        assert!(one[2] != one[3] && one[3] != one[4]);
        assert_eq!(one, keys(1));
        let mut beyond = prompt(8, &[]);
        beyond.media[0].range = 6..9;
        assert!(matches!(beyond.keys(), Err(Error::Internal(_))));
    }

    #[test]
    fn a_span_mask_joins_both_directions_and_nothing_else() {
        let mask = span_mask(&[1..3, 4..5], 2, 5).unwrap();
        assert_eq!(mask.shape(), [5, 7]);
        let mask: Vec<bool> = mlx::to_vec(&mask).unwrap();
        for query in 0..5 {
            for key in 0..7 {
                let joined = |span: Range<i32>| span.contains(&query) && span.contains(&(key - 2));
                let expected = joined(1..3) || joined(4..5);
                assert_eq!(mask[(query * 7 + key) as usize], expected, "{query} {key}");
            }
        }
    }
}
