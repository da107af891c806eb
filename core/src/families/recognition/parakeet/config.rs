//! The config of NeMo and those of transformers, brought to one shape, with the names of tensors.

use super::transducer::{Limit, TransducerSizes};
use crate::{
    checkpoint::files::Files,
    families::prelude::*,
    layers::audio::{conformer::ConformerSizes, normalized_log_mel::NormalizedLogMelSizes},
};

/// What a checkpoint has, in either layout.
pub struct Config {
    pub audio: NormalizedLogMelSizes,
    pub encoder: ConformerSizes,
    /// The number of tokens, the blank included.
    pub vocabulary: i32,
    pub blank: u32,
    /// None for CTC.
    pub transducer: Option<TransducerSizes>,
    /// The pieces of the vocabulary, where the config has them.
    pub pieces: Option<Vec<String>>,
}

/// The names of tensors of transducers in transformers, and those of NeMo.
pub const OF_TRANSFORMERS: &[(&str, &str)] = &[
    ("ctc_head.", "decoder.decoder_layers.0."),
    ("encoder_projector.", "joint.enc."),
    ("decoder.decoder_projector.", "joint.pred."),
    ("decoder.embedding.", "decoder.prediction.embed."),
    ("decoder.lstm.", "decoder.prediction.dec_rnn.lstm."),
    ("joint.head.", "joint.joint_net.2."),
];

#[derive(Deserialize)]
struct NemoAudio {
    sample_rate: Size,
    window_size: f64,
    window_stride: f64,
    features: Size,
    n_fft: Size,
    preemph: f32,
    normalize_valid_frames: bool,
}

#[derive(Deserialize)]
struct NemoEncoder {
    feat_in: Size,
    n_layers: Size,
    d_model: Size,
    n_heads: Size,
    ff_expansion_factor: Size,
    subsampling_factor: Size,
    subsampling_conv_channels: Size,
    conv_kernel_size: Size,
    xscaling: bool,
}

#[derive(Deserialize)]
struct TransformersEncoder {
    hidden_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    intermediate_size: Size,
    hidden_act: String,
    conv_kernel_size: Size,
    subsampling_factor: Size,
    subsampling_conv_channels: Size,
    num_mel_bins: Size,
    scale_input: bool,
}

#[derive(Deserialize)]
struct TransformersTransducer {
    blank_token_id: Count,
    decoder_hidden_size: Size,
    num_decoder_layers: Size,
    max_symbols_per_step: Size,
    hidden_act: String,
}

impl Config {
    pub fn read(config: &Json, files: &Files) -> Result<Self> {
        match config.get("encoder_config") {
            Some(encoder) => Self::of_transformers(config, encoder, files),
            None => Self::of_nemo(config),
        }
    }

    fn of_nemo(config: &Json) -> Result<Self> {
        let part = |name: &str| {
            let part = config.get(name).filter(|part| part.is_object());
            part.cloned().ok_or_else(|| Error::config(name, "missing"))
        };
        let (audio, encoder) = (part("preprocessor")?, part("encoder")?);
        config::only(&audio, json!({"normalize": "per_feature", "window": "hann"}))?;
        config::only(
            &encoder,
            json!({
                "self_attention_model": "rel_pos", "subsampling": "dw_striding",
                "causal_downsampling": false,
            }),
        )?;
        let defaults = json!({"preemph": 0.97, "normalize_valid_frames": false});
        let a: NemoAudio = config::read(&config::with_defaults(&audio, defaults))?;
        let e: NemoEncoder =
            config::read(&config::with_defaults(&encoder, json!({"xscaling": false})))?;
        let is_ctc = config.get("joint").is_none();
        let words = if is_ctc { part("decoder")? } else { part("joint")? };
        let pieces: Vec<String> = config::field(&words, "vocabulary")?;
        let blank = pieces.len() as u32;
        let rate = f64::from(a.sample_rate.0);
        Ok(Config {
            audio: NormalizedLogMelSizes {
                sample_rate: a.sample_rate.0 as u32,
                n_fft: a.n_fft.0 as usize,
                window: (a.window_size * rate) as usize,
                hop: (a.window_stride * rate) as usize,
                bins: a.features.0 as usize,
                pre_emphasis: a.preemph,
                is_last_frame_valid: !a.normalize_valid_frames,
            },
            encoder: ConformerSizes {
                bins: e.feat_in.0,
                width: e.d_model.0,
                inner: config::product(
                    "ff_expansion_factor",
                    [e.d_model.0, e.ff_expansion_factor.0],
                )?,
                heads: e.n_heads.0,
                layers: e.n_layers.0,
                subsampling: e.subsampling_factor.0,
                channels: e.subsampling_conv_channels.0,
                taps: e.conv_kernel_size.0,
                is_scaled: e.xscaling,
                activation: activation::silu,
            },
            vocabulary: blank as i32 + 1,
            blank,
            transducer: (!is_ctc).then(|| nemo_transducer(config)).transpose()?,
            pieces: Some(pieces),
        })
    }

