//! [Soprano](https://huggingface.co/ekwek/Soprano-1.1-80M): a Qwen 3 that reads a sentence, and a Vocos that
//! makes samples of its hidden states, so that its tokens only say when the sentence ends.
//!
//! Follows `soprano` of mlx-audio, and for the samples the authors' package: mlx-audio divides by the sum
//! of the windows instead of their squares, and keeps the two frequencies that training left alone. Sizes
//! of the decoder are those of its tensors, because published configs do not have them.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Build, Checkpoint, Entry, prelude::*, text},
    layers::audio::{
        conv_next::ConvNextSizes,
        istft_head::{IstftHead, IstftSizes},
        noise::Noise,
        sequence::Sequence,
    },
    models::{
        codec::Codec,
        speaker::{
            Script, SpeakOptions, Speaker, SpeakerOutput, SpeechSampling, ToSamples, TokenSpeaker,
        },
    },
    text::{Tokenizer, spoken_english},
};
use std::rc::Rc;

pub const ENTRY: Entry = Entry {
    model_types: &["soprano"],
    build: Build::Speaker(build),
    recommended: Recommended::NOTHING,
    files: FileRules::USUAL,
    processor: None,
};

/// Shorter sentences are spoken together with the one before.
const SHORT: usize = 30;
/// The most hidden states that wait for being decoded together.
const MOST_WAITING: usize = 16;

#[derive(Deserialize)]
struct Config {
    hidden_size: Size,
    sample_rate: Option<Size>,
    decoder_config: Option<DecoderConfig>,
}

#[derive(Deserialize)]
struct DecoderConfig {
    hop_length: Option<Size>,
    upscale: Option<Size>,
}

struct Soprano {
    sample_rate: u32,
    language: Rc<dyn LanguageModel>,
    decoder: Rc<StateDecoder>,
    tokenizer: Tokenizer,
    ends: Vec<u32>,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Speaker>> {
    let (c, w): (Config, _) = (config::read(checkpoint.config)?, checkpoint.weights);
    let decoder = StateDecoder::read(&w.at("decoder"), &c)?;
    let language = text::language("qwen3", checkpoint.config, w)?;
    let tokenizer = Tokenizer::load(checkpoint.files)?;
    let pad = tokenizer.special_token("pad_token").and_then(|token| tokenizer.token_id(token));
    let stop = pad.or_else(|| tokenizer.token_id("[STOP]")).ok_or_else(|| Error::Tokenizer {
        file: "tokenizer.json".into(),
        reason: "it has no token `[STOP]`; use the tokenizer of the model".into(),
    })?;
    Ok(Box::new(Soprano {
        sample_rate: c.sample_rate.map_or(32_000, |rate| *rate as u32),
        language: Rc::new(WithStates(language)),
        decoder: Rc::new(decoder),
        ends: [stop].into_iter().chain(tokenizer.eos_token_id()).collect(),
        tokenizer,
    }))
}

/// A language model whose logits are followed by the hidden states that they come from.
struct WithStates(Box<dyn LanguageModel>);

impl Wrapper for WithStates {
    fn inner(&self) -> &dyn LanguageModel {
        &*self.0
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let logits = self.0.logits(hidden)?;
        Ok(ops::concatenate(&[&logits, &hidden.as_dtype(logits.dtype())?], -1)?)
    }
}

impl Speaker for Soprano {
    fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    /// It has one voice, without a name.
    fn voices(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn pieces(
        &self,
        script: &Script,
        options: &SpeakOptions,
        _: Option<&Rc<dyn Codec>>,
    ) -> Result<Vec<Vec<u32>>> {
        let text = options.only_text(script)?;
        if let Some(voice) = options.voices.first() {
            let reason = format!("`{voice}`, but this model has one voice without a name");
            return Err(Error::option("voice", reason));
        }
        if options.reference.is_some() {
            return Err(Error::option("reference", "this model clones no voices"));
        }
        let mut pieces = Vec::new();
        for line in text.lines() {
            for sentence in sentences(&spoken_english(line)?) {
                let prompt = format!("[STOP][TEXT]{sentence}[START]");
                pieces.push(self.tokenizer.encode(&prompt, false)?);
            }
        }
        if pieces.is_empty() {
            return Err(Error::option("text", "it has no English words"));
        }
        Ok(pieces)
    }

    fn output(&self) -> SpeakerOutput<'_> {
        SpeakerOutput::Tokens(self)
    }
}

/// The sentences of a text. A short one is joined to the one before, or at the beginning to the next.
fn sentences(text: &str) -> Vec<String> {
    let mut sentences: Vec<String> = Vec::new();
    let mut start = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let bytes = rest.as_bytes();
        let is_end = |i: &usize| bytes[*i] == b' ' && b".!?".contains(&bytes[*i - 1]);
        let end = (1..bytes.len()).find(is_end).unwrap_or(bytes.len());
        let sentence = &rest[..end];
        rest = rest[end..].trim_start();
        match sentences.last_mut() {
            Some(last) if sentence.len() < SHORT => *last = format!("{last} {sentence}"),
            _ => {
                let whole = format!("{start} {sentence}").trim().to_string();
                if whole.len() < SHORT && !rest.is_empty() {
                    start = whole;
                } else {
                    start.clear();
                    sentences.push(whole);
                }
            }
        }
    }
    sentences
}

