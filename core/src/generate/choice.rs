//! A sampled token, from the graph that samples it to what the host reads.

use crate::{
    error::Result,
    mlx::{self, queued::Queued},
};
use mlx_rs::{Array, Dtype};

/// A sampled token, which nothing has computed yet.
pub(crate) struct Choice {
    /// The token `[1, 1]`.
    pub id: Array,
    /// Its log-probability `[1, 1]` before the filters.
    pub logprob: Array,
    /// The most probable tokens `[1, n]` in no order, and their log-probabilities.
    pub top: Option<(Array, Array)>,
}

/// A sampled token on its way through the device.
pub(crate) struct QueuedChoice {
    /// The token `[1, 1]`, for the next step.
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
    /// Waits until the device has computed it.
    pub(crate) fn read(&self) -> Result<Sampled> {
        self.queued.read(|arrays| {
            let [id, logprob, top @ ..] = arrays else { unreachable!("as they were queued") };
            let top = match top {
                [ids, logprobs] => best_first(ids, logprobs)?,
                _ => Vec::new(),
            };
            Ok(Sampled { id: id.try_item_cast()?, logprob: logprob.try_item_cast()?, top })
        })
    }
}

fn best_first(ids: &Array, logprobs: &Array) -> Result<Vec<(u32, f32)>> {
    let ids = mlx::to_vec::<u32>(&ids.as_dtype(Dtype::Uint32)?)?;
    let mut top: Vec<_> = ids.into_iter().zip(mlx::to_vec::<f32>(logprobs)?).collect();
    top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    Ok(top)
}
