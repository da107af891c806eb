//! DeepSeek V4.1: hyper-connected residual streams; attention over a sliding window and over
//! compressed groups of tokens, which a few layers pool and select for all; clamped experts whose
//! scores are the square root of softplus. Follows `deepseek_v41` of mlx-lm.

mod compressed;
mod compressed_attention;
mod compression;
mod group_indexer;
mod hyper_connection;
mod rounding;
mod tail_rope;

use crate::families::{
    prelude::*,
    text::deepseek_v41::{
        compressed_attention::{CompressedSizes, Name},
        hyper_connection::{Connected, Gather, HyperConnection, HyperSizes, Spread},
    },
};
use std::iter::once;

pub const FAMILY: Family = Family {
    model_types: &["deepseek_v41", "deepseek_v41_text"],
    build,
    recommended: Recommended::NOTHING,
};

#[derive(Deserialize)]
struct Config {
    gate_temp: Positive,
    swiglu_limit: f32,
    engram_layer_ids: Vec<i32>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        &config::text(config)?,
        json!({
            "vocab_size": 129_280, "hidden_size": 5120, "num_hidden_layers": 40,
            "num_attention_heads": 64, "head_dim": 512, "q_lora_rank": 1280, "qk_rope_head_dim": 64,
            "o_groups": 8, "o_lora_rank": 1024, "moe_intermediate_size": 2304, "n_routed_experts": 384,
            "num_experts_per_tok": 6, "scoring_func": "sqrtsoftplus", "gate_temp": 1.0,
            "norm_topk_prob": true, "routed_scaling_factor": 1.5, "swiglu_limit": 10.0,
            "rms_norm_eps": 1e-20, "sliding_window": 128, "compress_ratios": [],
            "kv_source_layer_ids": [], "index_source_layer_ids": [], "compress_rope_theta": 160_000.0,
            "candidate_source_layer_id": -1, "candidate_topk_blocks": 2048, "candidate_block_size": 8,
            "index_n_heads": 32, "index_head_dim": 128, "index_topk": 512, "rope_theta": 10_000.0,
            "max_position_embeddings": 1_048_576, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6,
            "engram_layer_ids": [],
        }),
    );
    let names = [("moe_intermediate_size", "intermediate_size")];
    let c = Text::read_renamed(&config::without(config, &["intermediate_size"]), &names)?;
    let (e, hyper): (Config, HyperSizes) = (config::read(config)?, config::read(config)?);
    if !(0.0..=f32::MAX).contains(&e.swiglu_limit) {
        return Err(Error::config("swiglu_limit", format!("{} is no limit", e.swiglu_limit)));
    }
    if !e.engram_layer_ids.is_empty() {
        return Err(Error::unsupported("engram_layer_ids", "n-gram memories are not supported"));
    }
    // The multi-token prediction layers and the vision tower are ignored.
    for unused in ["mtp", "vision", "aligner"] {
        w.ignore(unused);
    }
    w.ignore_starting("image_");
    let published = w.has_below("layers");
    let name: Name = if published { |[_, theirs]| theirs } else { |[ours, _]| ours };
    let body = if published { w.clone() } else { w.at("model") };
    let (sizes, width) = (CompressedSizes::read(config, &c, name)?, c.hidden_size);
    let head = Head::named(w, name(["lm_head", "head"]), Some(false), width, c.vocab_size)?;
    let ends = Ends { norm: body.rms_norm("norm", width, c.rms_norm_eps)?, head };
    let names = Names { embedding: name(["embed_tokens", "embed"]), ..Names::default() };
    let decoder = Decoder::assemble(&body, names, &c, ends, |i, w| {
        let norm = |names| w.rms_norm(name(names), width, c.rms_norm_eps);
        let connection =
            |names| HyperConnection::read(w, name(names), width, hyper, c.rms_norm_eps);
        let TwoNorms { before_mixer, before_ffn } = TWO_NORMS;
        let attention = Connected {
            connection: connection(["attn_hc.", "hc_attn_"])?,
            norm: norm([before_mixer, "attn_norm"])?,
            inner: sizes.attention(&w.at(name(["self_attn", "attn"])), i)?,
        };
        let network = Connected {
            connection: connection(["ffn_hc.", "hc_ffn_"])?,
            norm: norm([before_ffn, "ffn_norm"])?,
            inner: e.moe(&w.at(name(["mlp", "ffn"])), name, &c, config)?,
        };
        Ok(Block::new((attention, network)))
    })?;
    let (first, last) = (Block::new(Spread(*hyper.hc_mult)), Block::new(Gather));
    let blocks = once(first).chain(decoder.blocks).chain(once(last)).collect();
    Ok(Box::new(Decoder { blocks, ..decoder }))
}

impl Config {
    fn moe(&self, w: &Scope, name: Name, c: &Text, config: &Json) -> Result<Ffn> {
        // The reference does not group experts.
        let routing = LossFreeRouting { n_group: None, topk_group: None, ..config::read(config)? };
        let (count, gate) = (routing.n_routed_experts, w.at("gate"));
        // This bias routes images.
        gate.ignore("bias_vl");
        let logits = gate.take("weight", &[count, c.hidden_size])?.as_dtype(Dtype::Float32)?;
        let logits = Linear::new(Matrix::Dense(gate.keep(logits)), None);
        let correction = gate.tensor(name(["e_score_correction_bias", "bias"]), &[count])?;
        let score = router::score(config, "scoring_func")?;
        let temperature = *self.gate_temp;
        let router = LossFreeRouter::new(logits, Some(correction), &routing)?
            .scores(move |logits| score(&logits.divide(Array::from_f32(temperature))?));
        let sizes = ExpertSizes { count, width: c.hidden_size, inner: c.intermediate_size };
        let theirs = W1_W3_W2;
        let names = MlpNames {
            gate: name([GATE_UP_DOWN.gate, theirs.gate]),
            up: name([GATE_UP_DOWN.up, theirs.up]),
            down: name([GATE_UP_DOWN.down, theirs.down]),
        };
        let gate = || clamped_swiglu(self.swiglu_limit);
        let experts = GatedExperts::read_named(w, "experts.switch_mlp", theirs, sizes, gate())?;
        let shared = Mlp::read(&w.at("shared_experts"), names, c, gate())?;
        Ok(Box::new(Map(move |x: &Array| {
            let (ids, weights) = router.route(x)?;
            let y = experts.forward(x, &ids)?.as_dtype(Dtype::Float32)?;
            let y = y.multiply(weights.expand_dims(-1)?)?.sum_axis(-2, false)?;
            Ok(y.add(shared.apply(x)?.as_dtype(Dtype::Float32)?)?.as_dtype(x.dtype())?)
        })))
    }
}

/// SwiGLU in float32; the gate is clamped from above and the up projection on both sides. A limit
/// of 0 clamps nothing.
fn clamped_swiglu(limit: f32) -> impl Gate {
    move |gate: &Array, up: &Array| {
        let (mut wide, mut values) = (gate.as_dtype(Dtype::Float32)?, up.as_dtype(Dtype::Float32)?);
        if limit > 0.0 {
            let [least, most] = [-limit, limit].map(Array::from_f32);
            wide = ops::minimum(&wide, &most)?;
            values = ops::clip(&values, (least, most))?;
        }
        Ok(swiglu(&wide, &values)?.as_dtype(up.dtype())?)
    }
}