impl TokenSpeaker for Soprano {
    fn decoder(&self) -> &Rc<dyn LanguageModel> {
        &self.language
    }

    fn sampling(&self) -> SpeechSampling {
        SpeechSampling {
            temperature: 0.3,
            top_p: 0.95,
            top_k: 0,
            repetition_penalty: 1.0,
            penalty_context: 20,
            max_tokens: 512,
        }
    }

    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn samples(&self, _: Noise, _: Option<&Rc<dyn Codec>>) -> Result<Box<dyn ToSamples>> {
        let decoder = self.decoder.clone();
        Ok(Box::new(States { decoder, states: Vec::new(), start: 0, done: 0, due: 1 }))
    }
}

/// Hidden states to samples.
struct StateDecoder {
    backbone: Sequence,
    head: IstftHead,
    /// Frames of a hidden state.
    upscale: i32,
    /// Samples from one hidden state to the next.
    samples: i32,
    /// How many hidden states before and after one its samples depend on.
    context: usize,
}

impl StateDecoder {
    fn read(w: &Scope, c: &Config) -> Result<Self> {
        let (backbone, given) = (w.at("decoder"), c.decoder_config.as_ref());
        let size = |name: &str, dimension: usize| -> i32 {
            // A tensor that is missing is an error when it is read.
            backbone.shape(name).and_then(|shape| shape.get(dimension).copied()).unwrap_or(1)
        };
        let (input, first) = (*c.hidden_size, "embed.weight");
        let layers = (0..).take_while(|i| backbone.has_below(&format!("convnext.{i}"))).count();
        let depthwise = "convnext.0.dwconv.weight";
        let sizes = ConvNextSizes {
            input,
            width: size(first, 0),
            inner: size("convnext.0.pwconv1.weight", 0),
            layers: layers as i32,
            // The other of the last two dimensions is the width of the input.
            first_kernel: if size(first, 2) == input { size(first, 1) } else { size(first, 2) },
            kernel: size(depthwise, 1).max(size(depthwise, 2)),
        };
        let bins = w.shape("head.out.weight").map_or(0, |shape| shape[0]);
        let n_fft = (bins - 2).max(2);
        let upscale = given.and_then(|given| given.upscale).map_or(4, |upscale| *upscale);
        let hop = given.and_then(|given| given.hop_length).map_or(n_fft / 4, |hop| *hop).max(1);
        if hop > n_fft {
            let reason = format!("{hop}, but frames have {n_fft} samples");
            return Err(Error::config("decoder_config.hop_length", reason));
        }
        let samples = config::product("decoder_config.upscale", [hop, upscale])?;
        let frames =
            sizes.layers * (sizes.kernel / 2) + sizes.first_kernel / 2 + n_fft / 2 / hop + 1;
        let head = IstftSizes { width: sizes.width, n_fft, hop, ends: n_fft / 2 };
        Ok(StateDecoder {
            backbone: backbone.conv_next(sizes)?,
            head: w.at("head").istft_head(head)?.silent_at_edges(),
            upscale,
            samples,
            context: (frames / upscale + 2) as usize,
        })
    }

