//! What one forward pass knows of its place in the sequence.

use crate::{
    error::{Error, Result},
    layers::{
        attention::ring_buffer::Ring,
        embedded::{SpanReach, span_mask},
    },
    mlx,
};
use mlx_rs::{Array, ops};
use std::{
    any::{Any, TypeId},
    cell::RefCell,
    collections::HashMap,
    ops::Range,
};

/// What one forward pass knows of its place in the sequence: facts of the call, never of the model.
///
/// A pass runs over `[batch, length]` tokens. Either all rows of the batch stand at one position,
/// or each row has its own; the shapes below name the number of positions `rows`, which is 1 or
/// `batch`.
pub struct Step {
    /// The position of the first token of each row, `[rows]`, on the device.
    pub position: Array,
    /// How many tokens the pass has.
    pub length: i32,
    /// The position of the first token where the host knows it. A pass that is being compiled has
    /// none: it is replayed at every position.
    pub offset: Option<i32>,
    /// How many tokens the sequence has with all of this prefill, where the host knows it.
    pub sequence_length: Option<i32>,
    /// Whether the states keep what they need to take tokens of this pass back.
    is_verify: bool,
    /// Rotary positions, where they are not the positions of the sequence.
    pub rotary: Option<Rotary>,
    /// Which keys of the pass each token sees, where attention is not causal: true for visible keys, in
    /// a shape that broadcasts to `[batch, heads, length, length]`; none is all of them.
    pub visible: Option<Array>,
    /// Tokens of this pass that see each other both ways.
    pub spans: Vec<Range<usize>>,
    /// How far back they do.
    pub span_reach: SpanReach,
    memo: RefCell<Vec<(Memo, Array)>>,
    /// Values that layers leave for later ones, by their type and the layer.
    extensions: RefCell<HashMap<(TypeId, i32), Box<dyn Any>>>,
}

/// Rotary positions of the tokens of one pass.
#[derive(Clone)]
pub enum Rotary {
    /// Those of each token, `[axes, batch, length]`.
    Each(Array),
    /// All axes advance together from here, `[batch]`.
    From(Array),
}

/// What a pass computes once and all its layers use.
#[derive(Clone, Copy, PartialEq)]
enum Memo {
    Positions,
    CausalMask(Option<Ring>),
    DecodeMask(i32),
    VerifyMask(Option<Ring>, i32),
    RingPositions(Ring, i32),
    Slot(Ring),
}

impl Step {
    /// A pass over `length` tokens from position `offset` on.
    pub fn prefill(offset: i32, length: i32) -> Self {
        let position = Array::from_slice(&[offset], &[1]);
        let sequence_length = Some(offset + length);
        Step { length, offset: Some(offset), sequence_length, ..Step::decode(position) }
    }

    /// A pass over one token of each row at positions `[rows]` that only the device knows.
    pub fn decode(position: Array) -> Self {
        Step {
            position,
            length: 1,
            offset: None,
            sequence_length: None,
            is_verify: false,
            rotary: None,
            visible: None,
            spans: Vec::new(),
            span_reach: SpanReach::Whole,
            memo: RefCell::default(),
            extensions: RefCell::default(),
        }
    }

    /// A pass over `length` tokens of each row from positions `[rows]` on that only the device
    /// knows. Any number of its tokens can be taken back: the states keep what they would
    /// overwrite, and beside it what [`Cache::accept`](crate::models::cache::Cache::accept) commits.
    pub fn verify(position: Array, length: i32) -> Self {
        Step { length, is_verify: true, ..Step::decode(position) }
    }

    /// Whether the states keep what they need to take tokens of this pass back.
    pub fn is_verify(&self) -> bool {
        self.is_verify
    }

    /// Whether each row of the batch has a position of its own.
    pub fn has_rows(&self) -> bool {
        self.position.dim(0) > 1
    }

