//! Recordings in pieces, cut where they are quietest, for models that hear a whole piece at once.

use crate::{
    error::{Error, Result},
    generate::transcription::{
        options::{Timestamps, TranscribeOptions},
        progress::Progress,
        transcript::{Segment, Transcript, Word},
    },
    layers::cache_plan::CachePlan,
    media::audio::{ReadSamples, Recording},
    mlx::{self, queued::Queued},
    models::{
        cache::Cache,
        decode_step::{DecodeStep, prefill_embedded},
        speech::{Label, Labeller, Labels, Output, PromptedDecoder, SpeechRequest, Transcriber},
    },
};
use mlx_rs::{
    Array, Dtype,
    ops::indexing::{argmax_axis, take_along_axis},
    random,
};
use std::{mem, rc::Rc};

/// A piece is cut at the quietest place within so many seconds of its greatest length.
const SEARCH: f64 = 5.0;
/// The length of a place, in seconds.
const PLACE: f64 = 0.1;

/// A transcription in progress.
pub(crate) struct PieceTranscription {
    model: Rc<dyn Transcriber>,
    options: TranscribeOptions,
    request: SpeechRequest,
    read: ReadSamples,
    /// The samples that are read and not transcribed.
    samples: Vec<f32>,
    has_ended: bool,
    /// Where the next piece begins, in samples.
    start: usize,
    writing: Option<Box<Writing>>,
    transcript: Transcript,
}

/// The text of a piece that a language model is writing.
struct Writing {
    /// The piece, in samples.
    length: usize,
    cache: Cache,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    limit: usize,
    key: Array,
    /// The next token, on its way through the device.
    id: Array,
    queued: Queued,
}

impl PieceTranscription {
    pub fn new(
        model: Rc<dyn Transcriber>,
        options: TranscribeOptions,
        recording: &Recording,
    ) -> Result<Self> {
        Ok(PieceTranscription {
            read: recording.open(model.sample_rate())?,
            request: options.request(),
            samples: Vec::new(),
            has_ended: false,
            start: 0,
            writing: None,
            transcript: Transcript { language: options.language.clone(), ..Transcript::default() },
            model,
            options,
        })
    }

    /// Runs the next step: a piece, or a token.
    pub fn advance(&mut self, decode: &mut DecodeStep) -> Result<Progress> {
        let model = self.model.clone();
        if let (Some(mut writing), Output::Prompted(decoder)) =
            (self.writing.take(), model.output())
        {
            if !writing.step(decoder, self.options.temperatures[0], decode)? {
                self.writing = Some(writing);
                return Ok(Progress::Working);
            }
            return self.settle(decoder, *writing);
        }
        let longest = match model.output() {
            Output::Prompted(decoder) => decoder.longest(),
            Output::Labels(labeller) => labeller.longest(),
            Output::Windows(_) | Output::Aligner(_) => {
                return Err(Error::Internal("this model has no pieces".into()));
            }
        };
        let length = self.fill(longest)?;
        if length == 0 {
            let segments = self.transcript.segments.iter().map(|segment| segment.text.trim());
            self.transcript.text = segments.collect::<Vec<_>>().join(" ");
            return Ok(Progress::Finished(mem::take(&mut self.transcript)));
        }
        let piece: Vec<f32> = self.samples.drain(..length).collect();
        match model.output() {
            Output::Labels(labeller) => {
                let labels = labeller.label(&piece, &self.request)?;
                let start = self.start as f64 / f64::from(model.sample_rate());
                let segments = sentences(labeller, &labels.tokens, self.options.timestamps)?;
                let segments = segments.into_iter().map(|segment| segment.later(start)).collect();
                self.hear(labels);
                Ok(self.add(segments, length))
            }
            Output::Prompted(decoder) => {
                let encoded = model.encode(&model.features(&piece)?)?;
                let seconds = length as f64 / f64::from(model.sample_rate());
                let limit = self.options.max_tokens.unwrap_or_else(|| decoder.limit(seconds));
                let prompt = decoder.prompt(&encoded, &self.request)?;
                let language = &**decoder.decoder();
                let plan = CachePlan::new(prompt.length() + limit.min(512));
                let mut cache = language.cache(&plan);
                let hidden = prefill_embedded(language, &prompt, &mut cache)?;
                let last = hidden.dim(1) - 1;
                let logits = language.logits(&mlx::slice(&hidden, 1, last, last + 1)?)?;
                let mut key = random::key(self.options.seed)?;
                let temperature = self.options.temperatures[0];
                let (id, queued) = choose(&logits, temperature, &mut key, &mut cache)?;
                let (tokens, logprobs) = (Vec::new(), Vec::new());
                self.writing = Some(Box::new(Writing {
                    length,
                    cache,
                    tokens,
                    logprobs,
                    limit,
                    key,
                    id,
                    queued,
                }));
                Ok(Progress::Working)
            }
            Output::Windows(_) | Output::Aligner(_) => {
                Err(Error::Internal("this model has no pieces".into()))
            }
        }
    }

