//! Moonshine ([Jeffries et al. 2024](https://arxiv.org/abs/2410.15608)): three convolutions over the
//! waveform itself, an encoder and a decoder with rotary positions on nine tenths of each head, and a
//! SwiGLU in the decoder. Follows `moonshine` of mlx-audio.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Checkpoint, Entry, prelude::*},
    layers::{
        attention::{
            bidirectional::{BidirectionalAttention, Heads},
            cross::CrossAttention,
        },
        audio::{
            convolution::{Convolution, Kernel},
            encoder::run_blocks,
        },
    },
    models::speech::{Output, PromptedDecoder, Said, SpeechRequest, Transcriber},
    text::Tokenizer,
};
use std::rc::Rc;

pub const ENTRY: Entry = Entry::transcriber(&["moonshine"], build, FileRules::USUAL);

/// The stride of the three convolutions together is 384 samples.
const STRIDES: [i32; 3] = [64, 3, 2];
const TAPS: [i32; 3] = [127, 7, 3];
/// The samples of one position of the encoder; a shorter clip is followed by silence.
const SHORTEST: usize = 127 + 64 * (7 - 1) + 64 * 3 * (3 - 1);

#[derive(Deserialize)]
struct Config {
    vocab_size: Size,
    hidden_size: Size,
    intermediate_size: Size,
    encoder_num_hidden_layers: Size,
    decoder_num_hidden_layers: Size,
    encoder_num_attention_heads: Size,
    decoder_num_attention_heads: Size,
    encoder_num_key_value_heads: Option<Size>,
    decoder_num_key_value_heads: Option<Size>,
    partial_rotary_factor: f32,
    rope_theta: Positive,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

struct Moonshine {
    convs: [Convolution; 3],
    /// Over all positions and channels.
    group_norm: [Array; 2],
    blocks: Vec<Block>,
    norm: Norm,
    decoder: Rc<dyn LanguageModel>,
    tokenizer: Tokenizer,
    start: u32,
    ends: Vec<u32>,
}

/// Attention heads, of queries and of keys.
#[derive(Clone, Copy)]
struct HeadCounts {
    queries: i32,
    keys: i32,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Transcriber>> {
    let Checkpoint { config, weights, files } = *checkpoint;
    config::only(config, json!({"decoder_hidden_act": "silu", "is_encoder_decoder": true}))?;
    let defaults = json!({
        "partial_rotary_factor": 0.9, "rope_theta": 10000.0, "decoder_start_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": true, "encoder_hidden_act": "gelu",
    });
    // Newer configs have the fields of rotary positions in an object of their own.
    let rope = config::part(config, "rope_parameters", json!({}));
    config::only(&rope, json!({"rope_type": "default"}))?;
    let rotary = ["partial_rotary_factor", "rope_theta"];
    let config = rotary.iter().fold(config::with_defaults(config, defaults), |config, name| {
        rope.get(name).map_or(config.clone(), |value| config.with(name, value.clone()))
    });
    let (config, c) = (&config, config::read::<Config>(&config)?);
    let tied: bool = config::field(config, "tie_word_embeddings")?;
    let w = if weights.has_below("model") { weights.at("model") } else { weights.clone() };
    let (encoder, width) = (w.at("encoder"), c.hidden_size.0);
    let widths = [1, width, 2 * width, width];
    let conv = |i: usize| {
        let kernel = Kernel::new(widths[i], widths[i + 1], TAPS[i]).stride(STRIDES[i]);
        encoder.at(format!("conv{}", i + 1)).convolution(kernel, 0)
    };
    let group_norm = encoder.at("groupnorm");
    let layers = encoder.at("layers");
    let keys = |given: &Option<Size>, queries: Size| given.map_or(queries.0, |keys| keys.0);
    let heads = HeadCounts {
        queries: c.encoder_num_attention_heads.0,
        keys: keys(&c.encoder_num_key_value_heads, c.encoder_num_attention_heads),
    };
    let decoder_heads = HeadCounts {
        queries: c.decoder_num_attention_heads.0,
        keys: keys(&c.decoder_num_key_value_heads, c.decoder_num_attention_heads),
    };
    let head = Head::named(weights, "proj_out", Some(tied), width, c.vocab_size.0)?;
    let activation: String = config::field(config, "encoder_hidden_act")?;
    let activation = activation::named("encoder_hidden_act", &activation)?;
    let block = |i: i32| encoder_block(&layers.at(i), &c, heads, activation);
    Ok(Box::new(Moonshine {
        convs: [conv(0)?, conv(1)?, conv(2)?],
        group_norm: [group_norm.tensor("weight", &[width])?, group_norm.tensor("bias", &[width])?],
        blocks: (0..c.encoder_num_hidden_layers.0).map(block).collect::<Result<_>>()?,
        norm: encoder.layer_norm("layer_norm", width, 1e-5)?,
        decoder: Rc::new(decoder(&w.at("decoder"), &c, decoder_heads, head)?),
        tokenizer: Tokenizer::load(files)?,
        start: config::field(config, "decoder_start_token_id")?,
        ends: match config::field(config, "eos_token_id")? {
            OneOrMore::One(id) => vec![id],
            OneOrMore::More(ids) => ids,
        },
    }))
}

fn projections(w: &Scope, width: i32, heads: HeadCounts) -> Result<[Linear; 4]> {
    let keys = width / heads.queries * heads.keys;
    let [q, k, v, o] = QKVO;
    Ok([
        w.linear(q, width, width)?,
        w.linear(k, width, keys)?,
        w.linear(v, width, keys)?,
        w.linear(o, width, width)?,
    ])
}

fn rope(c: &Config, heads: HeadCounts) -> Rope {
    let dims = ((c.hidden_size.0 / heads.queries) as f32 * c.partial_rotary_factor) as i32;
    Rope::Base { dims: dims / 2 * 2, traditional: true, base: c.rope_theta.0, scale: 1.0 }
}

fn bidirectional(c: &Config, heads: HeadCounts) -> Heads {
    let scale = ((c.hidden_size.0 / heads.queries) as f32).powf(-0.5);
    Heads { heads: heads.queries, kv_heads: heads.keys, scale }
}

fn encoder_block(
    w: &Scope,
    c: &Config,
    heads: HeadCounts,
    activation: activation::Activation,
) -> Result<Block> {
    let (width, inner) = (c.hidden_size.0, c.intermediate_size.0);
    let norm = |name: &str| w.layer_norm(name, width, 1e-5);
    let qkvo = projections(&w.at("self_attn"), width, heads)?;
    let attention = BidirectionalAttention::new(qkvo, bidirectional(c, heads), rope(c, heads));
    let mlp = w.at("mlp");
    let (up, down) =
        (mlp.linear_with_bias("fc1", width, inner)?, mlp.linear_with_bias("fc2", inner, width)?);
    Ok(Block::new((
        Residual::pre(norm("input_layernorm")?, attention),
        Residual::pre(norm("post_attention_layernorm")?, PlainMlp::new(up, down, activation)),
    )))
}

fn decoder(w: &Scope, c: &Config, heads: HeadCounts, head: Head) -> Result<Decoder> {
    let (width, inner) = (c.hidden_size.0, c.intermediate_size.0);
    let text = Text::read(&Json::from(json!({
        "hidden_size": width, "num_hidden_layers": c.decoder_num_hidden_layers.0,
        "intermediate_size": inner, "num_attention_heads": heads.queries,
        "num_key_value_heads": heads.keys, "vocab_size": c.vocab_size.0, "rms_norm_eps": 1e-5,
    })))?;
    let rope = rope(c, heads);
    let ends = Ends { norm: w.layer_norm("norm", width, 1e-5)?, head };
    Decoder::assemble(w, Names::default(), &text, ends, |_, w| {
        let norm = |name: &str| w.layer_norm(name, width, 1e-5);
        let own = projections(&w.at("self_attn"), width, heads)?;
        let cross = projections(&w.at("encoder_attn"), width, heads)?;
        let mlp = w.at("mlp");
        let [up, gate] = mlp.fused("fc1", width, [inner; 2])?;
        let mlp = Mlp::new(gate, up, mlp.linear_with_bias("fc2", inner, width)?, swiglu);
        Ok(Block::new((
            Residual::pre(norm("input_layernorm")?, Attention::new(own, &text, rope.clone())),
            (
                Residual::pre(
                    norm("post_attention_layernorm")?,
                    CrossAttention::new(cross, bidirectional(c, heads)),
                ),
                Residual::pre(norm("final_layernorm")?, mlp),
            ),
        )))
    })
}

impl Transcriber for Moonshine {
    /// The samples themselves.
    fn features(&self, samples: &[f32]) -> Result<Array> {
        let mut samples = samples.to_vec();
        samples.resize(samples.len().max(SHORTEST), 0.0);
        Ok(Array::from_slice(&samples, &[1, samples.len() as i32, 1]))
    }

