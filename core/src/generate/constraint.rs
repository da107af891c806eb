//! Which tokens may come next: rules that depend on the tokens generated so far, as the grammar of
//! a structured output does.

use crate::{answer::Phase, error::Result, mlx};
use mlx_rs::{Array, ops};

/// Restricts the tokens of one generation. The engine thread owns it.
///
/// For every token the engine thread first queues the logits of the next position, then reads the
/// token, and then calls [`Constraint::accept`] and [`Constraint::mask`]: the device computes the
/// logits while the host computes their mask.
pub trait Constraint: Send {
    /// Which tokens may come next.
    ///
    /// # Errors
    /// Any error; it ends the generation.
    fn mask(&mut self) -> Result<Allowed>;

    /// Advances by the token that was sampled; the next token stands in this phase of the answer. If
    /// the token began the phase, `begun` is what its text has of it already. A token that ends the
    /// text is not passed on.
    ///
    /// # Errors
    /// Any error; it ends the generation.
    fn accept(&mut self, id: u32, phase: Phase, begun: &str) -> Result<()>;
}

/// The answer of a [`Constraint`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Every token.
    All,
    /// The tokens of a mask.
    Tokens(TokenMask),
    /// No further token: the text is complete.
    End,
}

/// A set of tokens as a bitmask over the vocabulary: token `id` is bit `id % 32`, counted from the
/// lowest, of the integer `id / 32`. llguidance and XGrammar lay out their masks alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask {
    bits: Vec<u32>,
}

impl TokenMask {
    /// A mask in its packed form.
    pub fn from_bits(bits: Vec<u32>) -> Self {
        TokenMask { bits }
    }

    /// All tokens of a vocabulary of this size.
    pub(super) fn all(vocabulary: u32) -> Self {
        let mut bits = vec![u32::MAX; vocabulary as usize / 32];
        bits.extend((!vocabulary.is_multiple_of(32)).then(|| (1 << (vocabulary % 32)) - 1));
        TokenMask { bits }
    }

    /// Adds a token.
    pub(super) fn insert(&mut self, id: u32) {
        let index = id as usize / 32;
        if index >= self.bits.len() {
            self.bits.resize(index + 1, 0);
        }
        self.bits[index] |= 1 << (id % 32);
    }

    /// Takes a token out.
    pub(super) fn remove(&mut self, id: u32) {
        if let Some(bits) = self.bits.get_mut(id as usize / 32) {
            *bits &= !(1 << (id % 32));
        }
    }

    /// Whether the mask holds a token.
    pub fn contains(&self, id: u32) -> bool {
        self.bits.get(id as usize / 32).is_some_and(|bits| bits >> (id % 32) & 1 == 1)
    }

    /// The tokens of the mask in ascending order.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.bits).filter(|(_, bits)| **bits != 0).flat_map(|(index, bits)| {
            (0..32).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| 32 * index + bit)
        })
    }

    /// Logits `[1, vocabulary]` with those of all other tokens at minus infinity.
    pub(super) fn apply(&self, logits: &Array) -> Result<Array> {
        let vocabulary = logits.dim(-1);
        let count = (vocabulary as usize).div_ceil(32);
        let mut bits = self.bits.clone();
        bits.resize(count, 0);
        let bits = Array::from_slice(&bits, &[count as i32, 1]);
        let places = ops::arange::<_, u32>(0, 32, None)?;
        let bits = mlx::bits(&bits, &places, &Array::from_slice(&[1_u32], &[]))?;
        let allowed = mlx::slice(&bits.reshape(&[1, -1])?, 1, 0, vocabulary)?;
        let allowed = allowed.eq(Array::from_slice(&[1_u32], &[]))?;
        Ok(ops::select(allowed, logits, Array::from_f32(f32::NEG_INFINITY))?)
    }
}

impl FromIterator<u32> for TokenMask {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let mut mask = TokenMask::default();
        ids.into_iter().for_each(|id| mask.insert(id));
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_leaves_the_logits_of_its_tokens_and_no_others() {
        for (vocabulary, ids) in
            [(70, &[0, 31, 32, 63, 64, 69][..]), (70, &[5]), (32, &[31]), (3, &[])]
        {
            let mask: TokenMask = ids.iter().copied().collect();
            assert_eq!(mask.ids().collect::<Vec<_>>(), ids);
            let logits: Vec<f32> = (0..vocabulary).map(|id| id as f32 - 9.0).collect();
            let masked = mask.apply(&Array::from_slice(&logits, &[1, vocabulary])).unwrap();
            let masked: Vec<f32> = mlx::to_vec(&masked).unwrap();
            assert_eq!(masked.len(), logits.len());
            for (id, (found, logit)) in (0..).zip(masked.iter().zip(&logits)) {
                let expected = if ids.contains(&id) { *logit } else { f32::NEG_INFINITY };
                assert_eq!(*found, expected, "token {id} of {ids:?}");
                assert_eq!(mask.contains(id), ids.contains(&id));
            }
        }
    }
}
