//! The keys and values that one attention layer remembers.
//!
//! Both are buffers of fixed size: positions in order, or a ring of `window` slots in which
//! position `p` has slot `p mod window`. What is filled follows from the position alone. Whoever
//! runs a step has reserved room for it.

use crate::{
    error::Result,
    layer::{CachePlan, State, Step},
    mlx,
};
use mlx_rs::{
    Array,
    fast::{ScaledDotProductAttentionMask as Mask, scaled_dot_product_attention},
    ops,
};

/// How attention weighs the keys.
#[derive(Clone)]
pub struct Scores {
    /// Factor of the products of queries and keys.
    pub scale: f32,
    /// Logits, one a head, that take part in the softmax and weigh no value.
    pub sinks: Option<Array>,
}

/// Keys and values `[batch, heads, capacity, head_dim]` of the past.
#[derive(Clone)]
pub struct Kv {
    buffers: Option<(Array, Array)>,
    window: Option<i32>,
    capacity: i32,
}

impl Kv {
    /// An empty memory; `window` is how far attention looks back, the token itself included.
    pub fn new(window: Option<i32>, plan: &CachePlan) -> Self {
        Kv { buffers: None, window, capacity: plan.capacity }
    }

    /// Remembers `k` and `v` and attends over everything in sight. All are
    /// `[batch, heads, length, head_dim]`, and so is the result.
    pub fn attend(
        &mut self,
        q: &Array,
        k: Array,
        v: Array,
        scores: &Scores,
        step: &Step,
    ) -> Result<Array> {
        self.update(k, v, step)?.attend(q, scores, step)
    }

    /// Remembers `k` and `v`; returns what queries of this step may see, for layers that share it.
    pub fn update(&mut self, k: Array, v: Array, step: &Step) -> Result<Seen> {
        match step.offset {
            Some(offset) => self.extend(k, v, offset, step.length),
            None => self.put(k, v, step),
        }
    }

    /// One token, at a position that the device knows.
    fn put(&mut self, k: Array, v: Array, step: &Step) -> Result<Seen> {
        let (keys, values) = self.buffers.take().expect("a prompt comes before the first token");
        let slot = step.slot(self.window)?;
        let keys = mlx::slice_update_at(&keys, &k, 2, &slot)?;
        let values = mlx::slice_update_at(&values, &v, 2, &slot)?;
        self.buffers = Some((keys.clone(), values.clone()));
        Ok(Seen { keys, values, window: self.window, past: None })
    }

    /// `length` tokens from position `offset` on.
    fn extend(&mut self, k: Array, v: Array, offset: i32, length: i32) -> Result<Seen> {
        let end = offset + length;
        let (keys, values) = match self.window {
            None => {
                let (keys, values) = match self.buffers.take() {
                    Some(buffers) => buffers,
                    None => self.empty(&k, &v)?,
                };
                let keys = mlx::slice_update(&keys, &k, 2, offset)?;
                let values = mlx::slice_update(&values, &v, 2, offset)?;
                self.buffers = Some((keys.clone(), values.clone()));
                if offset == 0 {
                    (k, v)
                } else {
                    (mlx::slice(&keys, 2, 0, end)?, mlx::slice(&values, 2, 0, end)?)
                }
            }
            Some(window) => {
                let joined = match &self.buffers {
                    Some((keys, values)) if offset > 0 => {
                        let past = |ring| recent(ring, offset, window);
                        (
                            ops::concatenate(&[past(keys)?, k], 2)?,
                            ops::concatenate(&[past(values)?, v], 2)?,
                        )
                    }
                    _ => (k, v),
                };
                let (keys, values) = match self.buffers.take() {
                    Some(buffers) => buffers,
                    None => self.empty(&joined.0, &joined.1)?,
                };
                let put = |ring, new| fill(ring, new, end, window);
                self.buffers = Some((put(&keys, &joined.0)?, put(&values, &joined.1)?));
                joined
            }
        };
        let past = Some(keys.dim(2) - length);
        Ok(Seen { keys, values, window: self.window, past })
    }

    /// Empty buffers; `k` and `v` tell their shape and precision.
    fn empty(&self, k: &Array, v: &Array) -> Result<(Array, Array)> {
        Ok((sized(k, self.slots())?, sized(v, self.slots())?))
    }

    fn slots(&self) -> i32 {
        self.window.map_or(self.capacity, |window| window.min(self.capacity))
    }
}

/// Zeros in the shape and precision of `like`, with `length` positions.
fn sized(like: &Array, length: i32) -> Result<Array> {
    Ok(ops::zeros_dtype(&[like.dim(0), like.dim(1), length, like.dim(3)], like.dtype())?)
}

