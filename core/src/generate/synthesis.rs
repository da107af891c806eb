//! Text to speech by any kind of model, step by step.

use crate::{
    error::{Error, Result},
    generate::{choice::QueuedChoice, options::GenerateOptions, sampler::Sampler},
    layers::cache_plan::CachePlan,
    mlx,
    models::{
        cache::Cache,
        codec::Codec,
        decode_step::{DecodeStep, prefill},
        language::LanguageModel,
        speaker::{Script, SpeakOptions, Speaker, SpeakerOutput, Speech, ToSamples, TokenSpeaker},
    },
};
use mlx_rs::Array;
use std::{collections::VecDeque, mem, rc::Rc};

/// Speech in progress.
pub(crate) struct SpeechRun {
    speaker: Rc<dyn Speaker>,
    codec: Option<Rc<dyn Codec>>,
    options: SpeakOptions,
    pieces: VecDeque<Vec<u32>>,
    writing: Option<Box<Writing>>,
}

/// What a step has brought.
pub(crate) enum SpeechProgress {
    Working,
    Spoken(Speech),
    Finished,
}

/// A piece that a language model is speaking.
struct Writing {
    cache: Cache,
    sampler: Sampler,
    samples: Box<dyn ToSamples>,
    limit: usize,
    count: usize,
    next: QueuedChoice,
    /// What is not given out yet.
    speech: Speech,
}

impl SpeechRun {
    pub fn new(
        speaker: Rc<dyn Speaker>,
        codec: Option<Rc<dyn Codec>>,
        script: &Script,
        options: SpeakOptions,
    ) -> Result<Self> {
        let pieces = speaker.pieces(script, &options, codec.as_ref())?.into();
        Ok(SpeechRun { speaker, codec, options, pieces, writing: None })
    }

    /// Runs the next step: a piece, or a token.
    pub fn advance(&mut self, decode: &mut DecodeStep) -> Result<SpeechProgress> {
        let speaker = self.speaker.clone();
        if let (Some(mut writing), SpeakerOutput::Tokens(speaker)) =
            (self.writing.take(), speaker.output())
        {
            let has_ended = writing.step(speaker, decode)?;
            let speech = writing.take_speech(has_ended);
            if !has_ended {
                self.writing = Some(writing);
            }
            return Ok(speech.map_or(SpeechProgress::Working, SpeechProgress::Spoken));
        }
        let Some(piece) = self.pieces.pop_front() else { return Ok(SpeechProgress::Finished) };
        match speaker.output() {
            SpeakerOutput::Pieces(speaker) => {
                Ok(SpeechProgress::Spoken(speaker.speak(&piece, &self.options)?))
            }
            SpeakerOutput::Tokens(speaker) => {
                let codec = self.codec.as_ref();
                self.writing = Some(Box::new(Writing::new(speaker, piece, &self.options, codec)?));
                Ok(SpeechProgress::Working)
            }
        }
    }
}

impl Writing {
    fn new(
        speaker: &dyn TokenSpeaker,
        piece: Vec<u32>,
        options: &SpeakOptions,
        codec: Option<&Rc<dyn Codec>>,
    ) -> Result<Self> {
        let decoder = &**speaker.decoder();
        let sampling = sampling(speaker, options);
        sampling.check(decoder.vocabulary())?;
        if let Some(&id) = piece.iter().find(|id| **id >= decoder.vocabulary()) {
            return Err(Error::TokenOutOfVocabulary { id, vocabulary: decoder.vocabulary() });
        }
        let mut samples = speaker.samples(options.noise(), codec)?;
        let mut sampler = Sampler::new(&sampling, &piece, speaker.ends(), None)?;
        let limit = sampling.max_tokens;
        let mut cache = decoder.cache(&CachePlan::new(piece.len() + limit.min(512)));
        let ids = Array::from_slice(&piece, &[1, piece.len() as i32]);
        let hidden = prefill(decoder, &ids, &mut cache)?;
        let last = hidden.dim(1) - 1;
        let output = decoder.logits(&mlx::slice(&hidden, 1, last, last + 1)?)?;
        let (logits, hidden) = split(decoder, &output)?;
        samples.push(None, hidden.as_ref())?;
        let next = choose(&mut sampler, &logits, &mut cache)?;
        let speech = Speech { tokens: piece, ..Speech::default() };
        Ok(Writing { cache, sampler, samples, limit, count: 0, next, speech })
    }

    /// Takes the next token; whether it ends the piece.
    fn step(&mut self, speaker: &dyn TokenSpeaker, decode: &mut DecodeStep) -> Result<bool> {
        let sampled = self.next.read()?;
        if sampled.logprob.is_nan() {
            return Err(Error::NotANumber { position: self.cache.offset as usize });
        }
        let mut has_ended = self.count >= self.limit || speaker.ends().contains(&sampled.id);
        if !has_ended {
            self.count += 1;
            self.speech.generated.push(sampled.id);
            let decoder = speaker.decoder();
            let output = decode.run(decoder, &self.next.id, &mut self.cache)?;
            let (logits, hidden) = split(&**decoder, &output)?;
            let samples = self.samples.push(Some(sampled.id), hidden.as_ref())?;
            self.take(samples)?;
            has_ended = self.count >= self.limit;
            if !has_ended {
                self.next = choose(&mut self.sampler, &logits, &mut self.cache)?;
            }
        }
        if has_ended {
            let samples = self.samples.finish()?;
            self.take(samples)?;
        }
        Ok(has_ended)
    }

    fn take(&mut self, samples: Option<Array>) -> Result<()> {
        if let Some(samples) = samples {
            self.speech.samples.extend(mlx::to_vec::<f32>(&samples)?);
        }
        Ok(())
    }

    /// What there is to hear, or what is left at the end.
    fn take_speech(&mut self, has_ended: bool) -> Option<Speech> {
        (has_ended || !self.speech.samples.is_empty()).then(|| {
            self.speech.codes = self.samples.take_codes();
            mem::take(&mut self.speech)
        })
    }
}

/// The options of the sampler.
fn sampling(speaker: &dyn TokenSpeaker, options: &SpeakOptions) -> GenerateOptions {
    let own = speaker.sampling();
    GenerateOptions {
        temperature: options.temperature.unwrap_or(own.temperature),
        top_p: options.top_p.unwrap_or(own.top_p),
        top_k: options.top_k.unwrap_or(own.top_k),
        repetition_penalty: options.repetition_penalty.unwrap_or(own.repetition_penalty),
        penalty_context: own.penalty_context,
        max_tokens: options.max_tokens.unwrap_or(own.max_tokens),
        seed: Some(options.seed.unwrap_or(0)),
        ..GenerateOptions::default()
    }
}

/// The logits `[1, 1, vocabulary]`, and what comes after them.
fn split(decoder: &dyn LanguageModel, output: &Array) -> Result<(Array, Option<Array>)> {
    let (vocabulary, width) = (decoder.vocabulary() as i32, output.dim(-1));
    if width == vocabulary {
        return Ok((output.clone(), None));
    }
    let logits = mlx::slice(output, 2, 0, vocabulary)?;
    Ok((logits, Some(mlx::slice(output, 2, vocabulary, width)?)))
}

/// Samples the next token, and queues it.
fn choose(sampler: &mut Sampler, logits: &Array, cache: &mut Cache) -> Result<QueuedChoice> {
    let choice = sampler.choose(logits, None)?;
    choice.queue(cache.arrays().into_iter().map(|array| &*array))
}
