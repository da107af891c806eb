//! Qwen3-ASR ([Shi et al. 2026](https://arxiv.org/abs/2601.21337)): log-mel features in chunks through three
//! convolutions of stride 2, attention within windows of several chunks, and Qwen 3, which writes the
//! language and the text. Follows `qwen3_asr` of mlx-audio.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Checkpoint, Entry, prelude::*, text},
    layers::audio::{
        convolution::Kernel,
        convolution_2d::{Convolution2d, halved},
        encoder::{
            BlockNames, EncoderSizes, TRANSFORMERS, encoder_block, norm, run_blocks, sinusoids,
        },
        log_mel::LogMel,
    },
    models::speech::{Output, PromptedDecoder, Said, SpeechRequest, Transcriber},
    text::Tokenizer,
};
use std::rc::Rc;

pub const ENTRY: Entry = Entry::transcriber(&["qwen3_asr"], build, FileRules::USUAL);

/// The samples to which shorter clips are padded: mlx-audio pads to a second, transformers to half of it.
const SHORTEST: usize = 16_000;
const SHORTEST_OF_TRANSFORMERS: usize = 8000;
/// References cut longer clips at 20 minutes.
const LONGEST: f64 = 1200.0;
const ENDS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];
const TEXT: &str = "<asr_text>";
const LANGUAGES: &[(&str, &str)] = &[
    ("zh", "Chinese"),
    ("en", "English"),
    ("yue", "Cantonese"),
    ("ar", "Arabic"),
    ("de", "German"),
    ("fr", "French"),
    ("es", "Spanish"),
    ("pt", "Portuguese"),
    ("id", "Indonesian"),
    ("it", "Italian"),
    ("ko", "Korean"),
    ("ru", "Russian"),
    ("th", "Thai"),
    ("vi", "Vietnamese"),
    ("ja", "Japanese"),
    ("tr", "Turkish"),
    ("hi", "Hindi"),
    ("ms", "Malay"),
    ("nl", "Dutch"),
    ("sv", "Swedish"),
    ("da", "Danish"),
    ("fi", "Finnish"),
    ("pl", "Polish"),
    ("cs", "Czech"),
    ("fil", "Filipino"),
    ("fa", "Persian"),
    ("el", "Greek"),
    ("ro", "Romanian"),
    ("hu", "Hungarian"),
    ("mk", "Macedonian"),
];

#[derive(Deserialize)]
struct AudioConfig {
    activation_function: String,
    num_mel_bins: Size,
    encoder_layers: Size,
    encoder_attention_heads: Size,
    encoder_ffn_dim: Size,
    d_model: Size,
    n_window: Size,
    output_dim: Size,
    n_window_infer: Size,
    downsample_hidden_size: Size,
}

/// The names of tensors in transformers, and those of the authors.
const OF_TRANSFORMERS: &[(&str, &str)] = &[
    ("model.audio_tower.", "audio_tower."),
    ("model.multi_modal_projector.linear_1.", "audio_tower.proj1."),
    ("model.multi_modal_projector.linear_2.", "audio_tower.proj2."),
    ("model.language_model.", "model."),
];

struct Qwen3Asr {
    front_end: LogMel,
    convs: Vec<Convolution2d>,
    /// From the channels and frequencies of a position to the width.
    output: Linear,
    blocks: Vec<Block>,
    norm: Norm,
    projections: [Linear; 2],
    chunks: Chunks,
    decoder: Rc<dyn LanguageModel>,
    tokenizer: Tokenizer,
    placeholder: u32,
    ends: Vec<u32>,
}