impl State for Kv {
    fn arrays(&mut self) -> Vec<&mut Array> {
        self.buffers.iter_mut().flat_map(|(keys, values)| [keys, values]).collect()
    }
    fn reserve(&mut self, positions: i32) -> Result<()> {
        self.capacity = self.capacity.max(positions);
        let slots = self.slots();
        for buffer in self.arrays() {
            let room = slots - buffer.dim(2);
            if room > 0 {
                *buffer = ops::concatenate(&[&*buffer, &sized(buffer, room)?], 2)?;
            }
        }
        Ok(())
    }
    fn rewinds(&self, from: i32, _: i32) -> bool {
        // A ring that has wrapped has lost what came before.
        self.window.is_none_or(|window| from <= window)
    }
    fn snapshot(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}

/// Keys and values that the queries of one step may see.
#[derive(Clone)]
pub struct Seen {
    keys: Array,
    values: Array,
    window: Option<i32>,
    /// How many keys come before the step's own; the keys are whole buffers where the host does
    /// not know.
    past: Option<i32>,
}

impl Seen {
    /// Attends with queries `[batch, heads, length, head_dim]`.
    pub fn attend(&self, q: &Array, scores: &Scores, step: &Step) -> Result<Array> {
        let mask = match (self.past, self.window) {
            (None, _) => Some(step.filled_mask(self.keys.dim(2))?),
            (Some(past), Some(window)) if past + step.length > window => {
                Some(step.window_mask(past, window)?)
            }
            _ => None,
        };
        let mask = match &mask {
            Some(mask) => Some(Mask::Array(mask)),
            None if step.length > 1 => Some(Mask::Causal),
            None => None,
        };
        let Scores { scale, sinks } = scores;
        let (keys, values) = (&self.keys, &self.values);
        Ok(scaled_dot_product_attention(q, keys, values, *scale, mask, sinks.as_ref())?)
    }

    /// Keys, values, and which keys each query sees, for attention that no kernel computes.
    pub fn parts(&self, step: &Step) -> Result<(&Array, &Array, Array)> {
        let mask = match self.past {
            None => step.filled_mask(self.keys.dim(2))?,
            Some(past) => step.window_mask(past, self.window.unwrap_or(i32::MAX))?,
        };
        Ok((&self.keys, &self.values, mask))
    }
}

impl Seen {
    /// As [`Seen::attend`], for layers without a window, where `seen` says which of the keys before
    /// a query, both given by their positions `[length, 1]` and `[1, keys]`, it sees.
    pub fn attend_where(
        &self,
        q: &Array,
        scores: &Scores,
        step: &Step,
        seen: impl FnOnce(&Array, &Array) -> Result<Array>,
    ) -> Result<Array> {
        let queries = ops::arange::<_, i32>(0, step.length, None)?.add(&step.position)?;
        let queries = queries.expand_dims(1)?;
        let keys = ops::arange::<_, i32>(0, self.keys.dim(2), None)?.expand_dims(0)?;
        let mask = seen(&queries, &keys)?.logical_and(keys.le(&queries)?)?;
        let (Scores { scale, sinks }, mask) = (scores, Mask::Array(&mask));
        let (keys, values) = (&self.keys, &self.values);
        Ok(scaled_dot_product_attention(q, keys, values, *scale, Some(mask), sinks.as_ref())?)
    }
}

/// The last `window - 1` positions before `offset`, in order.
fn recent(ring: &Array, offset: i32, window: i32) -> Result<Array> {
    if offset < window {
        return mlx::slice(ring, 2, 0, offset);
    }
    let oldest = offset % window;
    let old = mlx::slice(ring, 2, oldest + 1, window)?;
    Ok(ops::concatenate(&[old, mlx::slice(ring, 2, 0, oldest)?], 2)?)
}

/// A ring in which the last positions of `new`, which ends before position `end`, have their slots.
fn fill(ring: &Array, new: &Array, end: i32, window: i32) -> Result<Array> {
    let length = new.dim(2);
    if end <= window {
        return mlx::slice_update(ring, new, 2, end - length);
    }
    // `window` positions, of which `new` may lack the oldest: its slot is the next to be written.
    let kept = length.min(window);
    let first = (end - kept) % window;
    let head = kept.min(window - first);
    let start = length - kept;
    let ring = mlx::slice_update(ring, &mlx::slice(new, 2, start, start + head)?, 2, first)?;
    if head == kept {
        return Ok(ring);
    }
    mlx::slice_update(&ring, &mlx::slice(new, 2, start + head, length)?, 2, 0)
}
