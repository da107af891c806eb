//! Attention over a sliding window and, beyond it, over groups of tokens. Each group is pooled into
//! one latent that serves as key and value, for the layer that pools it and for later layers. An
//! open group has an entry too, which the mask hides. Follows `deepseek_v41` of mlx-lm.

use crate::layers::{
    attention::{ring_buffer::write_rows, scores::Scores, view::AttentionView},
    linear::Linear,
    norm::Norm,
};
use crate::{
    error::Result,
    layers::{state::Recurrent, step::Step},
    mlx,
};
use mlx_rs::{Array, Dtype, fast, ops, ops::indexing::take_along_axis};

/// Pools the tokens of a group by a softmax over its tokens, with separate weights for each
/// element.
pub struct Compressor {
    latent: Linear,
    /// `None` for groups of one token.
    gate: Option<Linear>,
    norm: Norm,
    size: i32,
}

impl Compressor {
    /// Composes the pooling from the projections to latents and to the logits of their weights, the
    /// norm of the pooled latent, and the group size.
    pub fn new(latent: Linear, gate: Option<Linear>, norm: Norm, size: i32) -> Self {
        Compressor { latent, gate, norm, size }
    }

    /// Maps tokens `[batch, length, width]` to the latents `[batch, 1, groups, dims]` of the groups
    /// of [`Step::grouped`]. `open` is the state `[batch, 2, size, dims]` of the last group.
    pub(crate) fn forward(&self, x: &Array, open: &mut Recurrent, step: &Step) -> Result<Array> {
        let Some(gate) = &self.gate else {
            return Ok(self.norm.forward(&self.latent.forward(x)?)?.expand_dims(1)?);
        };
        let wide = x.as_dtype(Dtype::Float32)?;
        let new = ops::stack(&[self.latent.forward(&wide)?, gate.forward(&wide)?], 1)?;
        let rows = self.rows(new, open.take(), step)?;
        let length = rows.dim(2);
        let last = mlx::slice(&rows, 2, length - self.size, length)?;
        // A slice keeps all of a long pass in memory.
        open.set(if length > self.size { last.contiguous()? } else { last });
        let groups = ops::unflatten(rows, 2, &[-1, self.size])?;
        let part = |i| mlx::slice(&groups, 1, i, i + 1);
        let weights = ops::softmax_axis(part(1)?, 3, None)?;
        let pooled = part(0)?.multiply(weights)?.sum_axis(3, false)?;
        self.norm.forward(&pooled.as_dtype(x.dtype())?)
    }

    /// Pads the pass to whole groups `[batch, 2, groups · size, dims]`. Rows of tokens still to
    /// come have arbitrary values.
    fn rows(&self, new: Array, open: Option<Array>, step: &Step) -> Result<Array> {
        let rows = |count| ops::zeros_dtype(&[new.dim(0), 2, count, new.dim(3)], new.dtype());
        let open = open.map_or_else(|| rows(self.size), Ok)?;
        let Some(offset) = step.offset else {
            let place = step.position.remainder(Array::from_int(self.size))?;
            return write_rows(&open, &new, &place);
        };
        let before = offset % self.size;
        let missing = (self.size - (before + step.length) % self.size) % self.size;
        let mut parts = Vec::new();
        if before > 0 {
            parts.push(mlx::slice(&open, 2, 0, before)?);
        }
        parts.push(new.clone());
        if missing > 0 {
            parts.push(rows(missing)?);
        }
        Ok(ops::concatenate(&parts, 2)?)
    }
}

/// The entries of groups of `size` tokens, which one layer pools and others attend over.
pub struct Groups {
    seen: AttentionView,
    size: i32,
}

impl Groups {
    /// The entries lent by `layer`, which are stored in
    /// [`KvCache::strided`](super::kv::KvCache::strided).
    pub fn lent(layer: i32, size: i32, step: &Step) -> Result<Self> {
        Ok(Groups { seen: step.lent(layer)?, size })
    }

    /// The latents, `[batch, 1, groups, dims]`.
    pub fn latents(&self) -> &Array {
        &self.seen.entries[0]
    }

    /// The keys that an indexer scores, if the layer computed them.
    pub fn index_keys(&self) -> &Array {
        &self.seen.entries[1]
    }

