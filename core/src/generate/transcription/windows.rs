//! Recordings of any length, window by window: where a window ends, what the next one is told of it, and
//! when an attempt is made again. Follows the code of OpenAI; the loudness that features are clamped by is
//! that of the whole recording, which is therefore read twice and never held in memory.

use crate::{
    error::{Error, Result},
    generate::transcription::{
        alignment::Aligner,
        frames::{FrameWindow, Frames},
        hallucination::{self, Silence},
        options::{Timestamps, TranscribeOptions},
        progress::Progress,
        transcript::{Segment, Transcript},
        vocabulary::Vocabulary,
        window::{Attempt, Decoded, Plan},
    },
    layers::{audio::log_mel::LogMel, cache_plan::CachePlan},
    media::audio::Recording,
    mlx,
    models::{
        decode_step::DecodeStep,
        speech::{Output, Transcriber, WindowedDecoder},
    },
};
use mlx_rs::{
    Array, Dtype, ops,
    transforms::{async_eval, eval},
};
use std::{mem, rc::Rc, sync::Arc};

/// Log-mel frames a second.
const FRAMES: f64 = 100.0;
/// The logarithm of the energy of a frame without sound.
const SILENCE: f32 = -10.0;
/// Log-mel frames of one step of time tokens.
const FRAMES_OF_TIME: usize = 2;
/// Above this temperature, a text is not told to the next window.
const RELIABLE_TEMPERATURE: f32 = 0.5;

/// A transcription in progress.
pub(crate) struct WindowedTranscription {
    model: Rc<dyn Transcriber>,
    vocabulary: Arc<Vocabulary>,
    options: TranscribeOptions,
    recording: Recording,
    stage: Stage,
    /// The largest logarithm of an energy.
    loudest: Array,
    /// The frames of the recording.
    total: usize,
    /// The first frame of the next window.
    seek: usize,
    language: Option<String>,
    /// All tokens so far, those of the prompt of the options first.
    context: Vec<u32>,
    /// The tokens from here on are told to the next window.
    told_from: usize,
    /// Where speech ended last, in seconds.
    last_end: f64,
    transcript: Transcript,
}

enum Stage {
    /// The recording is read for its loudness.
    Measure(Frames),
    Window(FrameWindow),
    Decode(Box<Decoding>),
    Done,
}

/// A window whose text is being written.
struct Decoding {
    frames: FrameWindow,
    encoded: Array,
    /// Its frames.
    size: usize,
    plan: Plan,
    attempt: Attempt,
    /// The index of its temperature.
    attempts: usize,
}

impl WindowedTranscription {
    /// Begins to transcribe a recording.
    pub fn new(
        model: Rc<dyn Transcriber>,
        vocabulary: Arc<Vocabulary>,
        options: TranscribeOptions,
        recording: Recording,
    ) -> Result<Self> {
        options.check()?;
        let prompt = options.prompt.as_deref().map(str::trim).filter(|text| !text.is_empty());
        let context = match prompt {
            Some(text) => vocabulary.tokenizer.encode(&format!(" {text}"), false)?,
            None => Vec::new(),
        };
        let language = match &options.language {
            None if vocabulary.languages.is_empty() => Some("en".into()),
            given => given.clone(),
        };
        if let Some(language) = &language {
            vocabulary.prompt(language, &options)?;
        }
        let frames = Frames::new(recording.open(model.sample_rate())?);
        Ok(WindowedTranscription {
            transcript: Transcript { language: language.clone(), ..Transcript::default() },
            stage: Stage::Measure(frames),
            loudest: Array::from_f32(SILENCE),
            total: 0,
            seek: 0,
            language,
            context,
            told_from: 0,
            last_end: 0.0,
            model,
            vocabulary,
            options,
            recording,
        })
    }

