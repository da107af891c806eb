//! Speculation in a generation: draft tokens become a verify pass, and what it agrees with becomes the
//! next tokens.
//!
//! Every position of the pass is sampled as a single step would have sampled it, with the sampler's own
//! state. The longest prefix on which draft and samples agree is kept, and the first sample behind it.
//! So the tokens are those of single steps, whatever the draft.

use crate::{
    engine::{
        draft_model::Drafted,
        generation::Run,
        request::Request,
        speculator::{Limits, Plan, Source},
    },
    error::{Error, Result},
    layers::embedded::Key,
};
use mlx_rs::{Array, transforms::async_eval};
use std::time::Instant;

impl Run {
    /// How draft tokens behind the tokens that were given out are to be verified, if they are.
    pub fn plan(&mut self, request: &Request) -> Option<Plan> {
        // The mask of a token needs the tokens before it, and a pause must not wait for a long pass.
        if self.constraint.is_some() || request.engine.expects_pause() {
            return None;
        }
        let limits = Limits {
            speculation: request.options.speculation,
            room: request.options.max_tokens - self.given.len(),
            has_model: self.draft_model.is_some(),
        };
        let prompt = &self.prompt.tokens[..self.prompt_tokens];
        self.speculator.plan(prompt, &self.given, &self.loaded.costs.borrow(), &limits)
    }

    /// The draft tokens of a plan, and whether nothing had to be compiled for them; none where there are
    /// none yet.
    fn draft(&mut self, plan: &Plan) -> Result<Option<(Vec<u32>, bool)>> {
        let vocabulary = self.loaded.language()?.vocabulary();
        let loaded = match (plan.source, &self.draft_model) {
            (Source::Model, Some(loaded)) => loaded.clone(),
            _ => {
                let draft = self.speculator.lookup(plan.length - 1);
                let is_known = draft.iter().all(|id| *id < vocabulary);
                return Ok(is_known.then_some((draft, true)));
            }
        };
        let mut place = self.slot.draft_model.borrow_mut();
        if !place.as_ref().is_some_and(|model| loaded.drafts_in(model)) {
            *place = Some(loaded.drafting()?);
        }
        let Some(model) = &mut *place else { return Ok(None) };
        let tokens = [&self.prompt.tokens[..self.prompt_tokens], &self.given[..]].concat();
        match model.draft(&tokens, plan.length - 1, vocabulary) {
            Ok(Drafted::Tokens(draft, is_ready)) => Ok(Some((draft, is_ready))),
            Ok(Drafted::Reading) => Ok(None),
            // The generation goes on without drafts.
            Err(Error::MemoryLimit { .. } | Error::TokenOutOfVocabulary { .. }) => {
                (self.draft_model, *place) = (None, None);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Verifies draft tokens, if there are any: those that the sampler would have sampled itself wait to
    /// be given out, and the cache keeps them.
    pub fn speculate(&mut self, request: &Request) -> Result<bool> {
        let Some(plan) = self.plan(request) else { return Ok(false) };
        let started = Instant::now();
        let Some((draft, is_ready)) = self.draft(&plan)? else { return Ok(false) };
        let last = *self.given.last().expect("the prefill queues the first token");
        let ids = [&[last], &draft[..]].concat();
        let (sampled, mut samplers, is_compiled) = {
            let cache = &mut self.slot.prefix_cache.borrow_mut().cache;
            let is_compiled = self.loaded.has_compiled_verify(cache, ids.len());
            let array = Array::from_slice(&ids, &[1, ids.len() as i32]);
            let logits = match self.loaded.verify(&array, cache) {
                // A step may still fit.
                Err(Error::MemoryLimit { .. }) => return Ok(false),
                logits => logits?,
            };
            let (choice, samplers) = self.sampler.choose_each(&logits)?;
            let states = cache.arrays().into_iter().map(|array| &*array);
            (choice.queue(states)?.read_all()?, samplers, is_compiled)
        };
        // A token that ends the text is the last one.
        let right = (sampled.iter().zip(&draft))
            .take_while(|(sampled, id)| sampled.id == **id && !self.ends.contains(id))
            .count();
        {
            let cache = &mut self.slot.prefix_cache.borrow_mut().cache;
            cache.accept(right as i32 + 1)?;
            async_eval(cache.arrays().into_iter().map(|array| &*array))?;
        }
        self.sampler = samplers.swap_remove(right);
        let keys: Vec<Key> = ids[..=right].iter().copied().map(Key::token).collect();
        self.remember(&keys, false);
        self.speculator.pending = sampled.into_iter().take(right + 1).collect();
        self.speculator.note_pass(&plan, right);
        if is_compiled && is_ready {
            let costs = &mut self.loaded.costs.borrow_mut()[plan.source as usize];
            costs.add_pass(plan.length, started.elapsed());
        }
        tracing::trace!(drafted = draft.len(), accepted = right, "verified draft tokens");
        Ok(true)
    }
}
