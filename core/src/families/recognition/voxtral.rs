//! Voxtral ([Liu et al. 2025](https://arxiv.org/abs/2507.13264)): the encoder of Whisper over windows of 30
//! seconds, four of its positions joined into one, and Llama, which writes the text after a request.
//! Follows `voxtral` of mlx-audio.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Checkpoint, Entry, prelude::*, text},
    layers::audio::{
        encoder::{ConvEncoder, EncoderSizes, FRAMES_OF_POSITION, TRANSFORMERS},
        log_mel::{HOP, LogMel},
    },
    models::speech::{Output, PromptedDecoder, Said, SpeechRequest, Transcriber},
    text::Tokenizer,
};
use std::rc::Rc;

pub const ENTRY: Entry = Entry::transcriber(&["voxtral"], build, FileRules::USUAL);

/// Frames of a window of 30 seconds.
const FRAMES: i32 = 3000;
/// Tokens that end the text: its end, and two that pad.
const ENDS: [u32; 3] = [2, 4, 11];

#[derive(Deserialize)]
struct AudioConfig {
    activation_function: String,
    num_mel_bins: Size,
    d_model: Size,
    encoder_layers: Size,
    encoder_attention_heads: Size,
    /// That of joined positions, where a config names one alone.
    encoder_ffn_dim: Option<Size>,
    intermediate_size: Size,
}

/// The fields of transformers under the names of mlx-audio.
const RENAMED: &[(&str, &str)] = &[
    ("hidden_size", "d_model"),
    ("num_hidden_layers", "encoder_layers"),
    ("num_attention_heads", "encoder_attention_heads"),
];

struct Voxtral {
    front_end: LogMel,
    encoder: ConvEncoder,
    /// The width of positions that are joined.
    joined: i32,
    projections: [Linear; 2],
    decoder: Rc<dyn LanguageModel>,
    tokenizer: Tokenizer,
    placeholder: u32,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Transcriber>> {
    let Checkpoint { config, weights: w, files } = *checkpoint;
    let audio = config::part(config, "audio_config", json!({}));
    let c: AudioConfig = config::read_renamed(&audio, RENAMED, |audio| {
        let defaults = json!({
            "activation_function": "gelu", "num_mel_bins": 128, "d_model": 1280,
            "encoder_layers": 32, "encoder_attention_heads": 20, "intermediate_size": 5120,
        });
        config::read(&config::with_defaults(audio, defaults))
    })?;
    let language = config::part(
        config,
        "text_config",
        json!({
            "vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 8192,
            "num_hidden_layers": 30, "num_attention_heads": 32, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5, "head_dim": 128, "rope_theta": 1e8,
            "tie_word_embeddings": false,
        }),
    );
    let Size(width) = config::field(&language, "hidden_size")?;
    let activation = activation::named("activation_function", &c.activation_function)?;
    let sizes = EncoderSizes {
        bins: c.num_mel_bins.0,
        width: c.d_model.0,
        inner: c.encoder_ffn_dim.unwrap_or(c.intermediate_size).0,
        heads: c.encoder_attention_heads.0,
        layers: c.encoder_layers.0,
        positions: FRAMES / FRAMES_OF_POSITION,
        activation,
    };
    let projector = w.at("multi_modal_projector");
    let placeholder = config.get("audio_token_id").and_then(Json::as_i64);
    Ok(Box::new(Voxtral {
        front_end: LogMel::new(c.num_mel_bins.0),
        encoder: ConvEncoder::read(&w.at("audio_tower"), &TRANSFORMERS, sizes)?,
        joined: c.intermediate_size.0,
        projections: [
            projector.linear("linear_1", c.intermediate_size.0, width)?,
            projector.linear("linear_2", width, width)?,
        ],
        decoder: text::language("llama", &language, w)?.into(),
        tokenizer: Tokenizer::load(files)?,
        placeholder: placeholder.map_or(24, |id| id as u32),
    }))
}

impl Transcriber for Voxtral {
    /// Windows of 30 seconds one after the other, the last one with silence after it.
    fn features(&self, samples: &[f32]) -> Result<Array> {
        let window = FRAMES as usize * HOP;
        let windows = samples.chunks(window).map(|part| {
            let mut part = part.to_vec();
            part.resize(window, 0.0);
            self.front_end.forward(&part)
        });
        Ok(ops::concatenate(&windows.collect::<Result<Vec<_>>>()?, 0)?.expand_dims(0)?)
    }

    fn encode(&self, features: &Array) -> Result<Array> {
        let windows = features.reshape(&[-1, FRAMES, features.dim(2)])?;
        let x = self.encoder.forward(&windows)?.reshape(&[1, -1, self.joined])?;
        let [first, second] = &self.projections;
        second.forward(&gelu(&first.forward(&x)?)?)
    }

    fn output(&self) -> Output<'_> {
        Output::Prompted(self)
    }
}

impl PromptedDecoder for Voxtral {
    fn decoder(&self) -> &Rc<dyn LanguageModel> {
        &self.decoder
    }

    fn longest(&self) -> f64 {
        1200.0
    }

    /// `<s>[INST][BEGIN_AUDIO]` and the audio, then `[/INST]lang:en[TRANSCRIBE]`, as Mistral's
    /// tokenizer writes a request.
    fn prompt(&self, encoded: &Array, request: &SpeechRequest) -> Result<Embedded> {
        let special = |token: &str| {
            self.tokenizer.token_id(token).ok_or_else(|| Error::Tokenizer {
                file: "tekken.json".into(),
                reason: format!("it has no token `{token}`; use the tokenizer of the model"),
            })
        };
        let before = [special("<s>")?, special("[INST]")?, special("[BEGIN_AUDIO]")?];
        let language = request.language.as_deref().unwrap_or("en");
        let mut after = vec![special("[/INST]")?];
        after.extend(self.tokenizer.encode(&format!("lang:{language}"), false)?);
        after.push(special("[TRANSCRIBE]")?);
        let embed = |ids: &[u32]| {
            let ids = Array::from_slice(ids, &[1, ids.len() as i32]);
            Ok::<_, Error>(self.decoder.embed(&ids)?.hidden)
        };
        let (start, end) = (embed(&before)?, embed(&after)?);
        let audio = encoded.as_dtype(start.dtype())?;
        let hidden = ops::concatenate(&[start, audio, end], 1)?;
        let mut ids = before.to_vec();
        ids.extend(vec![self.placeholder; encoded.dim(1) as usize]);
        ids.extend(after);
        Ok(Embedded::new(Array::from_slice(&ids, &[1, ids.len() as i32]), hidden))
    }

    fn ends(&self) -> &[u32] {
        &ENDS
    }

    /// Nobody speaks ten tokens a second for long.
    fn limit(&self, seconds: f64) -> usize {
        128.max((10.0 * seconds) as usize)
    }

    fn said(&self, tokens: &[u32], request: &SpeechRequest) -> Result<Said> {
        let text = self.tokenizer.decode(tokens, true)?.trim().to_string();
        Ok(Said { text, language: request.language.clone() })
    }
}
