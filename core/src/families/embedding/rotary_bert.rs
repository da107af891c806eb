//! BERT with rotary positions and gated networks: Nomic's embedder ([Nussbaum et al.
//! 2024](https://arxiv.org/abs/2402.01613)) and GTE of Alibaba ([Zhang et al. 2024](https://arxiv.org/abs/2407.19669)).
//! Both have the names of their authors' code and those of transformers. Follows `transformers`, which
//! lacks the NTK scaling of the English GTE 1.5; it is refused.

use crate::{
    families::{
        Checkpoint,
        prelude::*,
        text_encoders::{Classifier, TextEncoderFamily, equal_heads, first_token, label},
    },
    layers::{
        attention::bidirectional::BidirectionalAttention, feed_forward::activation::Activation,
        residual::PostNorm,
    },
    models::{embedder::TextEncoder, text_batch::TextBatch},
};

pub const NOMIC_BERT: TextEncoderFamily = TextEncoderFamily {
    model_types: &["nomic_bert"],
    encoder: |checkpoint| encoder(checkpoint, &read_nomic(checkpoint.config)?),
    classifier: |checkpoint| classifier(checkpoint, &read_nomic(checkpoint.config)?),
};

/// What the authors of GTE call it.
pub const AUTHORS_TYPE: &str = "new";

pub const GTE: TextEncoderFamily = TextEncoderFamily {
    model_types: &["gte"],
    encoder: |checkpoint| encoder(checkpoint, &read_gte(checkpoint.config)?),
    classifier: |checkpoint| classifier(checkpoint, &read_gte(checkpoint.config)?),
};

/// Names of the authors' code and of transformers.
const NAMES: &[(&str, &str)] = &[
    ("emb_ln.", "embeddings.LayerNorm."),
    (".norm1.", ".post_attention_layernorm."),
    (".norm2.", ".post_mlp_layernorm."),
    (".attn_ln.", ".post_attention_layernorm."),
    (".mlp_ln.", ".post_mlp_layernorm."),
    (".attn.Wqkv.", ".self_attn.qkv_proj."),
    (".attn.out_proj.", ".self_attn.o_proj."),
    (".attention.qkv_proj.", ".self_attn.qkv_proj."),
    (".attention.o_proj.", ".self_attn.o_proj."),
    (".mlp.fc11.", ".mlp.up_proj."),
    (".mlp.fc12.", ".mlp.gate_proj."),
    (".mlp.fc2.", ".mlp.down_proj."),
];

#[derive(Deserialize)]
struct Config {
    vocab_size: Size,
    hidden_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    intermediate_size: Size,
    max_position_embeddings: Size,
    type_vocab_size: Count,
    layer_norm_eps: Epsilon,
    hidden_act: String,
    rope_theta: Positive,
    rope_scaling: Option<RopeScaling>,
    rope_parameters: Option<RopeScaling>,
}

/// Fields that name how numbers are computed, and nothing else.
const HARMLESS: &[&str] = &[
    "fused_bias_fc",
    "fused_dropout_add_ln",
    "use_flash_attn",
    "use_xentropy",
    "pad_vocab_size_multiple",
    "unpad_inputs",
    "use_memory_efficient_attention",
    "dense_seq_output",
    "last_layer_subset",
    "pack_qkv",
    "max_trained_positions",
    "logn_attention_clip1",
];

/// Nomic's config, which spells some fields as GPT-2 does.
fn read_nomic(config: &Json) -> Result<Config> {
    config::only(
        config,
        json!({
            "prenorm": false, "parallel_block": false, "causal": false, "use_rms_norm": false,
            "rotary_emb_fraction": 1.0, "rotary_emb_scale_base": null, "rotary_scaling_factor": null,
            "rotary_emb_interleaved": false, "qkv_proj_bias": false, "scale_attn_by_inverse_layer_idx": false,
            "scale_attn_weights": true, "num_experts": 0, "is_decoder": false,
        }),
    )?;
    config::only_one_of(config, "activation_function", &[json!("swiglu"), json!("silu")])?;
    let defaults = json!({
        "vocab_size": 30528, "num_hidden_layers": 12, "num_attention_heads": 12,
        "max_position_embeddings": 2048, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "hidden_act": "silu", "rope_theta": 1000.0, "hidden_size": 768, "intermediate_size": 3072,
    });
    let names = [
        ("n_embd", "hidden_size"),
        ("n_head", "num_attention_heads"),
        ("n_inner", "intermediate_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_positions", "max_position_embeddings"),
        ("layer_norm_epsilon", "layer_norm_eps"),
        ("rotary_emb_base", "rope_theta"),
    ];
    config::read_renamed(config, &names, |config| read(config, defaults))
}

/// The config of GTE, whose authors call it `new`.
fn read_gte(config: &Json) -> Result<Config> {
    config::only(
        config,
        json!({
            "position_embedding_type": "rope", "layer_norm_type": "layer_norm",
            "logn_attention_scale": false, "is_decoder": false,
        }),
    )?;
    let is_new = config::field::<String>(config, "model_type")? == AUTHORS_TYPE;
    let base = if is_new { 10_000.0 } else { 160_000.0 };
    let defaults = json!({
        "vocab_size": 250048, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": 8192, "type_vocab_size": 1,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu", "rope_theta": base,
    });
    read(config, defaults)
}