    /// The same prefill or decode step over groups of `size` tokens: those that it has tokens of.
    pub(crate) fn grouped(&self, size: i32) -> Result<Self> {
        Ok(match self.offset {
            Some(offset) => {
                let length = (offset % size + self.length - 1) / size + 1;
                Step::prefill(offset / size, length)
            }
            None => Step::decode(self.position.floor_divide(Array::from_int(size))?),
        })
    }

    /// The positions of all tokens: `[length]`, or `[batch, length]` where each row has its own.
    pub(crate) fn positions(&self) -> Result<Array> {
        self.memoized(Memo::Positions, || {
            let tokens = ops::arange::<_, i32>(0, self.length, None)?;
            if self.has_rows() {
                return Ok(tokens.add(self.position.expand_dims(1)?)?);
            }
            Ok(tokens.add(&self.position)?)
        })
    }

    /// As [`Step::positions`], for what heads share: `[length]` or `[batch, 1, length]`.
    pub(crate) fn positions_of_heads(&self) -> Result<Array> {
        let positions = self.positions()?;
        if self.has_rows() { Ok(positions.expand_dims(1)?) } else { Ok(positions) }
    }

    /// Leaves a value for later layers of this pass, in place of an earlier one of its type. The
    /// type is the family's own, so that families cannot meet by accident.
    pub fn put<T: Clone + 'static>(&self, value: T) {
        self.lend(0, value);
    }

    /// The value of this type that an earlier layer has left.
    pub fn get<T: Clone + 'static>(&self) -> Option<T> {
        let left = self.extensions.borrow();
        left.get(&(TypeId::of::<T>(), 0)).and_then(|value| value.downcast_ref::<T>()).cloned()
    }

    /// Leaves a value under the number of the layer that makes it.
    pub fn lend<T: Clone + 'static>(&self, layer: i32, value: T) {
        self.extensions.borrow_mut().insert((TypeId::of::<T>(), layer), Box::new(value));
    }

    /// The value of this type that `layer` has left.
    ///
    /// # Errors
    /// [`Error::Internal`] when it has left none: the family runs its layers in another order.
    pub fn lent<T: Clone + 'static>(&self, layer: i32) -> Result<T> {
        let left = self.extensions.borrow();
        let value = left.get(&(TypeId::of::<T>(), layer));
        value.and_then(|value| value.downcast_ref::<T>()).cloned().ok_or_else(|| {
            let kind = std::any::type_name::<T>();
            Error::Internal(format!("layer {layer} has left no `{kind}` for later layers"))
        })
    }

    /// The pass builds each mask once, not once a layer.
    fn memoized(&self, key: Memo, build: impl FnOnce() -> Result<Array>) -> Result<Array> {
        if let Some((_, value)) = self.memo.borrow().iter().find(|(known, _)| *known == key) {
            return Ok(value.clone());
        }
        let value = build()?;
        self.memo.borrow_mut().push((key, value.clone()));
        Ok(value)
    }

    /// The attention mask of a prefill over `past` keys before it and its own: a query sees itself,
    /// all keys before it that are in the ring, and the span that it is in, as far as it reaches.
    /// `[length, past + length]`, true for visible keys.
    pub(crate) fn causal_mask(&self, past: i32, ring: Option<Ring>) -> Result<Array> {
        self.memoized(Memo::CausalMask(ring), || {
            let queries = ops::arange::<_, i32>(past, past + self.length, None)?.expand_dims(1)?;
            let keys = ops::arange::<_, i32>(0, past + self.length, None)?.expand_dims(0)?;
            let distance = queries.subtract(&keys)?;
            let seen = distance.ge(Array::from_int(0))?;
            let near = ring.map(|ring| ring.shows(&distance, &keys)).transpose()?;
            match (near, self.span_reach) {
                (None, SpanReach::WindowedLayers) => Ok(seen),
                (None, _) => self.with_spans(seen, past),
                (Some(near), SpanReach::Whole) => self.with_spans(seen.logical_and(near)?, past),
                (Some(near), _) => Ok(self.with_spans(seen, past)?.logical_and(near)?),
            }
        })
    }

    /// Adds to a mask `[length, past + length]` the visibility of tokens of one span to each other.
    fn with_spans(&self, mask: Array, past: i32) -> Result<Array> {
        if self.spans.is_empty() {
            return Ok(mask);
        }
        Ok(mask.logical_or(span_mask(&self.spans, past, self.length)?)?)
    }

    /// The attention mask of a decode step over a buffer, which holds the token's own key: the
    /// slots that are filled, `[capacity]` or `[batch, 1, 1, capacity]`.
    pub(crate) fn decode_mask(&self, capacity: i32) -> Result<Array> {
        self.memoized(Memo::DecodeMask(capacity), || {
            let slots = ops::arange::<_, i32>(0, capacity, None)?;
            if self.has_rows() {
                return Ok(slots.le(self.position.reshape(&[-1, 1, 1, 1])?)?);
            }
            Ok(slots.le(&self.position)?)
        })
    }

    /// The attention mask of a verify pass over `count` keys: a buffer that holds the pass's own
    /// keys, or a ring buffer and the pass's own keys after it. `[length, count]` or
    /// `[batch, 1, length, count]`.
    pub(crate) fn verify_mask(&self, ring: Option<Ring>, count: i32) -> Result<Array> {
        self.memoized(Memo::VerifyMask(ring, count), || {
            let queries = self.positions_of_heads()?.expand_dims(-1)?;
            let Some(ring) = ring else {
                return Ok(ops::arange::<_, i32>(0, count, None)?.le(queries)?);
            };
            let keys = over_queries(self.ring_positions(ring, count)?)?;
            let near = ring.shows(&queries.subtract(&keys)?, &keys)?;
            Ok(keys.le(&queries)?.logical_and(near)?)
        })
    }

    /// The positions of `count` keys of a verify pass, a ring buffer and the pass's own keys after
    /// it: `[count]` or `[batch, count]`. Slots that are not filled are at the end of time.
    pub(crate) fn ring_positions(&self, ring: Ring, count: i32) -> Result<Array> {
        self.memoized(Memo::RingPositions(ring, count), || {
            let slots = ops::arange::<_, i32>(0, count - self.length, None)?;
            let latest = self.position.subtract(Array::from_int(1))?;
            let latest = if self.has_rows() { latest.expand_dims(1)? } else { latest };
            let keep = Array::from_int(ring.keep);
            let ago = latest.subtract(&slots)?.remainder(Array::from_int(ring.turning()))?;
            let mut positions = latest.subtract(ago)?;
            let mut is_filled = positions.ge(&keep)?;
            if ring.keep > 0 {
                let stays = slots.lt(&keep)?;
                is_filled = ops::select(&stays, slots.le(&latest)?, is_filled)?;
                positions = ops::select(&stays, &slots, positions)?;
            }
            let past = ops::select(&is_filled, positions, Array::from_int(i32::MAX))?;
            Ok(ops::concatenate(&[past, self.positions()?], -1)?)
        })
    }

    /// The slot of the token of a decode step in a ring buffer, or of the first token of a verify
    /// pass in a buffer that grows: `[rows]`.
    pub(crate) fn slot(&self, ring: Option<Ring>) -> Result<Array> {
        let Some(ring) = ring else { return Ok(self.position.clone()) };
        self.memoized(Memo::Slot(ring), || {
            let (keep, turning) = (Array::from_int(ring.keep), Array::from_int(ring.turning()));
            if ring.keep == 0 {
                return mlx::in_device_memory(&self.position.remainder(turning)?);
            }
            let turned = self.position.subtract(&keep)?.remainder(turning)?.add(&keep)?;
            let slot = ops::select(&self.position.lt(keep)?, &self.position, turned)?;
            mlx::in_device_memory(&slot)
        })
    }
}

/// Facts of keys, `[keys]` or `[batch, keys]`, in a shape that broadcasts over heads and queries.
pub(crate) fn over_queries(keys: Array) -> Result<Array> {
    Ok(match keys.ndim() {
        1 => keys.expand_dims(0)?,
        _ => keys.expand_dims_axes(&[1, 2])?,
    })
}
