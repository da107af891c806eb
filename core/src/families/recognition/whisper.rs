//! Whisper ([Radford et al. 2022](https://arxiv.org/abs/2212.04356)): an encoder of 30-second windows
//! behind two convolutions, with sinusoidal positions, and a decoder with learned positions. Projections
//! of keys have no bias. Reads the layouts of transformers and of OpenAI, which mlx-examples and
//! mlx-audio keep. Follows `whisper` of mlx-audio, in the precision of the file.

use crate::{
    checkpoint::{file_rules::FileRules, files::Files},
    families::{Checkpoint, Entry, prelude::*},
    layers::{
        attention::{bidirectional::Heads, cross::CrossAttention},
        audio::{
            encoder::{
                BlockNames, ConvEncoder, EncoderSizes, FRAMES_OF_POSITION, TRANSFORMERS, mlp, norm,
                projections,
            },
            log_mel::{LogMel, N_FFT},
        },
    },
    models::speech::{AlignmentHead, Output, Transcriber, WindowedDecoder},
};
use std::rc::Rc;

pub const ENTRY: Entry = Entry::transcriber(&["whisper"], build, FileRules::USUAL);

/// Log-mel frames of a window of 30 seconds.
const FRAMES: i32 = 3000;

#[derive(Deserialize)]
struct Config {
    n_mels: Size,
    n_audio_ctx: Size,
    n_audio_state: Size,
    n_audio_head: Size,
    n_audio_layer: Size,
    n_vocab: Size,
    n_text_ctx: Size,
    n_text_head: Size,
    n_text_layer: Size,
    encoder_ffn_dim: Option<Size>,
    decoder_ffn_dim: Option<Size>,
    activation_function: Option<String>,
}

/// The fields of transformers under the names of OpenAI.
const RENAMED: &[(&str, &str)] = &[
    ("num_mel_bins", "n_mels"),
    ("max_source_positions", "n_audio_ctx"),
    ("d_model", "n_audio_state"),
    ("encoder_attention_heads", "n_audio_head"),
    ("encoder_layers", "n_audio_layer"),
    ("vocab_size", "n_vocab"),
    ("max_target_positions", "n_text_ctx"),
    ("decoder_attention_heads", "n_text_head"),
    ("decoder_layers", "n_text_layer"),
];

/// The names of tensors in one of the layouts.
struct Layout {
    blocks: BlockNames,
    cross: &'static str,
    cross_norm: &'static str,
    decoder_norm: &'static str,
    embedding: &'static str,
}

const HUGGING_FACE: Layout = Layout {
    blocks: TRANSFORMERS,
    cross: "encoder_attn",
    cross_norm: "encoder_attn_layer_norm",
    decoder_norm: "layer_norm",
    embedding: "embed_tokens",
};

const OPENAI: Layout = Layout {
    blocks: BlockNames {
        layers: "blocks",
        attention: "attn",
        attention_norm: "attn_ln",
        qkvo: ["query", "key", "value", "out"],
        up: "mlp.0",
        down: "mlp.2",
        mlp_norm: "mlp_ln",
        norm: "ln_post",
    },
    cross: "cross_attn",
    cross_norm: "cross_attn_ln",
    decoder_norm: "ln",
    embedding: "token_embedding",
};

const MLX: Layout =
    Layout { blocks: BlockNames { up: "mlp1", down: "mlp2", ..OPENAI.blocks }, ..OPENAI };