fn read(config: &Json, defaults: Value) -> Result<Config> {
    for field in HARMLESS {
        config.get(field);
    }
    config::read(&config::with_defaults(config, defaults))
}

impl Config {
    fn rope(&self, dims: i32) -> Result<Rope> {
        let nested = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref());
        let base = nested.and_then(|nested| nested.rope_theta).unwrap_or(*self.rope_theta);
        Rope::scaled(dims, base, false, nested, Some(*self.max_position_embeddings))
    }
}

/// The encoder's place in a checkpoint of any head, under the names of transformers.
fn body(w: &Scope) -> Scope {
    w.rename(NAMES);
    for head in ["cls", "lm_head"] {
        w.ignore(head);
    }
    let body = ["nomic_bert", "gte", "new", "bert"].into_iter().find(|name| w.has_below(name));
    body.map_or_else(|| w.clone(), |name| w.at(name))
}

struct RotaryBert {
    words: Embedding,
    types: Option<Embedding>,
    norm: Norm,
    encoder: Encoder,
    longest: usize,
    width: i32,
}

fn encoder(checkpoint: &Checkpoint, c: &Config) -> Result<Box<dyn TextEncoder>> {
    let w = body(checkpoint.weights);
    w.ignore("pooler");
    let (tables, width) = (w.at("embeddings"), *c.hidden_size);
    tables.ignore("position_ids");
    let layers = w.first_of(["encoder.layers".into(), "encoder.layer".into(), "layers".into()]);
    let types = (*c.type_vocab_size > 0)
        .then(|| tables.embedding("token_type_embeddings", *c.type_vocab_size, width));
    Ok(Box::new(RotaryBert {
        words: tables.embedding("word_embeddings", *c.vocab_size, width)?,
        types: types.transpose()?,
        norm: tables.layer_norm_with_bias("LayerNorm", width, *c.layer_norm_eps)?,
        encoder: blocks(&layers, c)?,
        longest: *c.max_position_embeddings as usize,
        width,
    }))
}

fn blocks(w: &Scope, c: &Config) -> Result<Encoder> {
    let width = *c.hidden_size;
    let heads = equal_heads(*c.num_attention_heads, width)?;
    let rope = c.rope(width / heads.heads)?;
    let activation = activation::named("hidden_act", &c.hidden_act)?;
    Encoder::read(w, *c.num_hidden_layers, |_, w| {
        let a = w.at("self_attn");
        let [q, k, v] = if a.has_below("qkv_proj") {
            a.fused("qkv_proj", width, [width; 3])?
        } else {
            let read = |name| a.linear(name, width, width);
            [read("q_proj")?, read("k_proj")?, read("v_proj")?]
        };
        let projections = [q, k, v, a.linear("o_proj", width, width)?];
        let attention = BidirectionalAttention::new(projections, heads, rope.clone());
        let mlp = mlp(&w.at("mlp"), c, activation)?;
        let norm = |name| w.layer_norm_with_bias(name, width, *c.layer_norm_eps);
        Ok(encoder::block(
            PostNorm::new(attention, norm("post_attention_layernorm")?),
            PostNorm::new(mlp, norm("post_mlp_layernorm")?),
        ))
    })
}

fn mlp(w: &Scope, c: &Config, activation: Activation) -> Result<Mlp> {
    let (width, inner) = (*c.hidden_size, *c.intermediate_size);
    let [up, gate] = if w.has_below("up_gate_proj") {
        w.fused("up_gate_proj", width, [inner; 2])?
    } else {
        [w.linear("up_proj", width, inner)?, w.linear("gate_proj", width, inner)?]
    };
    Ok(Mlp::new(gate, up, w.linear("down_proj", inner, width)?, gated(activation)))
}

impl TextEncoder for RotaryBert {
    fn vocabulary(&self) -> u32 {
        self.words.vocabulary()
    }

    fn longest(&self) -> Option<usize> {
        Some(self.longest)
    }

    fn width(&self) -> i32 {
        self.width
    }

    fn encode(&self, batch: &TextBatch) -> Result<Array> {
        let mut x = self.words.lookup(&batch.ids)?;
        if let Some(types) = &self.types {
            let zero = Array::from_slice(&[0], &[1, 1]);
            let has_types = types.vocabulary() > 1;
            x = x.add(types.lookup(if has_types { &batch.types } else { &zero })?)?;
        }
        self.encoder.forward(&self.norm.forward(&x)?, &batch.bidirectional(None)?)
    }
}

/// A pooler over the first token, and the label.
fn classifier(checkpoint: &Checkpoint, c: &Config) -> Result<Classifier> {
    let (w, width) = (checkpoint.weights, *c.hidden_size);
    let dense = body(w).linear_with_bias("pooler.dense", width, width)?;
    Ok(first_token(dense, |x| Ok(ops::tanh(x)?), label(w, "classifier", width)?))
}
