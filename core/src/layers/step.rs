//! What one forward pass knows of its place in the sequence.

use crate::{
    error::{Error, Result},
    layers::{attention::ring_buffer::Ring, embedded::span_mask},
};
use mlx_rs::{Array, ops};
use std::{
    any::{Any, TypeId},
    cell::RefCell,
    collections::HashMap,
    ops::Range,
};

/// What one forward pass knows of its place in the sequence: facts of the call, never of the model.
pub struct Step {
    /// The position of the first token, `[1]`, on the device.
    pub position: Array,
    /// How many tokens the pass has.
    pub length: i32,
    /// The position of the first token where the host knows it. A decode step that is being
    /// compiled has none: it is replayed at every position.
    pub offset: Option<i32>,
    /// Rotary positions, where they are not the positions of the sequence.
    pub rotary: Option<Rotary>,
    /// Tokens of this pass that see each other both ways.
    pub spans: Vec<Range<usize>>,
    masks: RefCell<Vec<(Mask, Array)>>,
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

#[derive(Clone, Copy, PartialEq)]
enum Mask {
    AttentionView(Option<Ring>),
    Filled(i32),
    Slot(Ring),
}

impl Step {
    /// A pass over `length` tokens from position `offset` on.
    pub fn prefill(offset: i32, length: i32) -> Self {
        let position = Array::from_slice(&[offset], &[1]);
        Step { length, offset: Some(offset), ..Step::decode(position) }
    }

    /// A pass over one token at a position that only the device knows.
    pub fn decode(position: Array) -> Self {
        Step {
            position,
            length: 1,
            offset: None,
            rotary: None,
            spans: Vec::new(),
            masks: RefCell::default(),
            extensions: RefCell::default(),
        }
    }

    /// The same pass over groups of `size` tokens: those that it has tokens of.
    pub(crate) fn grouped(&self, size: i32) -> Result<Self> {
        Ok(match self.offset {
            Some(offset) => {
                let length = (offset % size + self.length - 1) / size + 1;
                Step::prefill(offset / size, length)
            }
            None => Step::decode(self.position.floor_divide(Array::from_int(size))?),
        })
    }

    /// The positions of all its tokens, `[length]`.
    pub(crate) fn positions(&self) -> Result<Array> {
        Ok(ops::arange::<_, i32>(0, self.length, None)?.add(&self.position)?)
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

    /// Each mask is built once a pass, not once a layer.
    fn memoized(&self, key: Mask, build: impl FnOnce() -> Result<Array>) -> Result<Array> {
        if let Some((_, mask)) = self.masks.borrow().iter().find(|(known, _)| *known == key) {
            return Ok(mask.clone());
        }
        let mask = build()?;
        self.masks.borrow_mut().push((key, mask.clone()));
        Ok(mask)
    }

    /// Which of the `past` keys before the pass and of its own each query sees: itself and all
    /// before it that are in the ring, and the whole span that it is in.
    /// `[length, past + length]`, true where seen.
    pub(crate) fn causal_mask(&self, past: i32, ring: Option<Ring>) -> Result<Array> {
        self.memoized(Mask::AttentionView(ring), || {
            let queries = ops::arange::<_, i32>(past, past + self.length, None)?.expand_dims(1)?;
            let keys = ops::arange::<_, i32>(0, past + self.length, None)?.expand_dims(0)?;
            let distance = queries.subtract(&keys)?;
            let seen = distance.ge(Array::from_int(0))?;
            let Some(ring) = ring else { return self.with_spans(seen, past) };
            let near = distance.lt(Array::from_int(ring.turning()))?;
            let near = match ring.keep {
                0 => near,
                keep => near.logical_or(keys.lt(Array::from_int(keep))?)?,
            };
            self.with_spans(seen.logical_and(near)?, past)
        })
    }

    /// Adds to a mask `[length, past + length]` what tokens of one span see of each other.
    fn with_spans(&self, mask: Array, past: i32) -> Result<Array> {
        if self.spans.is_empty() {
            return Ok(mask);
        }
        Ok(mask.logical_or(span_mask(&self.spans, past, self.length)?)?)
    }

    /// Which slots of a buffer hold keys, the token's own included. `[capacity]`.
    pub(crate) fn decode_mask(&self, capacity: i32) -> Result<Array> {
        self.memoized(Mask::Filled(capacity), || {
            Ok(ops::arange::<_, i32>(0, capacity, None)?.le(&self.position)?)
        })
    }

    /// The slot `[1]` of the token.
    pub(crate) fn slot(&self, ring: Option<Ring>) -> Result<Array> {
        let Some(ring) = ring else { return Ok(self.position.clone()) };
        self.memoized(Mask::Slot(ring), || {
            let (keep, turning) = (Array::from_int(ring.keep), Array::from_int(ring.turning()));
            if ring.keep == 0 {
                return Ok(self.position.remainder(turning)?);
            }
            let turned = self.position.subtract(&keep)?.remainder(turning)?.add(&keep)?;
            Ok(ops::select(&self.position.lt(keep)?, &self.position, turned)?)
        })
    }
}