struct Whisper {
    encoder: ConvEncoder,
    output: WindowedDecoder,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Transcriber>> {
    let Checkpoint { config, weights, files } = *checkpoint;
    let c: Config = if config.get("d_model").is_some() {
        config::read_renamed(config, RENAMED, config::read)?
    } else {
        config::read(config)?
    };
    let w = if weights.has_below("model") { weights.at("model") } else { weights.clone() };
    // The head is the token embedding; some files have it twice.
    weights.ignore("proj_out");
    let encoder = w.at("encoder");
    let layout = match encoder.at("layers").has_below("0") {
        true => HUGGING_FACE,
        false if encoder.at("blocks.0").has_below("mlp1") => MLX,
        false => OPENAI,
    };
    config::only(config, json!({"scale_embedding": false, "is_encoder_decoder": true}))?;
    let activation = c.activation_function.as_deref().unwrap_or("gelu");
    let activation = activation::named("activation_function", activation)?;
    let sizes = EncoderSizes {
        bins: c.n_mels.0,
        width: c.n_audio_state.0,
        inner: inner(c.encoder_ffn_dim, &c)?,
        heads: c.n_audio_head.0,
        layers: c.n_audio_layer.0,
        positions: c.n_audio_ctx.0,
        activation,
    };
    if sizes.positions * FRAMES_OF_POSITION != FRAMES {
        let reason = format!("{} positions; windows of 1500 are supported", sizes.positions);
        return Err(Error::unsupported("max_source_positions", reason));
    }
    let alignment_heads = alignment_heads(files, &c)?;
    Ok(Box::new(Whisper {
        encoder: ConvEncoder::read(&encoder, &layout.blocks, sizes)?,
        output: WindowedDecoder {
            decoder: Rc::new(decoder(&w.at("decoder"), &layout, &c, sizes)?),
            front_end: LogMel::new(c.n_mels.0),
            frames: FRAMES,
            context: c.n_text_ctx.0 as usize,
            alignment_heads,
        },
    }))
}

/// The inner width of feed-forward networks, which OpenAI's configs do not name.
fn inner(given: Option<Size>, c: &Config) -> Result<i32> {
    given.map_or_else(|| config::product("d_model", [4, c.n_audio_state.0]), |inner| Ok(inner.0))
}

fn decoder(w: &Scope, layout: &Layout, c: &Config, encoder: EncoderSizes) -> Result<Positioned> {
    let (width, vocabulary) = (c.n_audio_state.0, c.n_vocab.0);
    let sizes = EncoderSizes { inner: inner(c.decoder_ffn_dim, c)?, ..encoder };
    let text = Text::read(&Json::from(json!({
        "hidden_size": width, "num_hidden_layers": c.n_text_layer.0,
        "intermediate_size": sizes.inner, "num_attention_heads": c.n_text_head.0,
        "vocab_size": vocabulary, "rms_norm_eps": 1e-5,
    })))?;
    let block = |i: i32| {
        let (w, names) = (w.at(layout.blocks.layers).at(i), &layout.blocks);
        let own = projections(&w.at(names.attention), names, width)?;
        let own = Residual::pre(
            norm(&w, names.attention_norm, width)?,
            Attention::new(own, &text, Rope::None),
        );
        let heads = Heads::equal(c.n_text_head.0, text.head_dim());
        let cross = CrossAttention::new(projections(&w.at(layout.cross), names, width)?, heads);
        let cross = Residual::pre(norm(&w, layout.cross_norm, width)?, cross);
        Ok(Block::new((own, (cross, mlp(&w, names, &sizes)?))))
    };
    let table = if w.has("positional_embedding") {
        w.tensor("positional_embedding", &[c.n_text_ctx.0, width])?
    } else {
        w.at("embed_positions").tensor("weight", &[c.n_text_ctx.0, width])?
    };
    let decoder = Decoder {
        embedding: w.embedding(layout.embedding, vocabulary, width)?,
        embedding_scale: None,
        blocks: (0..c.n_text_layer.0).map(block).collect::<Result<_>>()?,
        norm: norm(w, layout.decoder_norm, width)?,
        head: Head::new(None),
        original_context: None,
    };
    Ok(Positioned { decoder, table })
}

/// The heads of the decoder whose attention follows the audio: those of `generation_config.json`, or all
/// of the upper half of the layers.
fn alignment_heads(files: &Files, c: &Config) -> Result<Vec<AlignmentHead>> {
    let (layers, heads) = (c.n_text_layer.0, c.n_text_head.0);
    let generation = files.json("generation_config.json")?;
    let stated = generation.as_ref().and_then(|config| config.get("alignment_heads")?.as_array());
    let Some(stated) = stated else {
        let all = (layers / 2..layers)
            .flat_map(|layer| (0..heads).map(move |head| AlignmentHead { layer, head }));
        return Ok(all.collect());
    };
    let head = |pair: &Value| {
        let number = |i: usize| pair.get(i)?.as_i64().and_then(|n| i32::try_from(n).ok());
        let pair = AlignmentHead { layer: number(0)?, head: number(1)? };
        ((0..layers).contains(&pair.layer) && (0..heads).contains(&pair.head)).then_some(pair)
    };
    let refused = || Error::Config {
        file: "generation_config.json".into(),
        field: "alignment_heads".into(),
        reason: format!("must be pairs of one of {layers} layers and one of {heads} heads"),
    };
    stated.iter().map(|pair| head(pair).ok_or_else(refused)).collect()
}

impl Transcriber for Whisper {
    fn features(&self, samples: &[f32]) -> Result<Array> {
        let whole = FRAMES as usize * self.sample_rate() as usize / 100;
        // The range of a recording is that of all of it, and silence follows.
        let mut padded = samples.to_vec();
        padded.resize(samples.len() + whole + N_FFT, 0.0);
        let features = self.output.front_end.forward(&padded)?;
        Ok(mlx::slice(&features, 0, 0, FRAMES)?.expand_dims(0)?)
    }

    fn encode(&self, features: &Array) -> Result<Array> {
        self.encoder.forward(features)
    }

    fn output(&self) -> Output<'_> {
        Output::Windows(&self.output)
    }
}

/// A decoder that adds a learned vector for each position.
struct Positioned {
    decoder: Decoder,
    /// `[positions, width]`.
    table: Array,
}

impl Wrapper for Positioned {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        let (end, limit) = (step.offset.unwrap_or(0) + step.length, self.table.dim(0));
        if end > limit {
            let (tokens, limit) = (end as usize, limit as usize);
            return Err(Error::ContextOverflow { tokens, limit });
        }
        // A compiled decode step does not know its position on the host.
        let places = ops::minimum(&step.positions()?, Array::from_int(limit - 1))?;
        let hidden = x.hidden.add(self.table.take_axis(places, 0)?)?;
        self.decoder.forward(&x.with_hidden(hidden), cache, step)
    }
}