    /// Which groups each token sees: those that end at or before it. And which of them is the last.
    /// Both `[length, groups]`, or `[batch, length, groups]` where each row has its own position.
    pub fn closed(&self, step: &Step) -> Result<(Array, Array)> {
        let (grouped, size) = (step.grouped(self.size)?, Array::from_int(self.size));
        let groups = self.seen.positions(&grouped)?.expand_dims(-2)?;
        let tokens = step.positions()?.expand_dims(-1)?;
        let next = tokens.add(Array::from_int(1))?.floor_divide(&size)?;
        let mut closed = groups.lt(&next)?;
        if let Some(ring) = self.seen.ring {
            let first = tokens.floor_divide(&size)?.subtract(Array::from_int(ring.turning()))?;
            let kept = groups.lt(Array::from_int(ring.keep))?;
            closed = closed.logical_and(groups.gt(first)?.logical_or(kept)?)?;
            if self.seen.past.is_none() {
                let filled = self.seen.mask(&grouped)?;
                let filled = if filled.ndim() == 4 { filled.squeeze_axes(&[1])? } else { filled };
                closed = closed.logical_and(filled)?;
            }
        }
        let last = groups.eq(next.subtract(Array::from_int(1))?)?.logical_and(&closed)?;
        Ok((closed, last))
    }
}

/// The groups that tokens attend to beside their window, `[batch, length, k]` of them, or all.
pub struct Far<'a> {
    /// All groups.
    pub groups: &'a Groups,
    /// The ids of those that each token attends to.
    pub choice: Option<Array>,
}

/// Attends with queries `[batch, heads, length, dims]` to a window, of which the keys are the values,
/// and to those groups that are closed and chosen. In single precision.
pub fn attend(
    q: &Array,
    window: &AttentionView,
    far: Option<Far>,
    scores: &Scores,
    step: &Step,
) -> Result<Array> {
    let weigh = |q: &Array, keys: &Array, mask: &Array| -> Result<Array> {
        let (wide, keys) = (q.as_dtype(Dtype::Float32)?, &keys.as_dtype(Dtype::Float32)?);
        let mask = fast::ScaledDotProductAttentionMask::Array(mask);
        let (scale, sinks) = (scores.scale, scores.sinks.as_ref());
        let y = fast::scaled_dot_product_attention(wide, keys, keys, scale, Some(mask), sinks)?;
        Ok(y.as_dtype(q.dtype())?)
    };
    let near = &window.entries[0];
    let Some(Far { groups, choice }) = far else { return weigh(q, near, &window.mask(step)?) };
    let (far, (closed, _)) = (groups.latents(), groups.closed(step)?);
    let (batch, heads, length, dims) = (q.dim(0), q.dim(1), q.dim(2), q.dim(3));
    let Some(choice) = choice else {
        let (mask, closed) = match window.mask(step)? {
            mask if mask.ndim() == 4 => (mask, closed.expand_dims(1)?),
            mask => (ops::broadcast_to(mask, &[length, near.dim(2)])?, closed),
        };
        let mask = ops::concatenate(&[mask, closed], -1)?;
        return weigh(q, &ops::concatenate(&[near, far], 2)?, &mask);
    };
    // Each query has its own keys, so each query is treated as a sequence of its own.
    let (places, there) = window.places(step)?;
    let all = |x: &Array| ops::broadcast_to(x, &[batch, length, x.dim(-1)]);
    let keys = ops::concatenate(&[gather(near, &all(&places)?)?, gather(far, &choice)?], 2)?;
    let mask = [all(&there)?, take_along_axis(all(&closed)?, &choice, -1)?];
    let mask = ops::concatenate(&mask, -1)?.reshape(&[batch * length, 1, 1, -1])?;
    let alone = q.swap_axes(1, 2)?.reshape(&[batch * length, heads, 1, dims])?;
    let y = weigh(&alone, &keys, &mask)?;
    Ok(y.reshape(&[batch, length, heads, dims])?.swap_axes(1, 2)?)
}

