//! The visible keys and values of one attention layer in one step.

use crate::layers::attention::{quantized::quantized_attention, ring_buffer::Ring, scores::Scores};
use crate::{
    error::Result,
    layers::step::{Step, over_queries},
    mlx::{
        decode_attention::DecodeAttention,
        product::{Weighting, attend},
        quantized::{Format, Quantized},
    },
};
use mlx_rs::{Array, fast::ScaledDotProductAttentionMask as Mask, ops};

/// Keys and values that the queries of one step may see.
#[derive(Clone)]
pub struct AttentionView {
    /// As the buffers of [`KvCache`](super::kv_cache::KvCache), `[batch, heads, keys, …]`.
    pub(crate) entries: Vec<Array>,
    /// How they are quantized, if they are.
    pub(super) format: Option<Format>,
    pub(crate) ring: Option<Ring>,
    /// How many entries come before the step's own, where the host knows the position. In a decode
    /// step the entries are whole buffers; in a verify pass over a ring buffer, the buffer and the
    /// pass's own entries after it.
    pub(crate) past: Option<i32>,
}

impl AttentionView {
    /// Attends with queries `[batch, heads, length, head_dim]`.
    pub fn attend(&self, q: &Array, scores: &Scores, step: &Step) -> Result<Array> {
        let is_causal = |past| {
            step.spans.is_empty() && self.ring.is_none_or(|ring| past + step.length <= ring.slots)
        };
        match self.past {
            Some(_) if step.length == 1 => self.weigh(q, scores, None),
            Some(past) if is_causal(past) && self.format.is_none() => {
                self.weigh(q, scores, Some(Mask::Causal))
            }
            None if step.length == 1 && !step.is_verify() && self.format.is_none() => {
                self.attend_to_filled(q, scores, step)
            }
            _ => self.weigh(q, scores, Some(Mask::Array(&self.mask(step)?))),
        }
    }

    /// The one query of a decode step sees the filled slots of a buffer.
    fn attend_to_filled(&self, q: &Array, scores: &Scores, step: &Step) -> Result<Array> {
        let attention = DecodeAttention {
            queries: q,
            keys: &self.entries[0],
            values: &self.entries[1],
            scale: scores.scale,
            sinks: scores.sinks.as_ref(),
            position: &step.position,
        };
        match attention.run()? {
            Some(attended) => Ok(attended),
            None => self.weigh(q, scores, Some(Mask::Array(&self.mask(step)?))),
        }
    }

    /// As [`AttentionView::attend`], where `visible` says which of the keys before a query the query
    /// sees. It gets the positions of queries and of keys, `[length, 1]` and `[1, keys]`, or
    /// `[batch, 1, length, 1]` and `[batch, 1, 1, keys]`, and its result broadcasts to
    /// `[batch, heads, length, keys]`.
    pub fn attend_where(
        &self,
        q: &Array,
        scores: &Scores,
        step: &Step,
        visible: impl FnOnce(&Array, &Array) -> Result<Array>,
    ) -> Result<Array> {
        let queries = step.positions_of_heads()?.expand_dims(-1)?;
        let mask = visible(&queries, &over_queries(self.positions(step)?)?)?;
        let mask = mask.logical_and(self.mask(step)?)?;
        self.weigh(q, scores, Some(Mask::Array(&mask)))
    }

    /// Keys, values and the attention mask, for attention that no kernel computes.
    pub fn parts(&self, step: &Step) -> Result<(Array, Array, Array)> {
        if let Some([keys, values]) = self.quantized() {
            return Ok((keys.dequantize(None)?, values.dequantize(None)?, self.mask(step)?));
        }
        Ok((self.entries[0].clone(), self.entries[1].clone(), self.mask(step)?))
    }

    /// Keys that are their own values, and the attention mask.
    pub fn keys(&self, step: &Step) -> Result<(Array, Array)> {
        Ok((self.entries[0].clone(), self.mask(step)?))
    }

    /// Which of the keys are the step's own, `[length]` or `[batch, 1, length]`.
    pub fn own(&self, step: &Step) -> Result<Array> {
        match (self.past, self.ring) {
            (Some(past), _) => Ok(ops::arange::<_, i32>(past, past + step.length, None)?),
            (None, Some(_)) if step.is_verify() => {
                let count = self.entries[0].dim(2);
                Ok(ops::arange::<_, i32>(count - step.length, count, None)?)
            }
            (None, None) if step.length > 1 => step.positions_of_heads(),
            _ => {
                let slot = step.slot(self.ring)?;
                if step.has_rows() { Ok(slot.reshape(&[-1, 1, 1])?) } else { Ok(slot) }
            }
        }
    }