    /// Hidden states `[1, n, width]` to the samples between the first and the last of them.
    fn forward(&self, states: &Array) -> Result<Array> {
        let frames = self.interpolate(&states.as_dtype(Dtype::Float32)?)?;
        let samples = self.head.forward(&self.backbone.run(&frames)?)?;
        Ok(samples.reshape(&[1, -1, 1])?)
    }

    /// Frames on the lines between hidden states.
    fn interpolate(&self, states: &Array) -> Result<Array> {
        let (count, width, upscale) = (states.dim(1), states.dim(2), self.upscale);
        let last = mlx::slice(states, 1, count - 1, count)?;
        if count == 1 {
            return Ok(last);
        }
        let shares: Vec<f32> = (0..upscale).map(|i| i as f32 / upscale as f32).collect();
        let shares = Array::from_slice(&shares, &[1, 1, upscale, 1]);
        let before = mlx::slice(states, 1, 0, count - 1)?.reshape(&[1, count - 1, 1, width])?;
        let after = mlx::slice(states, 1, 1, count)?.reshape(&[1, count - 1, 1, width])?;
        let frames = before.add(after.subtract(&before)?.multiply(shares)?)?;
        let frames = frames.reshape(&[1, (count - 1) * upscale, width])?;
        Ok(ops::concatenate(&[frames, last], 1)?)
    }
}

/// Hidden states on their way to samples.
struct States {
    decoder: Rc<StateDecoder>,
    /// Those that samples still depend on.
    states: Vec<Array>,
    /// The place of the first of them.
    start: usize,
    /// How many stretches between two hidden states are decoded.
    done: usize,
    /// How many are decoded together next: first few, so that the first samples come soon.
    due: usize,
}

impl States {
    /// The samples up to the hidden state at `end`, which others follow that its samples depend on.
    fn decode(&mut self, end: usize) -> Result<Option<Array>> {
        if end <= self.done {
            return Ok(None);
        }
        let (context, start) = (self.decoder.context, self.start);
        let states = (end + context + 1 - start).min(self.states.len());
        let states = ops::concatenate(&self.states[..states], 1)?;
        let place = |stretch: usize| (stretch - start) as i32 * self.decoder.samples;
        let (from, to) = (place(self.done), place(end));
        let samples = mlx::slice(&self.decoder.forward(&states)?, 1, from, to)?;
        self.start = end.saturating_sub(context).max(start);
        self.states.drain(..self.start - start);
        (self.done, self.due) = (end, (2 * self.due).min(MOST_WAITING));
        Ok(Some(samples))
    }

    /// The place of the last hidden state.
    fn last(&self) -> usize {
        (self.start + self.states.len()).saturating_sub(1)
    }
}

impl ToSamples for States {
    fn push(&mut self, _: Option<u32>, hidden: Option<&Array>) -> Result<Option<Array>> {
        let hidden = hidden.ok_or_else(|| Error::Internal("hidden states are missing".into()))?;
        self.states.push(hidden.clone());
        let end = self.last().saturating_sub(self.decoder.context);
        if end < self.done + self.due { Ok(None) } else { self.decode(end) }
    }

    fn finish(&mut self) -> Result<Option<Array>> {
        self.decode(self.last())
    }
}
