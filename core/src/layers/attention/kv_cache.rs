//! The KV cache of one attention layer.
//!
//! Its buffers have a fixed size: positions in order, or a ring buffer. Which slots are filled
//! follows from the position of the step alone. The caller of a step reserves room for it.

use crate::layers::attention::{
    ring_buffer::{Ring, write_rows},
    scores::Scores,
};

pub use crate::layers::attention::view::AttentionView;
use crate::{
    error::{Error, Result},
    layers::{cache_plan::CachePlan, step::Step},
    mlx::{
        self,
        quantized::{Format, Quantized},
    },
};
use mlx_rs::{Array, ops};
use std::mem;

/// Keys and values of the past.
#[derive(Clone)]
pub struct KvCache {
    /// `[batch, heads, capacity, …]`, keys before values: an array each, or the three of a quantized
    /// one.
    buffers: Vec<Array>,
    /// What the last verify pass would have written to a ring buffer, `[batch, heads, tokens, …]`.
    trail: Vec<Array>,
    ring: Option<Ring>,
    capacity: i32,
    /// How many positions of the sequence share an entry.
    stride: i32,
    /// How they are quantized when the cache is.
    format: Option<Format>,
    /// Whether a layer uses the slots of entries, beside their positions.
    is_read_by_slot: bool,
}

impl KvCache {
    /// An empty cache; `window` is the size of the sliding window, the token itself included.
    pub fn new(window: Option<i32>, plan: &CachePlan) -> Self {
        let window = window.map(|slots| Ring { slots, keep: 0 });
        let bound = plan.bound.map(|bound| Ring { slots: bound.positions, keep: bound.keep });
        let narrower = |ring: &Ring| bound.is_none_or(|bound| ring.slots <= bound.slots);
        KvCache {
            buffers: Vec::new(),
            trail: Vec::new(),
            ring: window.filter(narrower).or(bound),
            capacity: plan.first_capacity(),
            stride: 1,
            format: plan.quantization.map(|quantization| quantization.format),
            is_read_by_slot: false,
        }
    }

    /// An empty cache for the keys of an indexer: they decide which keys are visible, so they keep
    /// their precision. Which of equal keys an indexer prefers, and what makes a block of keys, depends
    /// on their slots in a ring buffer.
    pub fn of_indexer(plan: &CachePlan) -> Self {
        let is_read_by_slot = plan.bound.is_some();
        let plan = &CachePlan { quantization: None, ..*plan };
        KvCache { is_read_by_slot, ..KvCache::new(None, plan) }
    }

    /// As [`KvCache::new`], for entries of `stride` positions each: the caller passes steps over
    /// groups, as `Step::grouped` makes them.
    pub fn strided(stride: i32, plan: &CachePlan) -> Self {
        let ring = plan.bound.map(|bound| {
            let slots = (bound.positions / stride).max(1);
            Ring { slots, keep: (bound.keep / stride).min(slots - 1) }
        });
        KvCache { stride, ring, ..KvCache::new(None, plan) }
    }

    /// The same cache, for layers that read entries by their slots: verify passes run token by token.
    pub fn read_by_slot(self) -> Self {
        KvCache { is_read_by_slot: true, ..self }
    }

    /// Appends `k` and `v` and attends over all visible keys. All are
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

    /// Appends `k` and `v`; returns a view of the keys and values that queries of this step may
    /// see, for layers that share it.
    pub fn update(&mut self, k: Array, v: Array, step: &Step) -> Result<AttentionView> {
        let format = self.format.filter(|_| self.is_quantized());
        let new = match format {
            Some(format) => [quantize(&k, format)?, quantize(&v, format)?].concat(),
            None => vec![k, v],
        };
        self.append(new, format, step)
    }

    /// As [`KvCache::update`], for keys that are their own values, and keep their precision.
    pub fn update_keys(&mut self, k: Array, step: &Step) -> Result<AttentionView> {
        self.append(vec![k], None, step)
    }

    fn append(
        &mut self,
        new: Vec<Array>,
        format: Option<Format>,
        step: &Step,
    ) -> Result<AttentionView> {
        let (entries, past) = match step.offset {
            Some(offset) => {
                let entries = self.extend(new, offset)?;
                let past = entries[0].dim(2) - step.length;
                (entries, Some(past))
            }
            None if step.is_verify() && self.ring.is_some() => (self.set_aside(new)?, None),
            None => (self.put(&new, step)?, None),
        };
        Ok(AttentionView { entries, format, ring: self.ring, past })
    }