/// How a recording is cut.
struct Chunks {
    /// Frames of a chunk.
    frames: i32,
    /// Chunks of a window.
    window: i32,
    /// Whether the checkpoint is in the layout of transformers, which pads a short chunk as well.
    is_of_transformers: bool,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Transcriber>> {
    let Checkpoint { config, weights, files } = *checkpoint;
    let config = config.get("thinker_config").unwrap_or(config);
    let c: AudioConfig = config::read(&config::part(
        config,
        "audio_config",
        json!({
            "activation_function": "gelu",
            "num_mel_bins": 128, "encoder_layers": 24, "encoder_attention_heads": 16,
            "encoder_ffn_dim": 4096, "d_model": 1024, "n_window": 50, "output_dim": 2048,
            "n_window_infer": 800, "downsample_hidden_size": 480,
        }),
    ))?;
    let language = config::part(
        config,
        "text_config",
        json!({
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
            "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "rope_theta": 1e6,
        }),
    );
    let is_of_transformers = weights.has_below("model.audio_tower");
    let mut language = language;
    if is_of_transformers {
        weights.rename(OF_TRANSFORMERS);
        let tied = config.get("tie_word_embeddings").cloned();
        language = language.with("tie_word_embeddings", tied.unwrap_or_else(|| Json::from(true)));
    }
    let w = if weights.has_below("thinker") { weights.at("thinker") } else { weights.clone() };
    let (tower, width, hidden) = (w.at("audio_tower"), c.d_model.0, c.downsample_hidden_size.0);
    let conv = |name: &str, input: i32| {
        tower.at(name).convolution_2d(Kernel::new(input, hidden, 3).stride(2))
    };
    let convs = vec![conv("conv2d1", 1)?, conv("conv2d2", hidden)?, conv("conv2d3", hidden)?];
    let frequencies = halved(halved(halved(c.num_mel_bins.0)));
    let activation = activation::named("activation_function", &c.activation_function)?;
    let sizes = EncoderSizes {
        bins: c.num_mel_bins.0,
        width,
        inner: c.encoder_ffn_dim.0,
        heads: c.encoder_attention_heads.0,
        layers: c.encoder_layers.0,
        positions: 0,
        activation,
    };
    let names = BlockNames { norm: "ln_post", ..TRANSFORMERS };
    let layers = tower.at(names.layers);
    let tokenizer = Tokenizer::load(files)?;
    let placeholder = config.get("audio_token_id").and_then(Json::as_i64);
    Ok(Box::new(Qwen3Asr {
        front_end: LogMel::new(c.num_mel_bins.0),
        convs,
        output: tower.linear("conv_out", hidden * frequencies, width)?,
        blocks: (0..sizes.layers)
            .map(|i| encoder_block(&layers.at(i), &names, sizes))
            .collect::<Result<_>>()?,
        norm: norm(&tower, names.norm, width)?,
        projections: [
            tower.linear_with_bias("proj1", width, width)?,
            tower.linear_with_bias("proj2", width, c.output_dim.0)?,
        ],
        chunks: Chunks {
            frames: 2 * c.n_window.0,
            window: (c.n_window_infer.0 / (2 * c.n_window.0)).max(1),
            is_of_transformers,
        },
        decoder: text::language("qwen3", &language, &w)?.into(),
        placeholder: placeholder.map_or(151_676, |id| id as u32),
        ends: ENDS.iter().filter_map(|end| tokenizer.token_id(end)).collect(),
        tokenizer,
    }))
}

impl Transcriber for Qwen3Asr {
    fn features(&self, samples: &[f32]) -> Result<Array> {
        let mut samples = samples.to_vec();
        let shortest = match self.chunks.is_of_transformers {
            true => SHORTEST_OF_TRANSFORMERS,
            false => SHORTEST,
        };
        samples.resize(samples.len().max(shortest), 0.0);
        Ok(self.front_end.forward(&samples)?.expand_dims(0)?)
    }

