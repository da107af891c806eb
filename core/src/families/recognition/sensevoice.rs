//! SenseVoice ([An et al. 2024](https://arxiv.org/abs/2407.04051)): stacked filter bank features after
//! four queries (language, event, emotion, text normalisation), an encoder whose attention adds a
//! depthwise convolution of the values (SAN-M), and CTC. Follows `sensevoice` of mlx-audio.

use crate::{
    checkpoint::{file_rules::FileRules, files::Files},
    families::{Checkpoint, Entry, prelude::*},
    layers::audio::{
        ctc,
        encoder::{run_blocks, sinusoids_from},
        kaldi::{Fbank, stack_frames},
        stft::Window,
    },
    models::speech::{Label, Labeller, Labels, Output, SpeechRequest, Transcriber},
    text::{Pieces, Tokenizer},
};
use mlx_rs::{fast::scaled_dot_product_attention, ops::indexing::argmax_axis};

pub const ENTRY: Entry = Entry::transcriber(
    &["sensevoice", "sense_voice"],
    build,
    FileRules { beside: &[MEANS, PIECES, TOKENS], ..FileRules::USUAL },
);

const MEANS: &str = "am.mvn";
const PIECES: &str = "chn_jpn_yue_eng_ko_spectok.bpe.model";
const TOKENS: &str = "tokens.json";
/// The token that is none.
const BLANK: u32 = 0;
/// The queries before the audio.
const QUERIES: usize = 4;
/// Queries of the event and the emotion.
const EVENT_EMOTION: [u32; 2] = [1, 2];
/// Queries of a text with digits and punctuation, and of one without.
const WITH_NORMALIZATION: u32 = 14;
const WITHOUT_NORMALIZATION: u32 = 15;
/// The query of each language; another one is detected.
const LANGUAGES: &[(&str, u32)] = &[("zh", 3), ("en", 4), ("yue", 7), ("ja", 11), ("ko", 12)];
/// The tokens of languages, emotions and events.
const LANGUAGE_TOKENS: &[(u32, &str)] = &[
    (24884, "zh"),
    (24885, "en"),
    (24888, "yue"),
    (24892, "ja"),
    (24896, "ko"),
    (24992, "nospeech"),
];
const EMOTION_TOKENS: &[(u32, &str)] = &[
    (25001, "happy"),
    (25002, "sad"),
    (25003, "angry"),
    (25004, "neutral"),
    (25005, "fearful"),
    (25006, "disgusted"),
    (25007, "surprised"),
    (25008, "other"),
    (25009, "unk"),
];
const EVENT_TOKENS: &[(u32, &str)] =
    &[(24993, "Speech"), (24995, "BGM"), (24997, "Laughter"), (24999, "Applause")];

#[derive(Deserialize)]
struct EncoderConfig {
    output_size: Size,
    attention_heads: Size,
    linear_units: Size,
    num_blocks: Size,
    tp_blocks: Size,
    kernel_size: Size,
    sanm_shfit: Count,
}

#[derive(Deserialize)]
struct FrontEndConfig {
    n_mels: Size,
    lfr_m: Size,
    lfr_n: Size,
}