/// Gathers keys `[batch, 1, keys, dims]` at indices `[batch, length, k]` to `[batch · length, 1, k,
/// dims]`.
fn gather(keys: &Array, places: &Array) -> Result<Array> {
    let (batch, count, dims) = (keys.dim(0), keys.dim(2), keys.dim(3));
    let (length, chosen) = (places.dim(1), places.dim(2));
    let first = ops::arange::<_, i32>(0, batch, None)?.multiply(Array::from_int(count))?;
    let places = places.add(first.reshape(&[batch, 1, 1])?)?.flatten(None, None)?;
    let rows = keys.reshape(&[batch * count, dims])?.take_axis(places, 0)?;
    Ok(rows.reshape(&[batch * length, 1, chosen, dims])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layers::{
            attention::kv_cache::KvCache,
            cache_plan::{Bound, CachePlan},
        },
        mlx::matrix::Matrix,
    };

    const LENGTH: i32 = 50;

    /// Entries that hold their group index are visible to a token exactly as the definition says.
    fn check(size: i32, bound: Option<(i32, i32)>, pieces: &[i32]) {
        let mut plan = CachePlan::new(LENGTH as usize);
        plan.bound = bound.map(|(slots, keep)| Bound::new(slots as usize, keep as usize).unwrap());
        let mut kv = KvCache::strided(size, &plan);
        let (turning, keep) = bound.map_or((LENGTH, 0), |(positions, keep)| {
            let slots = (positions / size).max(1);
            let keep = (keep / size).min(slots - 1);
            (slots - keep, keep)
        });
        let singles = std::iter::repeat(&1);
        let mut at = 0;
        for &length in pieces.iter().chain(singles) {
            if at + length > LENGTH {
                break;
            }
            let step = match (at, length) {
                (1.., 1) => Step::decode(Array::from_slice(&[at], &[1])),
                _ => Step::prefill(at, length),
            };
            let grouped = step.grouped(size).unwrap();
            let ids = grouped.positions().unwrap();
            let ids = ids.as_dtype(Dtype::Float32).unwrap().reshape(&[1, 1, -1, 1]).unwrap();
            let groups = Groups { seen: kv.update_keys(ids, &grouped).unwrap(), size };
            let (closed, last) = groups.closed(&step).unwrap();
            let ids: Vec<f32> = mlx::to_vec(groups.latents()).unwrap();
            let [closed, last]: [Vec<bool>; 2] = [closed, last].map(|x| mlx::to_vec(&x).unwrap());
            for query in 0..length {
                let (own, row) = ((at + query) / size, query as usize * ids.len());
                let seen = |mask: &[bool]| -> Vec<i32> {
                    let pairs = ids.iter().zip(&mask[row..row + ids.len()]);
                    let mut seen: Vec<_> = pairs.filter(|p| *p.1).map(|p| *p.0 as i32).collect();
                    seen.sort();
                    seen
                };
                let next = (at + query + 1) / size;
                let expected: Vec<i32> =
                    (0..next).filter(|g| *g > own - turning || *g < keep).collect();
                let what = format!("{size}, {bound:?}, {pieces:?}, at {}", at + query);
                assert_eq!(seen(&closed), expected, "{what}");
                let newest = expected.last().filter(|g| **g == next - 1);
                assert_eq!(seen(&last), newest.into_iter().copied().collect::<Vec<_>>(), "{what}");
            }
            at += length;
        }
        assert_eq!(at, LENGTH);
    }

    #[test]
    fn a_token_sees_the_groups_that_end_before_it() {
        for size in [1, 2, 5, 40, 60] {
            for bound in [None, Some((12, 4)), Some((20, 0)), Some((3, 2))] {
                for pieces in [&[1][..], &[7, 1, 1, 6], &[20, 3, 1], &[50], &[2, 12, 5, 1, 9]] {
                    check(size, bound, pieces);
                }
            }
        }
    }

    /// The latents of whole groups do not depend on how the prompt is split into passes.
    #[test]
    fn a_group_is_pooled_when_it_is_whole() {
        const WIDTH: i32 = 6;
        const SIZE: i32 = 4;
        mlx_rs::random::seed(5).unwrap();
        let random =
            |shape: &[i32]| mlx_rs::random::normal::<f32>(shape, None, None, None).unwrap();
        let weights = [random(&[WIDTH, WIDTH]), random(&[WIDTH, WIDTH])];
        let x = random(&[2, 19, WIDTH]);
        let [latent, gate] = weights.clone().map(|w| Linear::new(Matrix::Dense(w), None));
        let norm = Norm::Rms { weight: None, eps: 0.1 };
        let compressor = Compressor::new(latent, Some(gate), norm, SIZE);
        let values = |x: &Array| -> Vec<f32> { mlx::to_vec(x).unwrap() };
        let [k, g] = weights.map(|w| values(&x.matmul(w.t()).unwrap()));
        for pieces in [&[19][..], &[1; 19], &[3, 1, 1, 9, 5], &[4, 4, 1, 10]] {
            let (mut at, mut open) = (0, Recurrent::default());
            for &length in pieces {
                let step = match (at, length) {
                    (1.., 1) => Step::decode(Array::from_slice(&[at], &[1])),
                    _ => Step::prefill(at, length),
                };
                let piece = mlx::slice(&x, 1, at, at + length).unwrap();
                let found = compressor.forward(&piece, &mut open, &step).unwrap();
                let count = (at + length - 1) / SIZE - at / SIZE + 1;
                assert_eq!(found.shape(), [2, 1, count, WIDTH]);
                let found = values(&found);
                for (batch, group) in (0..2).flat_map(|b| (0..count).map(move |g| (b, g))) {
                    let first = (at / SIZE + group) * SIZE;
                    if first + SIZE > at + length {
                        continue;
                    }
                    let entry = |a: &[f32], i: i32, d: i32| {
                        a[((batch * 19 + first + i) * WIDTH + d) as usize]
                    };
                    let pooled = |d| {
                        let weight = |i| entry(&g, i, d).exp();
                        let sum: f32 = (0..SIZE).map(weight).sum();
                        (0..SIZE).map(|i| entry(&k, i, d) * weight(i)).sum::<f32>() / sum
                    };
                    let pooled: Vec<f32> = (0..WIDTH).map(pooled).collect();
                    let square = pooled.iter().map(|x| x * x).sum::<f32>() / WIDTH as f32;
                    for (d, pooled) in pooled.iter().enumerate() {
                        let expected = pooled / (square + 0.1).sqrt();
                        let found = found[((batch * count + group) * WIDTH) as usize + d];
                        assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
                    }
                }
                at += length;
            }
        }
    }

    /// Gathering the keys of each query and masking all keys give the same result.
    #[test]
    fn all_groups_may_be_chosen_one_by_one() {
        const SIZE: i32 = 3;
        mlx_rs::random::seed(7).unwrap();
        let random = |heads: i32, length: i32| {
            mlx_rs::random::normal::<f32>(&[2, heads, length, 8], None, None, None).unwrap()
        };
        let scores =
            Scores { scale: 0.5, sinks: Some(Array::from_slice(&[0.5f32, -0.5, 0.0], &[3])) };
        for bound in [None, Some((12, 4)), Some((5, 2)), Some((5, 0))] {
            let mut plan = CachePlan::new(LENGTH as usize);
            plan.bound = bound.map(|(slots, keep)| Bound::new(slots, keep).unwrap());
            let (mut window, mut entries) =
                (KvCache::new(Some(8), &plan), KvCache::strided(SIZE, &plan));
            let mut at = 0;
            for length in [2, 1, 3, 1, 1, 9, 1, 4, 20, 1] {
                let step = match (at, length) {
                    (1.., 1) => Step::decode(Array::from_slice(&[at], &[1])),
                    _ => Step::prefill(at, length),
                };
                let grouped = step.grouped(SIZE).unwrap();
                let seen = window.update_keys(random(1, length), &step).unwrap();
                let made = entries.update_keys(random(1, grouped.length), &grouped).unwrap();
                let (groups, q) = (Groups { seen: made, size: SIZE }, random(3, length));
                let count = groups.latents().dim(2);
                let ids = ops::arange::<_, i32>(0, count, None).unwrap();
                let ids = ops::broadcast_to(&ids, &[2, length, count]).unwrap();
                let [masked, gathered]: [Vec<f32>; 2] = [None, Some(ids)].map(|choice| {
                    let y =
                        attend(&q, &seen, Some(Far { groups: &groups, choice }), &scores, &step)
                            .unwrap();
                    mlx::to_vec(&y).unwrap()
                });
                let distance = masked.iter().zip(&gathered).map(|(a, b)| (a - b).abs());
                let distance = distance.fold(0.0, f32::max);
                assert!(distance < 1e-5, "{distance} with {bound:?} at {at}");
                at += length;
            }
        }
    }
}