    fn encode(&self, features: &Array) -> Result<Array> {
        let [first, second, third] = &self.convs;
        let x = ops::tanh(&first.forward(&features.as_dtype(first.dtype())?)?)?;
        let centred = x.subtract(x.mean_axes(&[1, 2], true)?)?;
        let variance = centred.square()?.mean_axes(&[1, 2], true)?;
        let epsilon = mlx::scalar(1e-5, x.dtype())?;
        let [weight, bias] = &self.group_norm;
        let x = centred.multiply(variance.add(epsilon)?.rsqrt()?)?.multiply(weight)?.add(bias)?;
        let x = gelu(&third.forward(&gelu(&second.forward(&x)?)?)?)?;
        self.norm.forward(&run_blocks(&self.blocks, x)?)
    }

    fn output(&self) -> Output<'_> {
        Output::Prompted(self)
    }
}

impl PromptedDecoder for Moonshine {
    fn decoder(&self) -> &Rc<dyn LanguageModel> {
        &self.decoder
    }

    /// Longer clips than those of its training make it repeat itself.
    fn longest(&self) -> f64 {
        60.0
    }

    fn prompt(&self, encoded: &Array, _: &SpeechRequest) -> Result<Embedded> {
        let mut prompt = self.decoder.embed(&Array::from_slice(&[self.start], &[1, 1]))?;
        prompt.encoded = Some(encoded.clone());
        Ok(prompt)
    }

    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn limit(&self, _: f64) -> usize {
        200
    }

    fn said(&self, tokens: &[u32], _: &SpeechRequest) -> Result<Said> {
        let text = self.tokenizer.decode(tokens, true)?.trim().to_string();
        Ok(Said { text, language: None })
    }
}
