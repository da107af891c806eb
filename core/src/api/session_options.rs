//! The options of a session's KV cache.

use crate::{
    error::Result,
    layers::cache_plan::{Bound, CachePlan, CacheQuantization},
    models::{cache::Cache, language::LanguageModel},
};

/// The behaviour of a session when the context is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// A prompt that does not fit is an error ([`Error::ContextOverflow`]), and a generation ends at
    /// the end of the context ([`FinishReason::Length`](crate::FinishReason::Length)).
    #[default]
    Error,
    /// Drops the oldest turns after the system prompt, never the last one, until `reserve` tokens are
    /// free for the answer; [`Summary::dropped_messages`](crate::Summary::dropped_messages) counts
    /// them. The rest of the prompt is computed again; a larger reserve makes that rarer. Prompts
    /// without messages, and generations, behave as with [`Overflow::Error`].
    DropOldest {
        /// The number of tokens that are free after the prompt.
        reserve: usize,
    },
    /// The cache is a ring buffer: layers without a sliding window keep the first tokens (attention
    /// sinks) and the latest ones, and the context has no end.
    Ring(Bound),
}

/// Options of a session's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionOptions {
    /// The behaviour when the context is full.
    pub overflow: Overflow,
    /// Quantizes the keys and values.
    pub quantization: Option<CacheQuantization>,
    /// The maximum memory for checkpoints of sliding windows and recurrent states, which cannot
    /// rewind: with them, a regenerated answer or an edited message needs no new prefill.
    pub checkpoint_bytes: usize,
}

setters! {
    SessionOptions:
    overflow: Overflow,
    checkpoint_bytes: usize;
    optional
    quantization: CacheQuantization,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            overflow: Overflow::Error,
            quantization: None,
            checkpoint_bytes: 256 << 20,
        }
    }
}

impl SessionOptions {
    pub(crate) fn within(
        network: &dyn LanguageModel,
        positions: usize,
        bytes: usize,
    ) -> Result<Self> {
        let plan = CachePlan::within(network, positions, bytes)?;
        let needed = Cache::estimate(network, &plan, positions)?;
        Ok(SessionOptions {
            overflow: plan.bound.map_or(Overflow::Error, Overflow::Ring),
            quantization: plan.quantization,
            checkpoint_bytes: bytes.saturating_sub(needed),
        })
    }

    /// The maximum number of tokens in the cache of a model with this context.
    pub(crate) fn limit(&self, context: Option<usize>) -> Option<usize> {
        let is_ring = matches!(self.overflow, Overflow::Ring(_));
        context.filter(|_| !is_ring)
    }

    pub(crate) fn plan(&self) -> CachePlan {
        let bound = match self.overflow {
            Overflow::Ring(bound) => Some(bound),
            Overflow::Error | Overflow::DropOldest { .. } => None,
        };
        CachePlan { quantization: self.quantization, bound, ..CachePlan::default() }
    }
}
