//! Cross attention: queries of the decoder, keys and values of an encoder's output, no mask. The keys
//! and values are computed once and kept as a [`Fixed`] state.

use crate::{
    error::{Error, Result},
    layers::{
        algebra::Layer,
        attention::{
            bidirectional::Heads,
            grouped::{join_heads, split_heads},
        },
        cache_plan::CachePlan,
        linear::Linear,
        state::Fixed,
        step::Step,
    },
    mlx,
};
use mlx_rs::{Array, fast::scaled_dot_product_attention, ops};
use std::{cell::RefCell, rc::Rc};

/// The output of an encoder `[batch, positions, width]`, which a pass leaves for its layers.
#[derive(Clone)]
pub struct Encoded(pub Array);

/// What a pass leaves for its layers that only shows the shapes of a cache: no encoder has run, and
/// cross attention adds nothing.
#[derive(Clone)]
pub struct NothingEncoded;

/// Collects the scores of a pass, layer by layer, where a pass leaves this for its layers: the products of
/// queries and keys `[batch, heads, length, positions]` before the softmax.
#[derive(Clone, Default)]
pub struct CrossScores(pub Rc<RefCell<Vec<Array>>>);

/// Attention over the output of an encoder.
pub struct CrossAttention {
    /// Of queries, keys, values and the output.
    projections: [Linear; 4],
    heads: Heads,
}

impl CrossAttention {
    /// Composes the projections of queries, keys, values and the output.
    pub fn new(projections: [Linear; 4], heads: Heads) -> Self {
        CrossAttention { projections, heads }
    }

    /// The keys and values of all heads, `[batch, kv_heads, positions, head_dim]`.
    fn encode(&self, encoded: &Array) -> Result<Vec<Array>> {
        let [_, keys, values, _] = &self.projections;
        let heads =
            |projection: &Linear| split_heads(&projection.forward(encoded)?, self.heads.kv_heads);
        Ok(vec![heads(keys)?, heads(values)?])
    }
}

impl Layer for CrossAttention {
    type State = Fixed;

    fn state(&self, _: &CachePlan) -> Fixed {
        Fixed::default()
    }

    /// A pass that brings the output of an encoder replaces the state.
    fn forward(&self, x: &Array, state: &mut Fixed, step: &Step) -> Result<Array> {
        if let Some(Encoded(encoded)) = step.get::<Encoded>() {
            state.0 = self.encode(&encoded)?;
        }
        let [keys, values] = &state.0[..] else {
            if step.get::<NothingEncoded>().is_some() {
                return Ok(ops::zeros_like(x)?);
            }
            return Err(Error::Internal("cross attention has no output of an encoder".into()));
        };
        let [queries, _, _, output] = &self.projections;
        let q = split_heads(&queries.forward(x)?, self.heads.heads)?;
        if let Some(CrossScores(scores)) = step.get::<CrossScores>() {
            let products = q.matmul(keys.swap_axes(-1, -2)?)?;
            let scale = mlx::scalar(self.heads.scale, products.dtype())?;
            scores.borrow_mut().push(products.multiply(scale)?);
        }
        let y = scaled_dot_product_attention(&q, keys, values, self.heads.scale, None, None)?;
        output.forward(&join_heads(&y)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{
        attention::bidirectional::{BidirectionalAttention, tests::Naive},
        position::rope::Rope,
    };
    use mlx_rs::random;

    #[test]
    fn queries_see_the_whole_output_of_the_encoder_and_nothing_else() {
        random::seed(2).unwrap();
        let naive = Naive::new(Heads { heads: 4, kv_heads: 2, scale: 0.4 });
        let input =
            |length| random::normal::<f32>(&[1, length, Naive::WIDTH], None, None, None).unwrap();
        let (x, encoded) = (input(5), input(7));
        let cross = CrossAttention::new(naive.projections(), naive.heads);
        let mut state = cross.state(&CachePlan::default());
        let step = Step::prefill(0, 5);
        step.put(Encoded(encoded.clone()));
        let whole = cross.forward(&x, &mut state, &step).unwrap();
        naive.check(&whole, &x, &encoded);
        assert_eq!(state.0[0].shape(), [1, 2, 7, Naive::HEAD_DIM]);
        // Later passes take the keys from the state.
        let part = mlx::slice(&x, 1, 3, 5).unwrap();
        let later = cross.forward(&part, &mut state, &Step::prefill(3, 2)).unwrap();
        naive.check(&later, &part, &encoded);
        // Another output takes its place.
        let other = input(3);
        step.put(Encoded(other.clone()));
        naive.check(&cross.forward(&x, &mut state, &step).unwrap(), &x, &other);
    }

    #[test]
    fn without_a_mask_the_past_sees_the_future() {
        random::seed(3).unwrap();
        let naive = Naive::new(Heads { heads: 4, kv_heads: 4, scale: 0.4 });
        let x = random::normal::<f32>(&[1, 6, Naive::WIDTH], None, None, None).unwrap();
        let attention = BidirectionalAttention::new(naive.projections(), naive.heads, Rope::None);
        let y = attention.forward(&x, &mut (), &Step::prefill(0, 6)).unwrap();
        naive.check(&y, &x, &x);
    }
}
