//! DeepSeek V4.1: hyper-connected streams; attention to a window and to groups of tokens, which a
//! few layers pool and choose for all; clamped experts, of which the square root of softplus decides.
//! Follows `deepseek_v41` of mlx-lm.

use super::gemma3_text::without;
use crate::{
    model::{Cache, Embedded},
    parts::{
        activation::softplus,
        compressed_attention::{CompressedSizes, Name},
        compression::Compression,
        ffn::Gate,
        hyper_connection::{HyperConnection, HyperSizes},
        router::{sigmoid, softmax},
        tail_rope::TailRope,
    },
    prelude::*,
};
use mlx_rs::Dtype;

pub const FAMILY: Family = Family { model_types: &["deepseek_v41", "deepseek_v41_text"], build };

#[derive(Deserialize)]
struct Config {
    q_lora_rank: Size,
    qk_rope_head_dim: Size,
    o_groups: Size,
    o_lora_rank: Size,
    scoring_func: String,
    gate_temp: Positive,
    swiglu_limit: f32,
    engram_layer_ids: Vec<i32>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config::text(config)?, json!({
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
    }));
    let names = [("moe_intermediate_size", "intermediate_size")];
    let c = Text::read_renamed(&without(config, &["intermediate_size"]), &names)?;
    let (e, hyper): (Config, HyperSizes) = (config::read(config)?, config::read(config)?);
    let compression = Compression::read(config)?;
    e.check(&c, &compression)?;
    // Layers that predict further tokens, ready for drafters, and what sees images.
    for unused in ["mtp", "vision", "aligner"] {
        w.ignore(unused);
    }
    w.ignore_starting("image_");
    let published = w.has_below("layers");
    let name: Name = if published { |[_, theirs]| theirs } else { |[ours, _]| ours };
    let body = if published { w.clone() } else { w.at("model") };
    let sizes = CompressedSizes {
        text: &c,
        compression: &compression,
        name,
        rank: *e.q_lora_rank,
        output: [*e.o_groups, *e.o_lora_rank],
        ropes: e.ropes(&c, &compression, config)?,
    };
    let (mut blocks, mut layers) = (Vec::new(), Vec::new());
    for i in 0..c.num_hidden_layers {
        let w = body.at("layers").at(i);
        let norm = |names| w.rms_norm(name(names), c.hidden_size, c.rms_norm_eps);
        let connection =
            |names| HyperConnection::read(&w, name(names), c.hidden_size, hyper, c.rms_norm_eps);
        blocks.push(Block::new(sizes.attention(&w.at(name(["self_attn", "attn"])), i)?));
        let [before_attention, before_network] = TWO_NORMS;
        layers.push(AroundAttention {
            attention: (
                connection(["attn_hc.", "hc_attn_"])?,
                norm([before_attention, "attn_norm"])?,
            ),
            network: (connection(["ffn_hc.", "hc_ffn_"])?, norm([before_network, "ffn_norm"])?),
            moe: e.moe(&w.at(name(["mlp", "ffn"])), name, &c, config)?,
        });
    }
    let (vocabulary, width) = (c.vocab_size, c.hidden_size);
    Ok(Box::new(DeepseekV41 {
        decoder: Decoder {
            embedding: body.embedding(name(["embed_tokens", "embed"]), vocabulary, width)?,
            embedding_scale: None,
            blocks,
            norm: body.rms_norm("norm", width, c.rms_norm_eps)?,
            head: Head::named(w, name(["lm_head", "head"]), Some(false), width, vocabulary)?,
        },
        layers,
        streams: hyper.hc_mult,
    }))
}

impl Config {
    fn check(&self, c: &Text, compression: &Compression) -> Result<()> {
        let wrong = |field, reason: String| Err(Error::config(field, reason));
        let (rotated, heads) = (*self.qk_rope_head_dim, c.num_attention_heads);
        let narrowest = c.head_dim().min(compression.index_head_dim);
        if rotated % 2 != 0 || rotated > narrowest {
            let reason =
                format!("{rotated} of {narrowest} elements of a head cannot be rotated in pairs");
            return wrong("qk_rope_head_dim", reason);
        }
        if heads * c.head_dim() % *self.o_groups != 0 {
            return wrong("o_groups", format!("does not divide {heads} heads of {}", c.head_dim()));
        }
        config::product("o_lora_rank", [*self.o_groups, *self.o_lora_rank])?;
        if !(0.0..=f32::MAX).contains(&self.swiglu_limit) {
            return wrong("swiglu_limit", format!("{} is no limit", self.swiglu_limit));
        }
        if !self.engram_layer_ids.is_empty() {
            return wrong("engram_layer_ids", "memories of n-grams are not supported".into());
        }
        Ok(())
    }