struct SenseVoice {
    front_end: Fbank,
    frames: FrontEndConfig,
    /// Added to features, then factors of them, `[bins]` each.
    normalization: Option<[Array; 2]>,
    queries: Embedding,
    width: i32,
    blocks: Vec<Block>,
    norm: Norm,
    later_blocks: Vec<Block>,
    later_norm: Norm,
    head: Linear,
    pieces: Pieces,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Transcriber>> {
    let Checkpoint { config, weights: w, files } = *checkpoint;
    config::only(
        &config::part(config, "encoder_conf", json!({})),
        json!({"normalize_before": true}),
    )?;
    let c: EncoderConfig = config::read(&config::part(
        config,
        "encoder_conf",
        json!({
            "output_size": 512, "attention_heads": 4, "linear_units": 2048, "num_blocks": 50,
            "tp_blocks": 20, "kernel_size": 11, "sanm_shfit": 0,
        }),
    ))?;
    let frames: FrontEndConfig = config::read(&config::part(
        config,
        "frontend_conf",
        json!({"n_mels": 80, "lfr_m": 7, "lfr_n": 6}),
    ))?;
    config::only(
        &config::part(config, "frontend_conf", json!({})),
        json!({"window": "hamming", "fs": 16000}),
    )?;
    let whole = config::with_defaults(config, json!({"vocab_size": 25055, "input_size": 560}));
    let (Size(vocabulary), Size(input)): (Size, Size) =
        (config::field(&whole, "vocab_size")?, config::field(&whole, "input_size")?);
    let (encoder, width) = (w.at("encoder"), c.output_size.0);
    let stack = |name: &str, count: i32| {
        let layers = encoder.at(name);
        (0..count).map(|i| block(&layers.at(i), width, &c)).collect::<Result<Vec<_>>>()
    };
    let mut blocks = vec![block(&encoder.at("encoders0").at(0), input, &c)?];
    blocks.extend(stack("encoders", c.num_blocks.0 - 1)?);
    let head = if w.has_below("ctc") { w.at("ctc") } else { w.clone() };
    Ok(Box::new(SenseVoice {
        front_end: Fbank::new(Window::Hamming, frames.n_mels.0 as usize),
        normalization: normalization(files, input)?,
        frames,
        queries: w.embedding("embed", 16, input)?,
        width,
        blocks,
        norm: encoder.layer_norm_with_bias("after_norm", width, 1e-5)?,
        later_blocks: stack("tp_encoders", c.tp_blocks.0)?,
        later_norm: encoder.layer_norm_with_bias("tp_norm", width, 1e-5)?,
        head: head.linear_with_bias("ctc_lo", width, vocabulary)?,
        pieces: match files.read(PIECES)?.is_some() {
            true => Pieces::Tokenizer(Tokenizer::load(files)?),
            false => Pieces::read(files, TOKENS)?,
        },
    }))
}

/// A block from `input` to the width of the encoder; the first one has another input and no residual
/// around its attention.
fn block(w: &Scope, input: i32, c: &EncoderConfig) -> Result<Block> {
    let width = c.output_size.0;
    let attention = Sanm::read(&w.at("self_attn"), input, c)?;
    let before = w.layer_norm_with_bias("norm1", input, 1e-5)?;
    let mlp = w.at("feed_forward");
    let up = mlp.linear_with_bias("w_1", width, c.linear_units.0)?;
    let down = mlp.linear_with_bias("w_2", c.linear_units.0, width)?;
    let mlp = PlainMlp::new(up, down, activation::relu);
    let mlp = Residual::pre(w.layer_norm_with_bias("norm2", width, 1e-5)?, mlp);
    Ok(if input == width {
        Block::new((Residual::pre(before, attention), mlp))
    } else {
        Block::new(((before, attention), mlp))
    })
}

/// Attention with a memory: a depthwise convolution of the values, added to them and to the output.
struct Sanm {
    qkv: [Linear; 3],
    output: Linear,
    /// `[width, taps, 1]`.
    kernel: Array,
    /// Zeros before the values, so that the convolution sees that many of them back.
    left: i32,
    heads: i32,
}

impl Sanm {
    fn read(w: &Scope, input: i32, c: &EncoderConfig) -> Result<Self> {
        let (width, taps) = (c.output_size.0, c.kernel_size.0);
        Ok(Sanm {
            qkv: w.fused("linear_q_k_v", input, [width; 3])?,
            output: w.linear_with_bias("linear_out", width, width)?,
            kernel: w.depthwise("fsmn_block", width, taps)?,
            left: ((taps - 1) / 2 + c.sanm_shfit.0).min(taps - 1),
            heads: c.attention_heads.0,
        })
    }
}

impl Layer for Sanm {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        let [q, k, v] = &self.qkv;
        let (q, k, v) = (q.forward(x)?, k.forward(x)?, v.forward(x)?);
        let (width, taps) = (self.kernel.dim(0), self.kernel.dim(1));
        let around = (self.left, taps - 1 - self.left);
        let padded = ops::pad(&v, &[(0, 0), around, (0, 0)], None, None)?;
        let memory = ops::conv1d(&padded, &self.kernel, 1, 0, 1, width)?.add(&v)?;
        let scale = ((width / self.heads) as f32).powf(-0.5);
        let [q, k, v] = [q, k, v].map(|x| split_heads(&x, self.heads));
        let y = scaled_dot_product_attention(&q?, &k?, &v?, scale, None, None)?;
        Ok(self.output.forward(&join_heads(&y)?)?.add(memory)?)
    }
}

