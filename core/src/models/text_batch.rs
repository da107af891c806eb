//! Texts as models of embeddings read them: rows of token ids, padded on the right to one length.

use crate::{error::Result, layers::step::Step};
use mlx_rs::{Array, ops};

/// The tokens of one text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Their ids.
    pub ids: Vec<u32>,
    /// For each token the number of its sequence: 1 for those of the second text of a pair. Empty for
    /// zeros.
    pub types: Vec<u32>,
    /// How many tokens at the start are a prompt that pooling may leave out.
    pub prompt: usize,
}

/// Some texts, to be computed at once.
pub struct TextBatch {
    /// Token ids `[batch, length]`, with zeros after the last token of a row.
    pub ids: Array,
    /// The numbers of the tokens' sequences, `[batch, length]`.
    pub types: Array,
    /// How many tokens each row has.
    lengths: Vec<i32>,
    /// How many tokens at the start of each row are a prompt.
    prompts: Vec<i32>,
    length: i32,
}

impl TextBatch {
    /// Pads texts to the length of the longest one.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::Error::Mlx).
    pub fn new(texts: &[&Tokens]) -> Result<Self> {
        let length = texts.iter().map(|text| text.ids.len()).max().unwrap_or(0);
        let padded = |row: fn(&Tokens) -> &[u32]| {
            let rows = texts.iter().flat_map(|text| {
                let row = row(text);
                row.iter().copied().chain(std::iter::repeat_n(0, length - row.len()))
            });
            let rows: Vec<u32> = rows.collect();
            Array::from_slice(&rows, &[texts.len() as i32, length as i32])
        };
        Ok(TextBatch {
            ids: padded(|text| &text.ids),
            types: padded(|text| &text.types),
            lengths: texts.iter().map(|text| text.ids.len() as i32).collect(),
            prompts: texts.iter().map(|text| text.prompt as i32).collect(),
            length: length as i32,
        })
    }

    /// How many tokens the longest row has.
    pub fn length(&self) -> i32 {
        self.length
    }

    /// True for the tokens of each row, `[batch, length]`; those of prompts only `with_prompts`.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::Error::Mlx).
    pub fn tokens(&self, with_prompts: bool) -> Result<Array> {
        let places = ops::arange::<_, i32>(0, self.length, None)?;
        let ends = self.column(&self.lengths)?;
        let tokens = places.lt(&ends)?;
        if with_prompts {
            return Ok(tokens);
        }
        Ok(tokens.logical_and(places.ge(self.column(&self.prompts)?)?)?)
    }

    /// The place of the last token of each row, `[batch, 1]`.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::Error::Mlx).
    pub fn last(&self) -> Result<Array> {
        Ok(self.column(&self.lengths)?.subtract(Array::from_int(1))?)
    }

    /// The place of the last token of each row that is not this one, `[batch, 1]`; 0 where there is none.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::Error::Mlx).
    pub fn last_other_than(&self, token: i32) -> Result<Array> {
        let others = self.tokens(true)?.logical_and(self.ids.ne(Array::from_int(token))?)?;
        let places = ops::arange::<_, i32>(0, self.length, None)?;
        Ok(ops::select(&others, &places, Array::from_int(0))?.max_axis(1, true)?)
    }

    /// A pass in which every token sees all tokens of its row that are at most `reach` places away.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::Error::Mlx).
    pub fn bidirectional(&self, reach: Option<i32>) -> Result<Step> {
        let is_padded = self.lengths.iter().any(|length| *length < self.length);
        let tokens = self.tokens(true)?.expand_dims_axes(&[1, 2])?;
        let mut step = Step::prefill(0, self.length);
        let Some(reach) = reach.filter(|reach| *reach < self.length - 1) else {
            step.visible = is_padded.then_some(tokens);
            return Ok(step);
        };
        let places = ops::arange::<_, i32>(0, self.length, None)?;
        let distance = places.expand_dims(1)?.subtract(places.expand_dims(0)?)?.abs()?;
        let near = distance.le(Array::from_int(reach))?.expand_dims_axes(&[0, 1])?;
        // A token of the padding that saw no key would become NaN, and so would all that see it.
        let itself = distance.eq(Array::from_int(0))?;
        let near = if is_padded { near.logical_and(&tokens)?.logical_or(itself)? } else { near };
        step.visible = Some(near);
        Ok(step)
    }

    /// A number of each row, `[batch, 1]`.
    fn column(&self, numbers: &[i32]) -> Result<Array> {
        Ok(Array::from_slice(numbers, &[numbers.len() as i32, 1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx;

    #[test]
    fn a_row_sees_its_own_tokens_within_its_reach() {
        let text = |length| Tokens { ids: vec![5; length], prompt: 1, ..Tokens::default() };
        let batch = TextBatch::new(&[&text(4), &text(2)]).unwrap();
        let shown = |x: Array| mlx::to_vec::<bool>(&x).unwrap();
        assert_eq!(shown(batch.tokens(true).unwrap())[4..], [true, true, false, false]);
        assert_eq!(shown(batch.tokens(false).unwrap())[..5], [false, true, true, true, false]);
        assert_eq!(mlx::to_vec::<i32>(&batch.last().unwrap()).unwrap(), [3, 1]);
        let other = batch.last_other_than(5).unwrap();
        assert_eq!(mlx::to_vec::<i32>(&other).unwrap(), [0, 0]);
        let other = batch.last_other_than(6).unwrap();
        assert_eq!(mlx::to_vec::<i32>(&other).unwrap(), [3, 1]);
        let visible = batch.bidirectional(None).unwrap().visible.unwrap();
        assert_eq!(visible.shape(), [2, 1, 1, 4]);
        let visible = shown(batch.bidirectional(Some(1)).unwrap().visible.unwrap());
        assert_eq!(visible[..4], [true, true, false, false]);
        assert_eq!(visible[16..24], [true, true, false, false, true, true, false, false]);
        assert_eq!(visible[24..], [false, true, true, false, false, false, false, true]);
        let whole = TextBatch::new(&[&text(4)]).unwrap();
        assert!(whole.bidirectional(Some(3)).unwrap().visible.is_none());
    }
}