    /// Runs the next step: some seconds of features, an encoder, or a token.
    ///
    /// # Errors
    /// Those of the recording; [`Error::NotANumber`]; [`Error::Mlx`].
    pub fn advance(&mut self, decode: &mut DecodeStep) -> Result<Progress> {
        let model = self.model.clone();
        let decoder = windows(&*model)?;
        match mem::replace(&mut self.stage, Stage::Done) {
            Stage::Measure(mut frames) => {
                if let Some(energies) = frames.next(&decoder.front_end, decoder.frames as usize)? {
                    self.total += energies.dim(0) as usize;
                    self.loudest = ops::maximum(&self.loudest, energies.max(None)?)?;
                    eval([&self.loudest])?;
                    self.stage = Stage::Measure(frames);
                } else {
                    if self.is_silent()? {
                        // What a model writes of it would be invented.
                        self.total = 0;
                    }
                    let again = Frames::new(self.recording.open(self.model.sample_rate())?);
                    self.stage = Stage::Window(FrameWindow::new(again));
                }
                Ok(Progress::Working)
            }
            Stage::Window(frames) if self.seek >= self.total => {
                drop(frames);
                let spoken = &self.transcript.tokens;
                self.transcript.text = self.vocabulary.text(spoken)?.trim().to_string();
                Ok(Progress::Finished(mem::take(&mut self.transcript)))
            }
            Stage::Window(frames) => {
                self.stage = Stage::Decode(Box::new(self.begin(decoder, frames)?));
                Ok(Progress::Working)
            }
            Stage::Decode(mut decoding) => {
                let step = decoding.attempt.step(decoder, &self.vocabulary, decode)?;
                let Some(decoded) = step else {
                    self.stage = Stage::Decode(decoding);
                    return Ok(Progress::Working);
                };
                let next = decoding.attempts + 1;
                if self.is_failure(&decoded) && next < self.options.temperatures.len() {
                    decoding.attempts = next;
                    decoding.plan.temperature = self.options.temperatures[next];
                    decoding.attempt = Attempt::begin(
                        decoder,
                        &self.vocabulary,
                        &decoding.encoded,
                        decoding.plan.clone(),
                    )?;
                    self.stage = Stage::Decode(decoding);
                    return Ok(Progress::Working);
                }
                let segments = self.settle(decoder, &decoding, decoded)?;
                self.stage = Stage::Window(decoding.frames);
                let share = self.seek as f32 / self.total.max(1) as f32;
                Ok(Progress::Segments(segments, share.min(1.0)))
            }
            Stage::Done => Err(Error::Internal("the transcription is over".into())),
        }
    }

    /// Whether no frame has any energy.
    fn is_silent(&self) -> Result<bool> {
        let loudest: f32 = self.loudest.try_item_cast()?;
        Ok(loudest <= SILENCE)
    }

    /// Encodes the window at `seek` and begins its text.
    fn begin(&mut self, decoder: &WindowedDecoder, mut frames: FrameWindow) -> Result<Decoding> {
        let size = (self.total - self.seek).min(decoder.frames as usize);
        let energies = frames.at(&decoder.front_end, self.seek, size)?;
        let energies = energies.ok_or_else(|| {
            let reason = "it became shorter while it was read; transcribe it again".into();
            Error::Audio { name: "the recording".into(), reason }
        })?;
        let features = LogMel::scaled(&energies, &self.loudest)?;
        let silence = decoder.frames - features.dim(0);
        let features = ops::pad(&features, &[(0, silence), (0, 0)], None, None)?.expand_dims(0)?;
        let encoded = self.model.encode(&features)?;
        async_eval([&encoded])?;
        let language = match &self.language {
            Some(language) => language.clone(),
            None => {
                let language = self.detect(decoder, &encoded)?;
                self.language = Some(language.clone());
                self.transcript.language = self.language.clone();
                language
            }
        };
        let plan = self.plan(decoder, &language)?;
        let attempt = Attempt::begin(decoder, &self.vocabulary, &encoded, plan.clone())?;
        Ok(Decoding { frames, encoded, size, plan, attempt, attempts: 0 })
    }

