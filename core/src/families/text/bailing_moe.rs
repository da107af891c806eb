//! Ling and Ring: fused projections, queries and keys normalised in some, and DeepSeek V3's mixture
//! of experts with other scores in some. Follows `bailing_moe` of mlx-lm.

use super::glm4_moe::{beside_shared, stacked};
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["bailing_moe"], build };

#[derive(Deserialize)]
struct Config {
    moe_intermediate_size: Size,
    moe_shared_expert_intermediate_size: Option<Size>,
    #[serde(default)]
    num_shared_experts: Count,
    first_k_dense_replace: Count,
    rotary_dim: Option<Size>,
    use_qk_norm: bool,
    use_qkv_bias: bool,
    norm_head: bool,
    moe_router_enable_expert_bias: bool,
    moe_router_enable_shared_expert: bool,
    score_function: String,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "use_bias": false, "use_qkv_bias": false, "norm_head": false, "use_qk_norm": false,
        "moe_router_enable_expert_bias": false, "moe_router_enable_shared_expert": true,
        "routed_scaling_factor": 1.0, "score_function": "softmax", "n_group": 1, "topk_group": 4,
    }));
    let (c, e): (Text, Config) =
        (Text::read_renamed(config, &[("use_bias", "mlp_bias")])?, config::read(config)?);
    let names = [("num_experts", "n_routed_experts")];
    let routing: LossFreeRouting = config::read_renamed(config, &names, config::read)?;
    let rope = match e.rotary_dim {
        Some(Size(dims)) => Rope::rotary_dim(&c, dims)?,
        None => Rope::share(&c, 1.0)?,
    };
    let decoder = Decoder::named(
        &w.at("model"),
        ["word_embeddings", "layers", "norm"],
        &c,
        head(w, &c, &e)?,
        |i, w| {
            let mlp = w.at("mlp");
            let ffn = if i < *e.first_k_dense_replace {
                dense(&mlp, &c)?
            } else {
                experts(&mlp, &c, &e, &routing)?
            };
            pre_norm(w, &c, attention(&w.at("attention"), &c, &e, rope.clone())?, ffn)
        },
    )?;
    Ok(Box::new(decoder))
}

fn attention(w: &Scope, c: &Text, e: &Config, rope: Rope) -> Result<Attention> {
    let ([queries, keys], width) = (c.qk_widths(), c.hidden_size);
    if e.use_qkv_bias {
        w.at("query_key_value").require("bias")?;
    }
    let [q, k, v] = w.fused("query_key_value", width, [queries, keys, keys])?;
    let read = if c.mlp_bias { Scope::linear_with_bias } else { Scope::linear };
    let attention = Attention::new([q, k, v, read(w, "dense", queries, width)?], c, rope);
    if !e.use_qk_norm {
        return Ok(attention);
    }
    let norm = |name| w.rms_norm(name, c.head_dim(), c.rms_norm_eps);
    let norms = QkNorm::BeforeRope(norm("query_layernorm")?, norm("key_layernorm")?);
    Ok(attention.qk_norm(norms))
}

fn experts(w: &Scope, c: &Text, e: &Config, routing: &LossFreeRouting) -> Result<Ffn> {
    let (count, width) = (routing.n_routed_experts, c.hidden_size);
    let gate = w.at("gate");
    let bias = e.moe_router_enable_expert_bias.then(|| gate.tensor("expert_bias", &[count]));
    let logits = if gate.has("weight") {
        w.linear("gate", width, count)?
    } else {
        gate.linear("gate_proj", width, count)?
    };
    let score = if e.score_function == "sigmoid" { router::sigmoid } else { router::softmax };
    let router = LossFreeRouter::new(logits, bias.transpose()?, routing)?;
    let router = router.scores(score).choosing(router::top_k).rounded();
    let moe = Moe::new(router, stacked(w, [count, width, *e.moe_intermediate_size])?);
    let inner = e.moe_shared_expert_intermediate_size.unwrap_or(e.moe_intermediate_size);
    let shared = if e.moe_router_enable_shared_expert { *e.num_shared_experts } else { 0 };
    beside_shared(w, c, moe, [*inner, shared])
}

/// The head. Some checkpoints mean one whose columns are divided by their lengths; where it is
/// quantized, that was done before.
fn head(w: &Scope, c: &Text, e: &Config) -> Result<Head> {
    let tied = c.tie_word_embeddings == Some(true);
    if !e.norm_head || tied || w.has("lm_head.scales") {
        return Head::of(w, c);
    }
    let place = w.at("lm_head");
    let weight = place.take("weight", &[c.vocab_size, c.hidden_size])?;
    let single = weight.as_dtype(Dtype::Float32)?;
    let lengths = single.square()?.sum_axis(0, true)?.sqrt()?.add(Array::from_f32(1e-7))?;
    let divided = weight.divide(lengths)?.as_dtype(weight.dtype())?;
    Ok(Head::new(Some(Linear::new(place.keep_matrix(Matrix::Dense(divided)), None))))
}