    fn encode(&self, features: &Array) -> Result<Array> {
        let (frames, bins) = (features.dim(1), features.dim(2));
        let Chunks { frames: whole, window, is_of_transformers } = self.chunks;
        let chunk = if is_of_transformers { whole } else { whole.min(frames) };
        let chunks = (frames + chunk - 1) / chunk;
        let x = ops::pad(features, &[(0, 0), (0, chunks * chunk - frames), (0, 0)], None, None)?;
        let mut x = x.reshape(&[chunks, chunk, bins])?.swap_axes(1, 2)?.expand_dims(3)?;
        for conv in &self.convs {
            x = gelu(&conv.forward(&x)?)?;
        }
        // Frequencies, positions and channels of each chunk.
        let positions = x.dim(2);
        let x = x.transpose_axes(&[0, 2, 3, 1])?.reshape(&[chunks, positions, -1])?;
        let x = self.output.forward(&x)?;
        let x = x.add(sinusoids(positions, x.dim(2)).as_dtype(x.dtype())?)?;
        // All chunks but the last one are whole.
        let last = halved(halved(halved(frames - (chunks - 1) * chunk)));
        let total = (chunks - 1) * positions + last;
        let x = mlx::slice(&x.reshape(&[1, chunks * positions, -1])?, 1, 0, total)?;
        let window = positions * window;
        let starts = (0..total).step_by(window as usize);
        let windows = starts.map(|start| {
            let part = mlx::slice(&x, 1, start, total.min(start + window))?;
            run_blocks(&self.blocks, part)
        });
        let x = ops::concatenate(&windows.collect::<Result<Vec<_>>>()?, 1)?;
        let [first, second] = &self.projections;
        second.forward(&gelu(&first.forward(&self.norm.forward(&x)?)?)?)
    }

    fn output(&self) -> Output<'_> {
        Output::Prompted(self)
    }
}

impl PromptedDecoder for Qwen3Asr {
    fn decoder(&self) -> &Rc<dyn LanguageModel> {
        &self.decoder
    }

    fn longest(&self) -> f64 {
        LONGEST
    }

    fn prompt(&self, encoded: &Array, request: &SpeechRequest) -> Result<Embedded> {
        let system = request.prompt.as_deref().map_or(String::new(), |text| format!("{text}\n"));
        let before =
            format!("<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<|audio_start|>");
        let language = request.language.as_deref().map(language_name);
        let language = language.map_or(String::new(), |name| format!("language {name}{TEXT}"));
        let after = format!("<|audio_end|><|im_end|>\n<|im_start|>assistant\n{language}");
        let audio = vec![self.placeholder; encoded.dim(1) as usize];
        let before = self.tokenizer.encode(&before, false)?;
        let after = self.tokenizer.encode(&after, false)?;
        let embed = |ids: &[u32]| {
            Ok::<_, Error>(
                self.decoder.embed(&Array::from_slice(ids, &[1, ids.len() as i32]))?.hidden,
            )
        };
        let (start, end) = (embed(&before)?, embed(&after)?);
        let audio_hidden = encoded.as_dtype(start.dtype())?;
        let hidden = ops::concatenate(&[start, audio_hidden, end], 1)?;
        let ids = [before, audio, after].concat();
        Ok(Embedded::new(Array::from_slice(&ids, &[1, ids.len() as i32]), hidden))
    }

    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn limit(&self, _: f64) -> usize {
        8192
    }

    fn said(&self, tokens: &[u32], request: &SpeechRequest) -> Result<Said> {
        let text = self.tokenizer.decode(tokens, true)?;
        if let Some(language) = &request.language {
            return Ok(Said { text, language: Some(language.clone()) });
        }
        let stated = text.strip_prefix("language ").and_then(|rest| rest.split_once(TEXT));
        Ok(match stated {
            Some((name, text)) => Said { text: text.into(), language: Some(name.trim().into()) },
            None => Said { text, language: Some("English".into()) },
        })
    }
}

/// The name of a language, where its code is known.
fn language_name(given: &str) -> &str {
    let lower = given.to_lowercase();
    let known =
        LANGUAGES.iter().find(|(code, name)| *code == lower || name.to_lowercase() == lower);
    known.map_or(given, |(_, name)| name)
}
