//! A sampled token, from the graph that samples it to what the host reads.

use crate::{
    error::{Error, Result},
    mlx::{self, queued::Queued},
};
use mlx_rs::{Array, Dtype, ops};

/// Sampled tokens of `rows` positions, which nothing has computed yet.
pub(crate) struct Choice {
    /// The tokens `[rows, 1]`.
    pub id: Array,
    /// Their log-probabilities `[rows, 1]` before the filters.
    pub logprob: Array,
    /// The most probable tokens `[rows, n]` in no order, and their log-probabilities.
    pub top: Option<(Array, Array)>,
}

/// Sampled tokens on their way through the device.
pub(crate) struct QueuedChoice {
    /// The tokens `[rows, 1]`, for the next step.
    pub id: Array,
    queued: Queued,
}

/// A sampled token.
pub(crate) struct Sampled {
    pub id: u32,
    pub logprob: f32,
    /// The most probable tokens and their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

impl Choice {
    /// The choices of one position after the other.
    pub(crate) fn join(choices: &[Choice]) -> Result<Self> {
        let join = |each: fn(&Choice) -> Option<&Array>| -> Result<Option<Array>> {
            let arrays: Vec<&Array> = choices.iter().filter_map(each).collect();
            Ok(if arrays.is_empty() { None } else { Some(ops::concatenate(&arrays, 0)?) })
        };
        let id = join(|choice| Some(&choice.id))?;
        let logprob = join(|choice| Some(&choice.logprob))?;
        let top_ids = join(|choice| choice.top.as_ref().map(|(ids, _)| ids))?;
        let top_logprobs = join(|choice| choice.top.as_ref().map(|(_, logprobs)| logprobs))?;
        match (id, logprob) {
            (Some(id), Some(logprob)) => Ok(Choice { id, logprob, top: top_ids.zip(top_logprobs) }),
            _ => Err(Error::Internal("nothing was sampled".into())),
        }
    }

    /// Queues its computation, and that of the states of the pass that it comes from.
    pub(crate) fn queue<'a>(
        &'a self,
        states: impl Iterator<Item = &'a Array>,
    ) -> Result<QueuedChoice> {
        let top = self.top.iter().flat_map(|(ids, logprobs)| [ids, logprobs]);
        let results: Vec<_> = [&self.id, &self.logprob].into_iter().chain(top).collect();
        Ok(QueuedChoice { id: self.id.clone(), queued: Queued::new(&results, states)? })
    }
}

impl QueuedChoice {
    /// Waits until the device has computed the token of one position.
    pub(crate) fn read(&self) -> Result<Sampled> {
        self.queued.read(|arrays| {
            let [id, logprob, top @ ..] = arrays else { unreachable!("as they were queued") };
            let top = match top {
                [ids, logprobs] => best_first(ids, logprobs)?.pop().unwrap_or_default(),
                _ => Vec::new(),
            };
            Ok(Sampled { id: id.try_item_cast()?, logprob: logprob.try_item_cast()?, top })
        })
    }

    /// Waits until the device has computed the tokens of all positions.
    pub(crate) fn read_all(&self) -> Result<Vec<Sampled>> {
        self.queued.read(|arrays| {
            let [ids, logprobs, top @ ..] = arrays else { unreachable!("as they were queued") };
            let mut tops = match top {
                [ids, logprobs] => best_first(ids, logprobs)?,
                _ => Vec::new(),
            }
            .into_iter();
            let sampled = numbers(ids)?.into_iter().zip(mlx::to_vec::<f32>(logprobs)?);
            let sampled = sampled.map(|(id, logprob)| {
                let top = tops.next().unwrap_or_default();
                Sampled { id, logprob, top }
            });
            Ok(sampled.collect())
        })
    }
}

fn numbers(ids: &Array) -> Result<Vec<u32>> {
    mlx::to_vec(&ids.as_dtype(Dtype::Uint32)?)
}

/// Of each row, the ids and log-probabilities in descending order.
fn best_first(ids: &Array, logprobs: &Array) -> Result<Vec<Vec<(u32, f32)>>> {
    let count = ids.dim(-1).max(1) as usize;
    let (ids, logprobs) = (numbers(ids)?, mlx::to_vec::<f32>(logprobs)?);
    let rows = ids.chunks(count).zip(logprobs.chunks(count)).map(|(ids, logprobs)| {
        let mut top: Vec<_> = ids.iter().copied().zip(logprobs.iter().copied()).collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        top
    });
    Ok(rows.collect())
}