    /// Writes the tokens of a step at the positions that the device knows.
    fn put(&mut self, new: &[Array], step: &Step) -> Result<Vec<Array>> {
        let slot = step.slot(self.ring)?;
        for (buffer, new) in self.buffers.iter_mut().zip(new) {
            *buffer = write_rows(buffer, new, &slot)?;
        }
        Ok(self.buffers.clone())
    }

    /// Leaves the ring buffer as it is, and returns its entries and the new ones after them.
    fn set_aside(&mut self, new: Vec<Array>) -> Result<Vec<Array>> {
        let both = self.buffers.iter().zip(&new);
        let entries = both.map(|(old, new)| Ok(ops::concatenate(&[old, new], 2)?)).collect();
        self.trail = new;
        entries
    }

    /// Commits the first `counts` tokens of the last verify pass, which began at `offsets`: one
    /// number for all rows of the batch, or one for each.
    pub(crate) fn accept(&mut self, counts: &[i32], offsets: &[i32]) -> Result<()> {
        let trail = mem::take(&mut self.trail);
        let Some(ring) = self.ring else { return Ok(()) };
        for (buffer, new) in self.buffers.iter_mut().zip(trail) {
            let commit = |buffer: &Array, new: &Array, row: usize| match counts[row] {
                0 => Ok(buffer.clone()),
                count => ring.write(buffer, &mlx::slice(new, 2, 0, count)?, offsets[row]),
            };
            *buffer = if counts.len() == 1 {
                commit(buffer, &new, 0)?
            } else {
                let cut = |x: &Array, row: usize| mlx::slice(x, 0, row as i32, row as i32 + 1);
                let row = |row| commit(&cut(buffer, row)?, &cut(&new, row)?, row);
                let rows: Vec<Array> = (0..counts.len()).map(row).collect::<Result<_>>()?;
                ops::concatenate(&rows, 0)?
            };
        }
        Ok(())
    }

    pub(crate) fn trail(&mut self) -> Vec<&mut Array> {
        self.trail.iter_mut().collect()
    }

    /// Makes room for what a verify pass of another cache of this shape has set aside.
    pub(crate) fn expect_trail(&mut self) {
        if self.ring.is_some() {
            self.trail.clone_from(&self.buffers);
        }
    }

    /// Whether a verify pass can run over several tokens at once.
    pub(crate) fn verifies_at_once(&self) -> bool {
        self.stride == 1 && !self.is_read_by_slot
    }

    /// Tokens from position `offset` on.
    fn extend(&mut self, new: Vec<Array>, offset: i32) -> Result<Vec<Array>> {
        if self.buffers.is_empty() {
            self.check_groups(&new)?;
            let slots = self.slots();
            self.buffers = new.iter().map(|new| empty(new, slots)).collect::<Result<_>>()?;
        }
        let end = offset + new[0].dim(2);
        let mut visible = Vec::new();
        for (buffer, new) in self.buffers.iter_mut().zip(new) {
            let past = buffer.clone();
            *buffer = match self.ring {
                None => mlx::slice_update(buffer, &new, 2, offset)?,
                Some(ring) => ring.write(buffer, &new, offset)?,
            };
            visible.push(match self.ring {
                _ if offset == 0 => new,
                None => mlx::slice(buffer, 2, 0, end)?,
                Some(ring) => {
                    let mut parts = ring.before(&past, offset)?;
                    parts.push(new);
                    ops::concatenate(&parts, 2)?
                }
            });
        }
        Ok(visible)
    }

    fn check_groups(&self, entries: &[Array]) -> Result<()> {
        let Some(Format { group, .. }) = self.format else { return Ok(()) };
        match entries.iter().find(|entry| entry.dim(3) % group != 0) {
            Some(entry) => {
                let reason = format!("{group} does not divide heads of {}", entry.dim(3));
                Err(Error::option("cache group size", reason))
            }
            None => Ok(()),
        }
    }

    fn slots(&self) -> i32 {
        let entries = (self.capacity + self.stride - 1) / self.stride;
        self.ring.map_or(entries, |ring| ring.slots.min(entries))
    }

    fn is_quantized(&self) -> bool {
        self.buffers.len() > 2
    }

    pub(crate) fn arrays(&mut self) -> Vec<&mut Array> {
        self.buffers.iter_mut().collect()
    }

    pub(crate) fn buffers(&self) -> &[Array] {
        &self.buffers
    }

    pub(crate) fn clear(&mut self) {
        self.buffers.clear();
        self.trail.clear();
    }