    fn plan(&self, decoder: &WindowedDecoder, language: &str) -> Result<Plan> {
        let told = &self.context[self.told_from..];
        let most = decoder.context / 2 - 1;
        let mut prompt = Vec::new();
        if !told.is_empty() {
            prompt.push(self.vocabulary.previous);
            prompt.extend(&told[told.len().saturating_sub(most)..]);
        }
        let start = prompt.len();
        prompt.extend(self.vocabulary.prompt(language, &self.options)?);
        let has_times = self.options.timestamps != Timestamps::None;
        if !has_times {
            prompt.push(self.vocabulary.no_timestamps);
        }
        let limit = self.options.max_tokens.unwrap_or(usize::MAX).min(decoder.context / 2);
        let temperature = self.options.temperatures[0];
        Ok(Plan { prompt, start, temperature, seed: self.options.seed, has_times, limit })
    }

    /// The most probable language of the first window.
    fn detect(&self, decoder: &WindowedDecoder, encoded: &Array) -> Result<String> {
        let whole = decoder.frames as usize;
        if self.total >= whole {
            return detect(decoder, &self.vocabulary, encoded);
        }
        // As references have it, the silence after a short recording has features of its own here.
        let rate = self.model.sample_rate();
        let samples = self.recording.start(rate, whole * rate as usize / FRAMES as usize)?;
        let encoded = self.model.encode(&self.model.features(&samples)?)?;
        detect(decoder, &self.vocabulary, &encoded)
    }

    fn is_failure(&self, decoded: &Decoded) -> bool {
        let o = &self.options;
        let is_unlikely = o.logprob_threshold.is_some_and(|least| decoded.avg_logprob < least);
        let repeats =
            o.compression_ratio_threshold.is_some_and(|most| decoded.compression_ratio > most);
        let is_silent = o.no_speech_threshold.is_some_and(|most| decoded.no_speech > most);
        (repeats || is_unlikely) && !(is_silent && is_unlikely)
    }

    fn is_silence(&self, decoded: &Decoded) -> bool {
        let o = &self.options;
        let is_likely = o.logprob_threshold.is_some_and(|least| decoded.avg_logprob > least);
        o.no_speech_threshold.is_some_and(|most| decoded.no_speech > most) && !is_likely
    }

    /// Turns the text of a window into segments and moves on.
    fn settle(
        &mut self,
        decoder: &WindowedDecoder,
        decoding: &Decoding,
        decoded: Decoded,
    ) -> Result<Vec<Segment>> {
        let (from, size) = (self.seek, decoding.size);
        if self.is_silence(&decoded) {
            self.seek += size;
            return Ok(Vec::new());
        }
        let offset = from as f64 / FRAMES;
        let (mut segments, next) = self.split(&decoded, offset, size)?;
        self.seek += next;
        if self.options.timestamps == Timestamps::Words {
            let language = self.language.clone().unwrap_or_default();
            let prompt = self.vocabulary.prompt(&language, &self.options)?;
            let aligner = Aligner {
                decoder,
                vocabulary: &self.vocabulary,
                encoded: &decoding.encoded,
                prompt: &prompt,
                language: &language,
            };
            aligner.add_words(&mut segments, size, offset, self.last_end)?;
            let ends_alone = ends_with_single_time(&self.vocabulary, &decoded.tokens);
            let last_word = segments.iter().rev().find_map(|segment| segment.words.last());
            let last_end = last_word.map(|word| word.end);
            if let Some(end) = last_end.filter(|end| !ends_alone && *end > offset) {
                self.seek = (end * FRAMES).round() as usize;
            }
            if let Some(threshold) = self.options.hallucination_silence_threshold {
                let silence = Silence {
                    threshold: f64::from(threshold),
                    window: offset..offset + size as f64 / FRAMES,
                    window_end: offset + f64::from(decoder.frames) / FRAMES,
                    total: self.total as f64 / FRAMES,
                    last_end: self.last_end,
                    word_end: last_end.filter(|_| !ends_alone),
                };
                if let Some(seek) = hallucination::remove(&mut segments, &silence) {
                    self.seek = ((seek * FRAMES).round() as usize).min(self.total);
                }
            }
            let last = segments.iter().rev().find_map(|segment| segment.words.last());
            self.last_end = last.map_or(self.last_end, |word| word.end);
        }
        // A window that gives nothing ends after itself, so that the next one is another.
        self.seek = self.seek.max(from + 1);
        segments.retain(|segment| segment.start != segment.end && !segment.text.trim().is_empty());
        let mut done = 0;
        for segment in &segments {
            let at = place(&decoded.tokens[done..], &segment.tokens) + done;
            done = at + segment.tokens.len();
            self.transcript.logprobs.extend(&decoded.logprobs[at..done]);
            self.transcript.tokens.extend(&segment.tokens);
            self.context.extend(&segment.tokens);
        }
        self.transcript.segments.extend_from_slice(&segments);
        let is_unreliable = decoded.temperature > RELIABLE_TEMPERATURE;
        if !self.options.condition_on_previous_text || is_unreliable {
            self.told_from = self.context.len();
        }
        Ok(segments)
    }

