//! One attempt at the text of a window: a prompt, then token by token.

use crate::{
    error::{Error, Result},
    generate::transcription::{
        rules::{Chosen, Rules},
        vocabulary::Vocabulary,
    },
    layers::cache_plan::CachePlan,
    mlx::{self, queued::Queued},
    models::{cache::Cache, decode_step::DecodeStep, speech::WindowedDecoder},
};
use mlx_rs::{Array, Dtype, ops, random};

/// How an attempt is made.
#[derive(Clone)]
pub(super) struct Plan {
    /// The tokens before the text, of which the one at `start` begins the transcript.
    pub prompt: Vec<u32>,
    pub start: usize,
    pub temperature: f32,
    pub seed: u64,
    pub has_times: bool,
    /// The most tokens of the text.
    pub limit: usize,
}

/// An attempt whose text is being written.
pub(super) struct Attempt {
    plan: Plan,
    cache: Cache,
    sampled: Vec<u32>,
    logprobs: Vec<f32>,
    no_speech: f32,
    key: Array,
    /// The next token, on its way through the device.
    next: (Chosen, Queued),
}

/// The text of a window.
#[derive(Clone, Debug)]
pub(super) struct Decoded {
    /// The tokens of the text and of times.
    pub tokens: Vec<u32>,
    /// The log-probability of each of them.
    pub logprobs: Vec<f32>,
    /// The mean log-probability, with that of the token that ends the text.
    pub avg_logprob: f32,
    /// How much longer the text is than its compression.
    pub compression_ratio: f32,
    pub no_speech: f32,
    pub temperature: f32,
}

impl Attempt {
    /// Computes the prompt over the output of the encoder `[1, positions, width]`.
    pub fn begin(
        decoder: &WindowedDecoder,
        vocabulary: &Vocabulary,
        encoded: &Array,
        plan: Plan,
    ) -> Result<Self> {
        let mut cache = decoder.decoder.cache(&CachePlan::new(decoder.context));
        let length = plan.prompt.len() as i32;
        let ids = Array::from_slice(&plan.prompt, &[1, length]);
        let logits = decoder.decode(&ids, Some(encoded), &mut cache)?;
        let no_speech = match vocabulary.no_speech {
            Some(id) => {
                let start = plan.start as i32;
                let row = mlx::slice(&logits, 1, start, start + 1)?.as_dtype(Dtype::Float32)?;
                let share = ops::softmax_axis(row, -1, true)?;
                mlx::slice(&share, 2, id as i32, id as i32 + 1)?.try_item_cast()?
            }
            None => f32::NAN,
        };
        let last = mlx::slice(&logits, 1, length - 1, length)?;
        let mut key = random::key(plan.seed)?;
        let next = choose(vocabulary, &plan, &last, &[], &mut key)?;
        let next = queue(next, &mut cache)?;
        Ok(Attempt { plan, cache, sampled: Vec::new(), logprobs: Vec::new(), no_speech, key, next })
    }

    /// Takes the next token; the text when it ended it.
    pub fn step(
        &mut self,
        decoder: &WindowedDecoder,
        vocabulary: &Vocabulary,
        decode: &mut DecodeStep,
    ) -> Result<Option<Decoded>> {
        let (id, logprob): (u32, f32) = self.next.1.read(|copies| {
            let [id, logprob] = copies else { return Err(Error::Internal("two results".into())) };
            Ok((id.try_item_cast()?, logprob.try_item_cast()?))
        })?;
        if logprob.is_nan() {
            return Err(Error::NotANumber {
                position: self.plan.prompt.len() + self.sampled.len(),
            });
        }
        self.logprobs.push(logprob);
        if id == vocabulary.end {
            return self.decoded(vocabulary).map(Some);
        }
        self.sampled.push(id);
        let length = self.plan.prompt.len() + self.sampled.len();
        if self.sampled.len() >= self.plan.limit || length > decoder.context {
            return self.decoded(vocabulary).map(Some);
        }
        let logits = decode.run(&decoder.decoder, &self.next.0.id, &mut self.cache)?;
        let next = choose(vocabulary, &self.plan, &logits, &self.sampled, &mut self.key)?;
        self.next = queue(next, &mut self.cache)?;
        Ok(None)
    }

    fn decoded(&mut self, vocabulary: &Vocabulary) -> Result<Decoded> {
        let tokens = std::mem::take(&mut self.sampled);
        let mut logprobs = std::mem::take(&mut self.logprobs);
        let avg_logprob = logprobs.iter().sum::<f32>() / (tokens.len() + 1) as f32;
        logprobs.truncate(tokens.len());
        let text = vocabulary.text(&tokens)?;
        Ok(Decoded {
            tokens,
            logprobs,
            avg_logprob,
            compression_ratio: compression_ratio(text.trim()),
            no_speech: self.no_speech,
            temperature: self.plan.temperature,
        })
    }
}

fn choose(
    vocabulary: &Vocabulary,
    plan: &Plan,
    logits: &Array,
    sampled: &[u32],
    key: &mut Array,
) -> Result<Chosen> {
    let rules = Rules { vocabulary, has_times: plan.has_times };
    if plan.temperature == 0.0 {
        return rules.choose(logits, sampled, 0.0, None);
    }
    let (own, next) = random::split(&*key, 2)?;
    *key = next;
    rules.choose(logits, sampled, plan.temperature, Some(&own))
}

fn queue(chosen: Chosen, cache: &mut Cache) -> Result<(Chosen, Queued)> {
    let states = cache.arrays().into_iter().map(|array| &*array);
    let queued = Queued::new(&[&chosen.id, &chosen.logprob], states)?;
    Ok((chosen, queued))
}

/// How much longer a text is than its zlib compression: repetitions compress well.
fn compression_ratio(text: &str) -> f32 {
    let compressed = miniz_oxide::deflate::compress_to_vec_zlib(text.as_bytes(), 6);
    text.len() as f32 / compressed.len() as f32
}