    fn quantized(&self) -> Option<[Quantized; 2]> {
        let [k, k_scales, k_biases, v, v_scales, v_biases] = &self.entries[..] else { return None };
        let matrix = |weight: &Array, scales: &Array, biases: &Array, format| Quantized {
            weight: weight.clone(),
            scales: scales.clone(),
            biases: Some(biases.clone()),
            global_scale: None,
            format,
        };
        let format = self.format?;
        Some([matrix(k, k_scales, k_biases, format), matrix(v, v_scales, v_biases, format)])
    }

    fn weigh(&self, q: &Array, scores: &Scores, mask: Option<Mask>) -> Result<Array> {
        if let Some(entries) = self.quantized() {
            let mask = match mask {
                Some(Mask::Array(mask)) => Some(mask),
                _ => None,
            };
            return quantized_attention(q, &entries, scores, mask);
        }
        let Scores { scale, sinks } = scores;
        let (keys, values) = (&self.entries[0], &self.entries[1]);
        attend(q, keys, values, Weighting { scale: *scale, mask, sinks: sinks.as_ref() })
    }

    /// The places, among the keys, of those that each query of a prefill or decode step sees, and
    /// whether they are filled: both `[length, slots]`, the latter `[batch, 1, slots]` where each row
    /// has its own position.
    pub(crate) fn places(&self, step: &Step) -> Result<(Array, Array)> {
        let count = self.entries[0].dim(2);
        let (Some(past), Some(ring)) = (self.past, self.ring) else {
            let places = ops::arange::<_, i32>(0, count, None)?.expand_dims(0)?;
            let places = ops::broadcast_to(&places, &[step.length, count])?;
            let mask = self.mask(step)?;
            return Ok(match mask.ndim() {
                4 => (places, mask.squeeze_axes(&[1])?),
                _ => (places, ops::broadcast_to(&mask, &[step.length, count])?),
            });
        };
        let turning = ring.turning().min(count);
        let first = past + 1 - turning;
        let first = ops::arange::<_, i32>(first, first + step.length, None)?.expand_dims(1)?;
        let latest = first.add(ops::arange::<_, i32>(0, turning, None)?)?;
        let (mut places, mut filled) = (vec![latest.clone()], vec![latest.ge(Array::from_int(0))?]);
        if ring.keep > 0 {
            let kept = ops::arange::<_, i32>(0, ring.keep.min(count), None)?.expand_dims(0)?;
            filled.push(kept.lt(&first)?);
            places.push(ops::broadcast_to(&kept, &[step.length, kept.dim(1)])?);
        }
        let places = ops::maximum(ops::concatenate(&places, 1)?, Array::from_int(0))?;
        Ok((places, ops::concatenate(&filled, 1)?))
    }

    /// The attention mask, true for visible keys: `[length, keys]`, or `[keys]` for the one query of
    /// a decode step; `[batch, 1, length, keys]` where each row has its own position.
    pub(crate) fn mask(&self, step: &Step) -> Result<Array> {
        let keys = self.entries[0].dim(2);
        match self.past {
            Some(past) => step.causal_mask(past, self.ring),
            None if step.is_verify() => step.verify_mask(self.ring, keys),
            None => step.decode_mask(keys),
        }
    }

    /// The position of each key, `[keys]`, or `[batch, keys]` where rows have their own; anything in
    /// slots that are not filled.
    pub(crate) fn positions(&self, step: &Step) -> Result<Array> {
        let keys = self.entries[0].dim(2);
        let Some(ring) = self.ring else { return Ok(ops::arange::<_, i32>(0, keys, None)?) };
        if self.past.is_none() && step.is_verify() {
            return step.ring_positions(ring, keys);
        }
        let slots = ops::arange::<_, i32>(0, keys, None)?;
        let position = || -> Result<Array> {
            let position = &step.position;
            if step.has_rows() { Ok(position.expand_dims(1)?) } else { Ok(position.clone()) }
        };
        let positions = match self.past {
            Some(past) => slots.add(step.position.subtract(Array::from_int(past))?)?,
            None => {
                let position = position()?;
                let ago = position.subtract(&slots)?;
                position.subtract(ago.remainder(Array::from_int(ring.turning()))?)?
            }
        };
        Ok(ops::select(&slots.lt(Array::from_int(ring.keep))?, &slots, positions)?)
    }
}