    /// Positions without groups, which nothing stretches, and with groups.
    fn ropes(&self, c: &Text, compression: &Compression, config: &Json) -> Result<[TailRope; 2]> {
        let context = &config["max_position_embeddings"];
        let original = json!({"original_max_position_embeddings": context});
        let scaling = match &config["rope_scaling"] {
            Json::Object(_) => config::with_defaults(&config["rope_scaling"], original),
            _ => original,
        };
        let (dims, base) = (*self.qk_rope_head_dim, compression.compress_rope_theta);
        Ok([
            TailRope::yarn(dims, c.rope_theta(), &Json::Null)?,
            TailRope::yarn(dims, base, &scaling)?,
        ])
    }

    fn moe(&self, w: &Scope, name: Name, c: &Text, config: &Json) -> Result<Ffn> {
        // The reference knows no groups of experts.
        let routing = LossFreeRouting { n_group: None, topk_group: None, ..config::read(config)? };
        let (count, gate) = (routing.n_routed_experts, w.at("gate"));
        // It routes images.
        gate.ignore("bias_vl");
        let logits = gate.take("weight", &[count, c.hidden_size])?.as_dtype(Dtype::Float32)?;
        let logits = Linear::new(Matrix::Dense(gate.keep(logits)), None);
        let correction = gate.tensor(name(["e_score_correction_bias", "bias"]), &[count])?;
        let score: fn(&Array) -> Result<Array> = match self.scoring_func.as_str() {
            "sqrtsoftplus" => |x| Ok(softplus(x)?.sqrt()?),
            "sigmoid" => sigmoid,
            "softmax" => softmax,
            other => {
                let reason = format!("`{other}` is neither sqrtsoftplus, sigmoid nor softmax");
                return Err(Error::config("scoring_func", reason));
            }
        };
        let temperature = *self.gate_temp;
        let router = LossFreeRouter::new(logits, Some(correction), &routing)?
            .scores(move |logits| score(&logits.divide(Array::from_f32(temperature))?));
        let (sizes, theirs) = ([count, c.hidden_size, c.intermediate_size], ["w1", "w3", "w2"]);
        let names = [0, 1, 2].map(|i| name([GATE_UP_DOWN[i], theirs[i]]));
        let gate = || clamped_swiglu(self.swiglu_limit);
        Ok(Box::new(Mixture {
            router,
            experts: GatedExperts::read_named(w, "experts.switch_mlp", theirs, sizes, gate())?,
            shared: Mlp::read(&w.at("shared_experts"), names, c, gate())?,
        }))
    }
}

/// SwiGLU in single precision, the gate cut above a limit and the values on both sides; 0 is none.
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

/// Experts and one that all tokens share, summed in single precision.
struct Mixture {
    router: LossFreeRouter,
    experts: GatedExperts,
    shared: Mlp,
}

impl Layer for Mixture {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        let (ids, weights) = self.router.route(x)?;
        let experts = self.experts.forward(x, &ids)?.as_dtype(Dtype::Float32)?;
        let routed = experts.multiply(weights.expand_dims(-1)?)?.sum_axis(-2, false)?;
        let shared = self.shared.forward(x, &mut (), step)?.as_dtype(Dtype::Float32)?;
        Ok(routed.add(shared)?.as_dtype(x.dtype())?)
    }
}

struct DeepseekV41 {
    /// Its blocks are attention alone.
    decoder: Decoder,
    layers: Vec<AroundAttention>,
    streams: i32,
}

/// A block but for its attention.
struct AroundAttention {
    attention: (HyperConnection, Norm),
    network: (HyperConnection, Norm),
    moe: Ffn,
}

impl Wrapper for DeepseekV41 {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        let mut x = x.hidden.clone();
        let shape = [x.dim(0), x.dim(1), self.streams, x.dim(2)];
        let mut streams = ops::broadcast_to(x.expand_dims(2)?, &shape)?;
        let layers = self.decoder.blocks.iter().zip(&self.layers).zip(&mut cache.states);
        for ((attention, layer), state) in layers {
            let (connection, norm) = &layer.attention;
            [streams, x] = connection.forward([&streams, &x], |x| {
                attention.forward(&norm.forward(x)?, &mut **state, step)
            })?;
            let (connection, norm) = &layer.network;
            [streams, x] = connection
                .forward([&streams, &x], |x| layer.moe.forward(&norm.forward(x)?, &mut (), step))?;
        }
        self.decoder.norm.forward(&x)
    }
}