    fn of_transformers(config: &Json, encoder: &Json, files: &Files) -> Result<Self> {
        let size = json!({"subsampling_conv_kernel_size": 3, "subsampling_conv_stride": 2});
        config::only(encoder, size)?;
        let defaults = json!({
            "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8,
            "intermediate_size": 4096, "hidden_act": "silu", "conv_kernel_size": 9,
            "subsampling_factor": 8, "subsampling_conv_channels": 256, "num_mel_bins": 80,
            "scale_input": true,
        });
        let e: TransformersEncoder = config::read(&config::with_defaults(encoder, defaults))?;
        let kind = config.get("model_type").and_then(Json::as_str);
        let is_ctc = kind == Some("parakeet_ctc");
        config::only(config, json!({"is_encoder_decoder": !is_ctc}))?;
        let size = if is_ctc { 1025 } else { 8193 };
        let config = config::with_defaults(
            config,
            json!({
                "vocab_size": size, "pad_token_id": size - 1, "blank_token_id": size - 1,
                "decoder_hidden_size": 640, "num_decoder_layers": 2, "max_symbols_per_step": 10,
                "hidden_act": "relu", "durations": [0, 1, 2, 3, 4],
            }),
        );
        let Size(vocabulary) = config::field(&config, "vocab_size")?;
        let blank: Count =
            config::field(&config, if is_ctc { "pad_token_id" } else { "blank_token_id" })?;
        let transducer = match is_ctc {
            true => None,
            false => Some(transformers_transducer(&config, kind == Some("parakeet_tdt"), files)?),
        };
        Ok(Config {
            audio: NormalizedLogMelSizes {
                is_last_frame_valid: false,
                ..transformers_audio(files, e.num_mel_bins)?
            },
            encoder: ConformerSizes {
                bins: e.num_mel_bins.0,
                width: e.hidden_size.0,
                inner: e.intermediate_size.0,
                heads: e.num_attention_heads.0,
                layers: e.num_hidden_layers.0,
                subsampling: e.subsampling_factor.0,
                channels: e.subsampling_conv_channels.0,
                taps: e.conv_kernel_size.0,
                is_scaled: e.scale_input,
                activation: activation::named("hidden_act", &e.hidden_act)?,
            },
            vocabulary,
            blank: blank.0 as u32,
            transducer,
            pieces: None,
        })
    }
}

fn nemo_transducer(config: &Json) -> Result<TransducerSizes> {
    let number = |path: &str| {
        let value = config.pointer(path).and_then(Json::as_i64);
        value.and_then(|value| i32::try_from(value).ok()).filter(|value| *value > 0)
    };
    let missing = |path: &str| Error::config(path[1..].replace('/', "."), "missing");
    let size = |path: &str| number(path).ok_or_else(|| missing(path));
    let durations = config.pointer("/model_defaults/tdt_durations").and_then(Json::as_array);
    let durations = durations.unwrap_or_default().iter().filter_map(Json::as_i64);
    let name = config.pointer("/joint/jointnet/activation").and_then(Json::as_str);
    let most = number("/decoding/greedy/max_symbols").unwrap_or(10) as usize;
    Ok(TransducerSizes {
        tokens: size("/decoder/prednet/pred_hidden")?,
        joint: size("/joint/jointnet/joint_hidden")?,
        layers: number("/decoder/prednet/pred_rnn_layers").unwrap_or(1),
        activation: activation::named("activation", name.unwrap_or("relu"))?,
        durations: durations.collect(),
        limit: Limit::OfPosition(most),
        first: None,
    })
}

fn transformers_transducer(
    config: &Json,
    has_durations: bool,
    files: &Files,
) -> Result<TransducerSizes> {
    let c: TransformersTransducer = config::read(config)?;
    let most = c.max_symbols_per_step.0 as usize;
    let generation = files.json("generation_config.json")?;
    let first = generation.as_ref().and_then(|given| given.get("decoder_start_token_id")?.as_i64());
    let first = first.and_then(|id| u32::try_from(id).ok()).unwrap_or(c.blank_token_id.0 as u32);
    Ok(TransducerSizes {
        tokens: c.decoder_hidden_size.0,
        joint: c.decoder_hidden_size.0,
        layers: c.num_decoder_layers.0,
        activation: activation::named("hidden_act", &c.hidden_act)?,
        durations: if has_durations { config::field(config, "durations")? } else { Vec::new() },
        // Only the length of a whole text is bounded where tokens have durations.
        limit: if has_durations { Limit::OfText(most) } else { Limit::OfPosition(most) },
        first: Some(first),
    })
}

/// The front end of `preprocessor_config.json`.
fn transformers_audio(files: &Files, bins: Size) -> Result<NormalizedLogMelSizes> {
    #[derive(Deserialize)]
    struct Extractor {
        sampling_rate: Size,
        hop_length: Size,
        n_fft: Size,
        win_length: Size,
        preemphasis: f32,
    }
    let given = files.json("preprocessor_config.json")?;
    let defaults = json!({
        "sampling_rate": 16000, "hop_length": 160, "n_fft": 512, "win_length": 400, "preemphasis": 0.97,
    });
    let given = Json::from(given.unwrap_or_else(|| json!({})));
    let c: Extractor = config::read(&config::with_defaults(&given, defaults))?;
    Ok(NormalizedLogMelSizes {
        sample_rate: c.sampling_rate.0 as u32,
        n_fft: c.n_fft.0 as usize,
        window: c.win_length.0 as usize,
        hop: c.hop_length.0 as usize,
        bins: bins.0 as usize,
        pre_emphasis: c.preemphasis,
        is_last_frame_valid: true,
    })
}