impl SenseVoice {
    /// Features after the queries of a request.
    fn asked(&self, features: &Array, request: &SpeechRequest) -> Result<Array> {
        let known = |code: &str| LANGUAGES.iter().find(|(known, _)| *known == code);
        let language = match request.language.as_deref() {
            None | Some("auto") => 0,
            Some(code) => {
                let unknown = || {
                    let reason = format!("`{code}` is not one of zh, en, yue, ja, ko");
                    Error::option("language", reason)
                };
                known(code).ok_or_else(unknown)?.1
            }
        };
        let text = match request.inverse_text_normalization {
            true => WITH_NORMALIZATION,
            false => WITHOUT_NORMALIZATION,
        };
        let queries = [language, EVENT_EMOTION[0], EVENT_EMOTION[1], text];
        let queries = self.queries.lookup(&Array::from_slice(&queries, &[1, QUERIES as i32]))?;
        let features = features.as_dtype(queries.dtype())?;
        Ok(ops::concatenate(&[queries, features], 1)?)
    }
}

impl Transcriber for SenseVoice {
    fn features(&self, samples: &[f32]) -> Result<Array> {
        let FrontEndConfig { lfr_m, lfr_n, .. } = self.frames;
        let features = stack_frames(&self.front_end.forward(samples)?, lfr_m.0, lfr_n.0)?;
        let features = match &self.normalization {
            Some([shift, scale]) => features.add(shift)?.multiply(scale)?,
            None => features,
        };
        Ok(features.expand_dims(0)?)
    }

    /// The input may begin with queries; without any, the language is detected.
    fn encode(&self, features: &Array) -> Result<Array> {
        let asked = self.asked(features, &SpeechRequest::default())?;
        self.run(&asked)
    }

    fn output(&self) -> Output<'_> {
        Output::Labels(self)
    }
}

impl SenseVoice {
    fn run(&self, x: &Array) -> Result<Array> {
        let scale = mlx::scalar((self.width as f32).sqrt(), x.dtype())?;
        let positions = sinusoids_from(1, x.dim(1), x.dim(2)).as_dtype(x.dtype())?;
        let x = run_blocks(&self.blocks, x.multiply(scale)?.add(positions)?)?;
        let x = run_blocks(&self.later_blocks, self.norm.forward(&x)?)?;
        self.later_norm.forward(&x)
    }
}

impl Labeller for SenseVoice {
    fn longest(&self) -> f64 {
        60.0
    }

    fn label(&self, samples: &[f32], request: &SpeechRequest) -> Result<Labels> {
        let asked = self.asked(&self.features(samples)?, request)?;
        let logits = self.head.forward(&self.run(&asked)?)?;
        let asked = mlx::slice(&logits, 1, 0, QUERIES as i32)?;
        let answers: Vec<u32> = mlx::to_vec(&argmax_axis(asked, -1, false)?)?;
        let heard = mlx::slice(&logits, 1, QUERIES as i32, logits.dim(1))?;
        let seconds = f64::from(self.frames.lfr_n.0) * 0.01;
        let tokens = ctc::greedy(&heard)?.into_iter().filter(|token| token.id != BLANK);
        let tokens = tokens.map(|token| Label::spanning(token, seconds)).collect();
        let name = |names: &[(u32, &str)], id: u32| {
            let known = names.iter().find(|(known, _)| *known == id);
            known.map(|(_, name)| name.to_string())
        };
        let [language, emotion, event] = [answers[0], answers[1], answers[2]];
        let unnamed = |id: u32| format!("token_{id}");
        Ok(Labels {
            tokens,
            language: name(LANGUAGE_TOKENS, language).or(Some("unknown".into())),
            emotion: name(EMOTION_TOKENS, emotion).or(Some(unnamed(emotion))),
            event: name(EVENT_TOKENS, event).or(Some(unnamed(event))),
        })
    }

    fn piece(&self, id: u32) -> Result<String> {
        Ok(self.pieces.text(id))
    }
}

/// The shifts and factors of `am.mvn`, a network of Kaldi in text.
fn normalization(files: &Files, bins: i32) -> Result<Option<[Array; 2]>> {
    let Some(bytes) = files.read(MEANS)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes);
    let row = |tag: &str| {
        let row = text.split_once(tag)?.1.split_once('[')?.1.split_once(']')?.0;
        let values: Option<Vec<f32>> = row.split_whitespace().map(|x| x.parse().ok()).collect();
        let values = values.filter(|values| values.len() as i32 == bins)?;
        Some(Array::from_slice(&values, &[bins]))
    };
    let refused = || Error::Config {
        file: MEANS.into(),
        field: String::new(),
        reason: format!("must have an <AddShift> and a <Rescale> of {bins} numbers"),
    };
    Ok(Some([row("<AddShift>").ok_or_else(refused)?, row("<Rescale>").ok_or_else(refused)?]))
}