    pub(crate) fn reserve(&mut self, positions: i32) -> Result<()> {
        self.capacity = self.capacity.max(positions);
        let slots = self.slots();
        for buffer in &mut self.buffers {
            let room = slots - buffer.dim(2);
            if room > 0 {
                *buffer = ops::concatenate(&[&*buffer, &empty(buffer, room)?], 2)?;
            }
        }
        Ok(())
    }

    /// Gives up room beyond `positions`, which hold all entries.
    pub(crate) fn shrink(&mut self, positions: i32) -> Result<()> {
        self.capacity = positions;
        let slots = self.slots();
        for buffer in self.buffers.iter_mut().filter(|buffer| buffer.dim(2) > slots) {
            // A slice alone would keep the whole buffer.
            *buffer = mlx::slice(buffer, 2, 0, slots)?.contiguous()?;
        }
        Ok(())
    }

    /// Quantizes the entries and all later ones, if the plan says so.
    pub(crate) fn quantize(&mut self) -> Result<()> {
        if let (Some(format), [keys, values]) = (self.format, &self.buffers[..]) {
            self.buffers = [quantize(keys, format)?, quantize(values, format)?].concat();
        }
        Ok(())
    }

    /// Whether the last of `from` positions can be removed: a ring buffer that is full has lost the
    /// entries that they replaced.
    pub(crate) fn rewinds(&self, from: i32) -> bool {
        self.ring.is_none_or(|ring| (from - 1) / self.stride < ring.slots)
    }

    pub(crate) fn is_ring(&self) -> bool {
        self.ring.is_some()
    }
}

/// Zeros in the shape and precision of `like`, with `length` positions.
fn empty(like: &Array, length: i32) -> Result<Array> {
    Ok(ops::zeros_dtype(&[like.dim(0), like.dim(1), length, like.dim(3)], like.dtype())?)
}

