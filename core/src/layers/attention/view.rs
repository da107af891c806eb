//! What the queries of one step may see of the keys and values of a layer.

use crate::layers::attention::{quantized::quantized_attention, ring_buffer::Ring, scores::Scores};
use crate::{
    error::Result,
    layers::step::Step,
    mlx::quantized::{Format, Quantized},
};
use mlx_rs::{
    Array,
    fast::{ScaledDotProductAttentionMask as Mask, scaled_dot_product_attention},
    ops,
};

/// Keys and values that the queries of one step may see.
#[derive(Clone)]
pub struct AttentionView {
    /// As the buffers of [`KvCache`].
    pub(crate) entries: Vec<Array>,
    /// How they are quantized, if they are.
    pub(super) format: Option<Format>,
    pub(crate) ring: Option<Ring>,
    /// How many come before the step's own; they are whole buffers where the host does not know.
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
            _ => self.weigh(q, scores, Some(Mask::Array(&self.mask(step)?))),
        }
    }

    /// As [`AttentionView::attend`], where `seen` says which of the keys before a query, both given by their
    /// positions `[length, 1]` and `[1, keys]`, it sees.
    pub fn attend_where(
        &self,
        q: &Array,
        scores: &Scores,
        step: &Step,
        seen: impl FnOnce(&Array, &Array) -> Result<Array>,
    ) -> Result<Array> {
        let mask =
            seen(&step.positions()?.expand_dims(1)?, &self.positions(step)?.expand_dims(0)?)?;
        let mask = mask.logical_and(self.mask(step)?)?;
        self.weigh(q, scores, Some(Mask::Array(&mask)))
    }

    /// Keys, values, and which keys each query sees, for attention that no kernel computes.
    pub fn parts(&self, step: &Step) -> Result<(Array, Array, Array)> {
        if let Some([keys, values]) = self.quantized() {
            return Ok((keys.dequantize(None)?, values.dequantize(None)?, self.mask(step)?));
        }
        Ok((self.entries[0].clone(), self.entries[1].clone(), self.mask(step)?))
    }

    /// Keys that are their own values, and which of them each query sees.
    pub fn keys(&self, step: &Step) -> Result<(Array, Array)> {
        Ok((self.entries[0].clone(), self.mask(step)?))
    }

    /// Which of the keys are the step's own, `[length]`.
    pub fn own(&self, step: &Step) -> Result<Array> {
        match self.past {
            Some(past) => Ok(ops::arange::<_, i32>(past, past + step.length, None)?),
            None => step.slot(self.ring),
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
        Ok(scaled_dot_product_attention(q, keys, values, *scale, mask, sinks.as_ref())?)
    }

    /// Where among the keys of a ring those stand that each query sees, and whether they are there:
    /// both `[length, slots]`.
    pub(crate) fn places(&self, step: &Step) -> Result<(Array, Array)> {
        let count = self.entries[0].dim(2);
        let (Some(past), Some(ring)) = (self.past, self.ring) else {
            let places = ops::arange::<_, i32>(0, count, None)?.expand_dims(0)?;
            let all = ops::broadcast_to(&self.mask(step)?, &[step.length, count])?;
            return Ok((ops::broadcast_to(&places, &[step.length, count])?, all));
        };
        let turning = ring.turning().min(count);
        let first = past + 1 - turning;
        let first = ops::arange::<_, i32>(first, first + step.length, None)?.expand_dims(1)?;
        let latest = first.add(ops::arange::<_, i32>(0, turning, None)?)?;
        let (mut places, mut there) = (vec![latest.clone()], vec![latest.ge(Array::from_int(0))?]);
        if ring.keep > 0 {
            let kept = ops::arange::<_, i32>(0, ring.keep.min(count), None)?.expand_dims(0)?;
            there.push(kept.lt(&first)?);
            places.push(ops::broadcast_to(&kept, &[step.length, kept.dim(1)])?);
        }
        let places = ops::maximum(ops::concatenate(&places, 1)?, Array::from_int(0))?;
        Ok((places, ops::concatenate(&there, 1)?))
    }

    /// Which keys each query sees: `[length, keys]`, or `[keys]` for the one query of a decode step.
    pub(crate) fn mask(&self, step: &Step) -> Result<Array> {
        match self.past {
            None => step.decode_mask(self.entries[0].dim(2)),
            Some(past) => step.causal_mask(past, self.ring),
        }
    }

    /// The position of each key `[keys]`; anything in slots that are not filled.
    pub(crate) fn positions(&self, step: &Step) -> Result<Array> {
        let slots = ops::arange::<_, i32>(0, self.entries[0].dim(2), None)?;
        let Some(ring) = self.ring else { return Ok(slots) };
        let positions = match self.past {
            Some(past) => slots.add(step.position.subtract(Array::from_int(past))?)?,
            None => {
                let ago = step.position.subtract(&slots)?;
                step.position.subtract(ago.remainder(Array::from_int(ring.turning()))?)?
            }
        };
        Ok(ops::select(&slots.lt(Array::from_int(ring.keep))?, &slots, positions)?)
    }
}
