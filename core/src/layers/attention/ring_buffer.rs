//! The ring buffer of a sliding window, whose slots are written again and again, and writes to the
//! buffers of rows at positions of their own.

use crate::{error::Result, mlx};
use mlx_rs::{Array, ops};

/// Slots of which the first `keep` hold the first positions for good (attention sinks) and the
/// others the latest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ring {
    pub slots: i32,
    pub keep: i32,
}

impl Ring {
    /// How many slots are reused.
    pub fn turning(self) -> i32 {
        self.slots - self.keep
    }

    /// Which keys it shows to a query that stands this far behind them.
    pub fn shows(self, distance: &Array, keys: &Array) -> Result<Array> {
        let near = distance.lt(Array::from_int(self.turning()))?;
        Ok(match self.keep {
            0 => near,
            keep => near.logical_or(keys.lt(Array::from_int(keep))?)?,
        })
    }

    fn slot(self, position: i32) -> i32 {
        if position < self.slots {
            return position;
        }
        self.keep + (position - self.keep) % self.turning()
    }

    /// The entries before `offset` that are visible to a query there, in the order of their positions.
    pub fn before(self, buffer: &Array, offset: i32) -> Result<Vec<Array>> {
        let cut = |from, to| mlx::slice(buffer, 2, from, to);
        if offset < self.slots {
            return Ok(vec![cut(0, offset)?]);
        }
        let next = self.slot(offset);
        Ok(vec![cut(0, self.keep)?, cut(next + 1, self.slots)?, cut(self.keep, next)?])
    }

    /// `buffer` with the entries of the positions from `start` on in their slots.
    pub fn write(self, buffer: &Array, new: &Array, start: i32) -> Result<Array> {
        let end = start + new.dim(2);
        let (mut buffer, mut at) = (buffer.clone(), start);
        while at < end {
            // What the same pass overwrites is not written.
            if at >= self.keep {
                at = at.max(end - self.turning());
            }
            let slot = self.slot(at);
            let border = if at < self.keep { self.keep } else { self.slots };
            let run = mlx::slice(new, 2, at - start, end.min(at + border - slot) - start)?;
            // A run that replaces the whole buffer becomes it, and would keep all that was new.
            let run = if run.dim(2) == self.slots { run.contiguous()? } else { run };
            buffer = mlx::slice_update(&buffer, &run, 2, slot)?;
            at += run.dim(2);
        }
        Ok(buffer)
    }
}

/// `buffer` with `new` `[batch, …, length, dims]` written along axis 2 from `slots` `[rows]` on; in
/// place when nothing else holds the buffer.
pub(crate) fn write_rows(buffer: &Array, new: &Array, slots: &Array) -> Result<Array> {
    let length = new.dim(2);
    // On NVIDIA GPUs every thread of a slice update reads the place over the bus, which makes it eight times
    // slower than a scatter.
    if slots.dim(0) == 1 && !(length == 1 && mlx::uses_cuda()) {
        return mlx::slice_update_at(buffer, new, 2, slots);
    }
    let first = slots.reshape(&[-1, 1, 1, 1])?;
    if length == 1 {
        return Ok(buffer.put_along_axis(&first, new, 2)?);
    }
    let tokens = ops::arange::<_, i32>(0, length, None)?.reshape(&[1, 1, length, 1])?;
    Ok(buffer.put_along_axis(first.add(tokens)?, new, 2)?)
}