fn quantize(x: &Array, format: Format) -> Result<Vec<Array>> {
    let Quantized { weight, scales, biases, .. } = Quantized::of(x, format)?;
    Ok([weight, scales].into_iter().chain(biases).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::cache_plan::{Bound, CacheQuantization};
    use mlx_rs::{
        fast::{ScaledDotProductAttentionMask as Mask, scaled_dot_product_attention},
        random,
    };

    const HEADS: usize = 4;
    const KV_HEADS: usize = 2;
    const DIMS: usize = 32;
    const LENGTH: usize = 44;

    /// One attention by its definition, over entries `[heads, length, dims]` as the cache keeps them.
    struct Naive {
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
        sinks: Option<Vec<f32>>,
    }

    impl Naive {
        fn attend(&self, head: usize, query: usize, sees: impl Fn(usize) -> bool) -> Vec<f32> {
            let row = |entries: &[f32], head: usize, position: usize| {
                let start = (head * LENGTH + position) * DIMS;
                entries[start..start + DIMS].to_vec()
            };
            let kv_head = head / (HEADS / KV_HEADS);
            let q = row(&self.q, head, query);
            let seen: Vec<usize> = (0..=query).filter(|key| sees(*key)).collect();
            let weight = |key: &usize| {
                let k = row(&self.k, kv_head, *key);
                (q.iter().zip(k).map(|(a, b)| a * b).sum::<f32>() * 0.3).exp()
            };
            let weights: Vec<f32> = seen.iter().map(weight).collect();
            let sink = self.sinks.as_ref().map_or(0.0, |sinks| sinks[head].exp());
            let total = weights.iter().sum::<f32>() + sink;
            let mut mixed = vec![0.0; DIMS];
            for (key, weight) in seen.iter().zip(weights) {
                for (sum, v) in mixed.iter_mut().zip(row(&self.v, kv_head, *key)) {
                    *sum += weight / total * v;
                }
            }
            mixed
        }
    }

    fn left(x: &Array, format: Format) -> Array {
        Quantized::of(x, format).unwrap().dequantize(None).unwrap()
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum How {
        Kernel,
        Where,
        Parts,
    }

    fn check(window: Option<i32>, plan: CachePlan, pieces: &[usize], how: How, with_sinks: bool) {
        let normal = |heads: usize| {
            let shape = [1, heads as i32, LENGTH as i32, DIMS as i32];
            random::normal::<f32>(&shape, None, None, None).unwrap()
        };
        let (q, k, v) = (normal(HEADS), normal(KV_HEADS), normal(KV_HEADS));
        let sinks =
            with_sinks.then(|| random::normal::<f32>(&[HEADS as i32], None, None, None).unwrap());
        let mut kv = KvCache::new(window, &plan);
        let (slots, keep) = kv.ring.map_or((i32::MAX, 0), |ring| (ring.slots, ring.keep));
        let scores = Scores { scale: 0.3, sinks: sinks.clone() };
        let values = |x: &Array| mlx::to_vec::<f32>(x).unwrap();
        let mut naive = Naive {
            q: values(&q),
            k: values(&k),
            v: values(&v),
            sinks: sinks.as_ref().map(values),
        };
        let (mut at, mut pieces) = (0, pieces.iter().copied().cycle());
        let predicate = |query: i32, key: i32| (query + key) % 3 != 1 || query == key;
        while at < LENGTH {
            let length = pieces.next().unwrap().min(LENGTH - at);
            let end = at + length;
            kv.reserve(end.next_multiple_of(16) as i32).unwrap();
            let cut = |x: &Array| mlx::slice(x, 2, at as i32, end as i32).unwrap();
            let step = match (at, length) {
                (1.., 1) if at % 3 > 0 => Step::decode(Array::from_slice(&[at as i32], &[1])),
                _ => Step::prefill(at as i32, length as i32),
            };
            let seen = kv.update(cut(&k), cut(&v), &step).unwrap();
            let q = cut(&q);
            let y = match how {
                How::Kernel => seen.attend(&q, &scores, &step).unwrap(),
                How::Where => seen
                    .attend_where(&q, &scores, &step, |queries, keys| {
                        let third = queries.add(keys)?.remainder(Array::from_int(3))?;
                        let own = queries.eq(keys)?;
                        Ok(third.ne(Array::from_int(1))?.logical_or(own)?)
                    })
                    .unwrap(),
                How::Parts => {
                    let (keys, values, mask) = seen.parts(&step).unwrap();
                    let mask = Some(Mask::Array(&mask));
                    let sinks = sinks.as_ref();
                    scaled_dot_product_attention(&q, keys, values, 0.3, mask, sinks).unwrap()
                }
            };
            let found = values(&y);
            for head in 0..HEADS {
                for query in at..end {
                    let sees = |key: usize| {
                        let (query, key) = (query as i32, key as i32);
                        let near = key < keep || query - key < slots - keep;
                        near && (how != How::Where || predicate(query, key))
                    };
                    let expected = naive.attend(head, query, sees);
                    let start = (head * length + query - at) * DIMS;
                    let found = &found[start..start + DIMS];
                    let distance = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                    let distance = distance.fold(0.0, f32::max);
                    assert!(
                        distance < 1e-5,
                        "{distance} at {query}, head {head}, {how:?} with {window:?} and {plan:?}"
                    );
                }
            }
            at = end;
            if plan.quantization.is_some_and(|q| at >= q.from as usize) && !kv.is_quantized() {
                let format = kv.format.unwrap();
                kv.quantize().unwrap();
                naive.k = values(&left(&k, format));
                naive.v = values(&left(&v, format));
            }
        }
    }

    #[test]
    fn rings_and_quantization_see_what_their_definition_says() {
        random::seed(1).unwrap();
        let quantized = |bits, from| Some(CacheQuantization::new(bits, 32, from).unwrap());
        let bound = |positions, keep| Some(Bound::new(positions, keep).unwrap());
        for window in [None, Some(1), Some(8)] {
            for quantization in [None, quantized(4, 0), quantized(8, 11)] {
                for bound in [None, bound(12, 4), bound(6, 0), bound(5, 4)] {
                    let mut plan = CachePlan::new(0);
                    (plan.quantization, plan.bound) = (quantization, bound);
                    for pieces in [&[1][..], &[7, 1, 1, 1, 1, 1, 5], &[20, 3, 1], &[3, 9, 2]] {
                        check(window, plan, pieces, How::Kernel, false);
                    }
                    check(window, plan, &[7, 1, 1, 6, 1], How::Kernel, true);
                    check(window, plan, &[7, 1, 1, 6, 1], How::Where, false);
                    check(window, plan, &[2, 1, 1, 9, 1], How::Where, true);
                    check(window, plan, &[7, 1, 1, 6, 1], How::Parts, false);
                }
            }
        }
    }

    #[test]
    fn groups_must_divide_heads() {
        let mut plan = CachePlan::new(4);
        plan.quantization = Some(CacheQuantization::new(4, 64, 0).unwrap());
        let entries = ops::zeros::<f32>(&[1, 1, 1, 96]).unwrap();
        let mut kv = KvCache::new(None, &plan);
        let updated = kv.update(entries.clone(), entries, &Step::prefill(0, 1));
        assert!(matches!(updated.err(), Some(Error::Option { option: "cache group size", .. })));
    }
}