    /// The segments between pairs of times, and how many frames later the next window begins.
    fn split(&self, decoded: &Decoded, offset: f64, size: usize) -> Result<(Vec<Segment>, usize)> {
        let (tokens, vocabulary) = (&decoded.tokens, &self.vocabulary);
        let segment = |start: f64, end: f64, tokens: &[u32]| {
            Ok::<_, Error>(Segment {
                start: offset + start,
                end: offset + end,
                text: vocabulary.text(tokens)?,
                tokens: tokens.to_vec(),
                avg_logprob: decoded.avg_logprob,
                compression_ratio: decoded.compression_ratio,
                no_speech_probability: decoded.no_speech,
                temperature: decoded.temperature,
                words: Vec::new(),
            })
        };
        let is_time = |id: &u32| vocabulary.is_timestamp(*id);
        let ends_alone = ends_with_single_time(vocabulary, tokens);
        let pairs = (1..tokens.len()).filter(|i| is_time(&tokens[i - 1]) && is_time(&tokens[*i]));
        let mut borders: Vec<usize> = pairs.collect();
        if borders.is_empty() {
            let last = tokens.iter().rev().find(|id| is_time(id));
            let end = match last {
                Some(last) if *last != vocabulary.first_timestamp => vocabulary.seconds(*last),
                _ => size as f64 / FRAMES,
            };
            return Ok((vec![segment(0.0, end, tokens)?], size));
        }
        if ends_alone {
            borders.push(tokens.len());
        }
        let (mut segments, mut from) = (Vec::new(), 0);
        for border in borders {
            let part = &tokens[from..border];
            let time = |id: Option<&u32>| {
                id.filter(|id| is_time(id)).map_or(0.0, |id| vocabulary.seconds(*id))
            };
            segments.push(segment(time(part.first()), time(part.last()), part)?);
            from = border;
        }
        let last = tokens[from - 1];
        let next = (last - vocabulary.first_timestamp) as usize * FRAMES_OF_TIME;
        Ok((segments, if ends_alone { size } else { next }))
    }
}

/// The decoder of a model that transcribes windows.
fn windows(model: &dyn Transcriber) -> Result<&WindowedDecoder> {
    match model.output() {
        Output::Windows(decoder) => Ok(decoder),
        _ => Err(Error::Internal("the model has no windows".into())),
    }
}

/// Whether a text ends with one time and not with two: no speech follows.
fn ends_with_single_time(vocabulary: &Vocabulary, tokens: &[u32]) -> bool {
    matches!(tokens, [.., before, last]
        if !vocabulary.is_timestamp(*before) && vocabulary.is_timestamp(*last))
}

/// Where `part` begins in `whole`.
fn place(whole: &[u32], part: &[u32]) -> usize {
    whole.windows(part.len().max(1)).position(|window| window == part).unwrap_or(0)
}

/// The most probable language of the output of an encoder.
pub(super) fn detect(
    decoder: &WindowedDecoder,
    vocabulary: &Vocabulary,
    encoded: &Array,
) -> Result<String> {
    let mut cache = decoder.decoder.cache(&CachePlan::new(1));
    let start = Array::from_slice(&[vocabulary.start], &[1, 1]);
    let logits = decoder.decode(&start, Some(encoded), &mut cache)?;
    let logits: Vec<f32> = mlx::to_vec(&logits.as_dtype(Dtype::Float32)?)?;
    let score = |language: &&super::vocabulary::Language| logits[language.token as usize];
    let best = vocabulary.languages.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
    Ok(best.map_or_else(|| "en".into(), |language| language.code.clone()))
}