    /// Reads on until there is a piece, and returns its length.
    fn fill(&mut self, longest: f64) -> Result<usize> {
        let rate = f64::from(self.model.sample_rate());
        let [longest, search, place] =
            [longest, SEARCH.min(longest / 4.0), PLACE].map(|s| (s * rate) as usize);
        while !self.has_ended && self.samples.len() <= longest {
            self.has_ended = !(self.read)(&mut self.samples)?;
        }
        if self.samples.len() <= longest {
            return Ok(self.samples.len());
        }
        let from = longest - search;
        let energy = |place: &[f32]| place.iter().map(|x| x * x).sum::<f32>();
        let places = self.samples[from..longest].chunks(place).map(energy).enumerate();
        let quietest = places.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(index, _)| index);
        Ok((from + quietest * place + place / 2).min(longest))
    }

    /// The text of a piece that is written.
    fn settle(&mut self, decoder: &dyn PromptedDecoder, writing: Writing) -> Result<Progress> {
        let Writing { length, tokens, logprobs, .. } = writing;
        let said = decoder.said(&tokens, &self.request)?;
        let mut segment = self.segment(said.text, tokens, length);
        segment.avg_logprob = logprobs.iter().sum::<f32>() / logprobs.len().max(1) as f32;
        let written = logprobs.get(..segment.tokens.len()).unwrap_or_default();
        self.transcript.logprobs.extend(written);
        self.transcript.tokens.extend(&segment.tokens);
        let language = said.language;
        self.hear(Labels { language, ..Labels::default() });
        Ok(self.add(vec![segment], length))
    }

    fn segment(&self, text: String, tokens: Vec<u32>, length: usize) -> Segment {
        let seconds = |samples: usize| samples as f64 / f64::from(self.model.sample_rate());
        let (start, end) = (seconds(self.start), seconds(self.start + length));
        Segment { start, end, text, tokens, ..Segment::default() }
    }

    /// What the first piece tells of the whole recording.
    fn hear(&mut self, labels: Labels) {
        let transcript = &mut self.transcript;
        transcript.tokens.extend(labels.tokens.iter().map(|label| label.id));
        transcript.language = transcript.language.take().or(labels.language);
        transcript.emotion = transcript.emotion.take().or(labels.emotion);
        transcript.event = transcript.event.take().or(labels.event);
    }

    fn add(&mut self, mut segments: Vec<Segment>, length: usize) -> Progress {
        self.start += length;
        // The length of what is not read yet is unknown.
        let share = self.start as f32 / (self.start + self.samples.len()) as f32;
        segments.retain(|segment| !segment.text.trim().is_empty());
        self.transcript.segments.extend_from_slice(&segments);
        Progress::Segments(segments, share)
    }
}

/// Segments of labels: one, or one for each sentence where times are asked for, with its words.
fn sentences(
    labeller: &dyn Labeller,
    labels: &[Label],
    timestamps: Timestamps,
) -> Result<Vec<Segment>> {
    let pieces: Vec<String> =
        labels.iter().map(|label| labeller.piece(label.id)).collect::<Result<_>>()?;
    let mut segments: Vec<Segment> = Vec::new();
    let mut is_open = false;
    for (i, (label, piece)) in labels.iter().zip(&pieces).enumerate() {
        if !is_open {
            segments.push(Segment { start: label.start, ..Segment::default() });
        }
        let Some(segment) = segments.last_mut() else { continue };
        segment.end = label.end;
        segment.text += piece;
        segment.tokens.push(label.id);
        segment.avg_logprob += label.logprob;
        let begins = piece.starts_with(' ') || segment.words.is_empty();
        match segment.words.last_mut() {
            Some(word) if !begins => {
                word.word += piece;
                word.end = label.end;
                word.probability = word.probability.min(label.logprob.exp());
            }
            _ if timestamps == Timestamps::Words => segment.words.push(Word {
                word: piece.clone(),
                start: label.start,
                end: label.end,
                probability: label.logprob.exp(),
            }),
            _ => {}
        }
        let is_end = piece.contains(['!', '?', '。', '？', '！']);
        let is_stop =
            piece.contains('.') && pieces.get(i + 1).is_none_or(|next| next.starts_with(' '));
        is_open = timestamps == Timestamps::None || !(is_end || is_stop);
    }
    for segment in &mut segments {
        segment.avg_logprob /= segment.tokens.len() as f32;
        segment.text = segment.text.trim().to_string();
    }
    Ok(segments)
}

impl Writing {
    /// Takes the next token; whether it ended the text.
    fn step(
        &mut self,
        decoder: &dyn PromptedDecoder,
        temperature: f32,
        decode: &mut DecodeStep,
    ) -> Result<bool> {
        let (id, logprob): (u32, f32) = self.queued.read(|copies| {
            let [id, logprob] = copies else { return Err(Error::Internal("two results".into())) };
            Ok((id.try_item_cast()?, logprob.try_item_cast()?))
        })?;
        if logprob.is_nan() {
            return Err(Error::NotANumber { position: self.cache.offset as usize });
        }
        self.logprobs.push(logprob);
        if decoder.ends().contains(&id) {
            return Ok(true);
        }
        self.tokens.push(id);
        if self.tokens.len() >= self.limit {
            return Ok(true);
        }
        let logits = decode.run(decoder.decoder(), &self.id, &mut self.cache)?;
        (self.id, self.queued) = choose(&logits, temperature, &mut self.key, &mut self.cache)?;
        Ok(false)
    }
}

/// Chooses the next token by logits `[1, 1, vocabulary]`, and queues it.
fn choose(
    logits: &Array,
    temperature: f32,
    key: &mut Array,
    cache: &mut Cache,
) -> Result<(Array, Queued)> {
    let logits = logits.reshape(&[1, -1])?.as_dtype(Dtype::Float32)?;
    let logprobs = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
    let id = if temperature == 0.0 {
        argmax_axis(&logprobs, -1, true)?
    } else {
        let (own, next) = random::split(&*key, 2)?;
        *key = next;
        let scaled = logprobs.divide(Array::from_f32(temperature))?;
        random::categorical(&scaled, -1, None, &own)?.reshape(&[1, 1])?
    };
    let logprob = take_along_axis(&logprobs, &id, -1)?;
    let states = cache.arrays().into_iter().map(|array| &*array);
    let queued = Queued::new(&[&id, &logprob], states)?;
    Ok((id, queued))
}
