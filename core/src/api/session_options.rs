//! How a session keeps its cache.

use crate::{
    error::Result,
    layers::cache_plan::{Bound, CachePlan, CacheQuantization},
    models::{cache::Cache, language::LanguageModel},
};

/// What happens when the context is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// A prompt that does not fit is refused ([`Error::ContextOverflow`]), and generation ends
    /// where the context does ([`FinishReason::Length`](crate::engine::generation::FinishReason)).
    #[default]
    Error,
    /// The oldest messages after the system prompt are left out, whole turns at once and never the
    /// last one, until `reserve` tokens are free for the answer; the summary says how many. What
    /// follows them has to be computed again: a larger reserve makes that rarer. Prompts that are
    /// no messages, and generation, are treated as under [`Overflow::Error`].
    DropOldest {
        /// Tokens that shall be free after the prompt.
        reserve: usize,
    },
    /// There is no end: layers without a window of their own remember the first tokens and the
    /// latest.
    Ring(Bound),
}

/// How a session remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// What happens when the context is full.
    pub overflow: Overflow,
    /// Keeps keys and values in fewer bits.
    pub quantization: Option<CacheQuantization>,
    /// The most bytes that are spent, beyond the memory of the conversation, on going back to
    /// where windows and recurrences cannot go back by themselves: to an answer that is asked for
    /// again, or to a message that is edited.
    pub checkpoint_bytes: usize,
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

    /// The most tokens that may be remembered of a model with such a context.
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
