//! How an application wants the caches of a sequence kept.

use crate::{
    error::{Error, Result},
    mlx::quantized::{Format, Mode},
};

/// How a session wants its caches built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CachePlan {
    /// Positions to reserve at once; a cache grows when they do not suffice.
    pub(crate) capacity: i32,
    /// Keys and values in fewer bits.
    pub quantization: Option<CacheQuantization>,
    /// No more keys and values than these.
    pub bound: Option<Bound>,
}

impl CachePlan {
    /// A cache for a sequence of about `positions`. Unused capacity costs time at every step, so the
    /// capacity is tight; few capacities occur, so that sequences share compiled steps.
    pub fn new(positions: usize) -> Self {
        const LEAST: usize = 64;
        let positions = positions.min(i32::MAX as usize - LEAST).next_multiple_of(LEAST);
        CachePlan { capacity: positions as i32, ..CachePlan::default() }
    }

    /// The capacity of an empty cache. A cache that will be quantized reserves no more than it must
    /// before.
    pub(crate) fn first_capacity(&self) -> i32 {
        if self.quantization.is_some() { 0 } else { self.capacity }
    }
}

/// Keys and values as unsigned integers with a scale and a bias for each group, as in mlx-lm's
/// `QuantizedKVCache`. Recurrent and conv states keep their precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheQuantization {
    pub(crate) format: Format,
    pub(crate) from: i32,
}

impl CacheQuantization {
    /// `bits` (4 or 8) for an element and a scale for `group_size` (32, 64 or 128) of them, from
    /// the end of the pass on in which the sequence reaches `from` positions.
    ///
    /// # Errors
    /// [`Error::Option`] for other numbers. That a group does not divide the heads of a model is
    /// known at its first pass, which then fails.
    pub fn new(bits: i32, group_size: i32, from: usize) -> Result<Self> {
        if ![4, 8].contains(&bits) {
            return Err(Error::option("cache bits", format!("{bits} is neither 4 nor 8")));
        }
        if ![32, 64, 128].contains(&group_size) {
            let reason = format!("{group_size} is none of 32, 64 and 128");
            return Err(Error::option("cache group size", reason));
        }
        let from = i32::try_from(from).unwrap_or(i32::MAX);
        Ok(CacheQuantization {
            format: Format { mode: Mode::Affine, bits, group: group_size },
            from,
        })
    }
}

/// A ring buffer behind attention sinks: the first tokens hold much of the attention
/// ([Xiao et al. 2023](https://arxiv.org/abs/2309.17453)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub(crate) positions: i32,
    pub(crate) keep: i32,
}

impl Bound {
    /// At most `positions` entries: the first `keep` of the sequence (mlx-lm keeps 4) and the latest.
    /// Layers with a sliding window of at most that size keep their window.
    ///
    /// # Errors
    /// [`Error::Option`] unless a position is left for the latest.
    pub fn new(positions: usize, keep: usize) -> Result<Self> {
        match (i32::try_from(positions), i32::try_from(keep)) {
            (Ok(positions), Ok(keep)) if keep < positions => Ok(Bound { positions, keep }),
            _ => {
                let reason = format!("{positions} positions of which {keep} stay");
                Err(Error::option("cache bound", reason))
            }
        }
    }
}
