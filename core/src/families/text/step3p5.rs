//! Step 3.5 Flash: a gate on the output of each head, sliding-window layers with their own head
//! counts, a rotary embedding for each layer, clamped MLPs, and DeepSeek V3's router. Follows
//! `step3p5` of mlx-lm.

use crate::{
    families::prelude::*,
    layers::attention::gated::sigmoid,
};

pub const FAMILY: Family =
    Family { model_types: &["step3p5"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    layer_types: Option<Vec<String>>,
    yarn_only_types: Option<Vec<String>>,
    rope_theta: Option<PerLayer<f32>>,
    partial_rotary_factors: Option<Vec<f64>>,
    attention_other_setting: Option<Heads>,
    use_head_wise_attn_gate: bool,
    moe_intermediate_size: Size,
    share_expert_dim: Size,
    moe_layers_enum: Option<String>,
    swiglu_limits: Option<Vec<Option<f32>>>,
    swiglu_limits_shared: Option<Vec<Option<f32>>>,
}

#[derive(Deserialize)]
struct Heads {
    num_attention_heads: Size,
    num_attention_groups: Size,
}

const NAMES: &[(&str, &str)] = &[("num_attention_groups", "num_key_value_heads")];
const ROUTING: &[(&str, &str)] = &[
    ("moe_num_experts", "n_routed_experts"),
    ("moe_top_k", "num_experts_per_tok"),
    ("norm_expert_weight", "norm_topk_prob"),
    ("moe_router_scaling_factor", "routed_scaling_factor"),
];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "rms_norm_eps": 1e-5, "max_position_embeddings": 262_144, "sliding_window": 512,
            "use_head_wise_attn_gate": true, "moe_num_experts": 288, "moe_top_k": 8,
            "moe_intermediate_size": 1280, "share_expert_dim": 1280, "moe_router_scaling_factor": 3.0,
            "norm_expert_weight": true, "tie_word_embeddings": false,
        }),
    );
    let e: Config = config::read(config)?;
    config::only(config, json!({"query_pre_attn_scalar": config.get("head_dim")}))?;
    // The lists have further entries for the multi-token prediction layers.
    let c = Text::read_renamed(&config::without(config, &["layer_types", "rope_theta"]), NAMES)?;
    let routing = LossFreeRouting::read(config, ROUTING)?;
    check_choice("moe_top_k", routing.n_routed_experts, routing.num_experts_per_tok)?;
    let sparse = e.sparse_layers(&c)?;
    ignore_prediction_layers(w, &c);
    // Published checkpoints, whose tensors MLX checkpoints rename, store the weights of norms less
    // one.
    let (body, _) = body(w);
    let is_published = (0..c.num_hidden_layers).any(|i| body.at("layers").at(i).has_below("moe"));
    let norm = |w: &Scope, name: &str, width| {
        let norm = w.rms_norm(name, width, c.rms_norm_eps)?;
        if is_published { norm.plus_one() } else { Ok(norm) }
    };
    let last = |w: &Scope| norm(w, "norm", c.hidden_size);
    Ok(Box::new(Decoder::stack_under(w, &c, last, |i, w| {
        let (a, block_norm) = (w.at("self_attn"), |name| norm(w, name, c.hidden_size));
        let (c, rope, window) = e.attention(&c, i)?;
        let own = |name| norm(&a, name, c.head_dim());
        let attention = Attention::read(&a, QKVO, &c, rope)?
            .qk_norm(QkNorm::BeforeRope(own("q_norm")?, own("k_norm")?))
            .window(window);
        let ffn = if sparse.contains(&i) {
            e.experts(w, &c, i, &routing)?
        } else {
            let gate = clamped_swiglu(limit(&e.swiglu_limits_shared, i));
            Box::new(Mlp::sized_with(&w.at("mlp"), &c, c.intermediate_size, gate)?)
        };
        if !e.use_head_wise_attn_gate {
            return pre_norm_under(block_norm, TWO_NORMS, attention, ffn);
        }
        let heads = c.num_attention_heads;
        let gate = (a.linear("g_proj", c.hidden_size, heads)?, heads);
        let attention = gated_attention(attention, gate, sigmoid);
        pre_norm_under(block_norm, TWO_NORMS, attention, ffn)
    })?))
}

impl Config {
    /// The sizes, the rotary embedding and the window of one layer.
    fn attention(&self, c: &Text, i: i32) -> Result<(Text, Rope, Option<i32>)> {
        let mut c = c.clone();
        let kinds = self.layer_types.as_ref();
        let kind = kinds.map(|kinds| config::entry("layer_types", kinds, i)).transpose()?;
        let slides = kind.map_or(i % 2 == 0, |kind| kind == "sliding_attention");
        if let Some(own) = self.attention_other_setting.as_ref().filter(|_| slides) {
            c.num_attention_heads = *own.num_attention_heads;
            c.num_key_value_heads = Some(*own.num_attention_groups);
            c.check_heads("attention_other_setting.num_attention_groups")?;
        }
        let base = match &self.rope_theta {
            Some(bases) => bases.of("rope_theta", i)?,
            None => c.rope_theta(),
        };
        if !(base > 0.0 && base.is_finite()) {
            return Err(Error::config("rope_theta", format!("{base} is not a positive number")));
        }
        let shares = self.partial_rotary_factors.as_ref();
        let share = shares.and_then(|shares| shares.get(i as usize)).copied().unwrap_or(1.0);
        let dims = c.share_of_head(share, &format!("partial_rotary_factors[{i}]"))?;
        let kind = kind.map_or("full_attention", String::as_str);
        let stretched = self.yarn_only_types.as_deref().unwrap_or_default();
        let is_stretched = stretched.is_empty() || stretched.iter().any(|other| other == kind);
        let scaling = c.rope_scaling().filter(|_| is_stretched);
        let rope = Rope::scaled(dims, base, false, scaling, c.max_position_embeddings)?;
        let window = c.sliding_window.filter(|_| slides);
        Ok((c, rope, window))
    }

    /// The layers with experts: all but the first, unless the config lists them.
    fn sparse_layers(&self, c: &Text) -> Result<Vec<i32>> {
        let listed = self.moe_layers_enum.as_deref().map(str::trim).unwrap_or_default();
        if listed.is_empty() {
            return Ok((1..c.num_hidden_layers).collect());
        }
        let layer = |word: &str| {
            let wrong = |_| Error::config("moe_layers_enum", format!("`{word}` is no layer"));
            word.trim().parse().map_err(wrong)
        };
        listed.split(',').map(layer).collect()
    }

    fn experts(&self, w: &Scope, c: &Text, i: i32, routing: &LossFreeRouting) -> Result<Ffn> {
        let count = routing.n_routed_experts;
        let (w, router, name) = if w.has_below("moe") {
            (w.clone(), w.at("moe"), "moe")
        } else {
            (w.at("mlp"), w.at("mlp.gate"), "switch_mlp")
        };
        let logits = router.linear("gate", c.hidden_size, count)?;
        let bias = router.tensor("router_bias", &[count])?;
        let router = LossFreeRouter::new(logits, Some(bias), routing)?;
        let router = if routing.norm_topk_prob { router.normalized() } else { router };
        let sizes = ExpertSizes { count, width: c.hidden_size, inner: *self.moe_intermediate_size };
        let gate = clamped_swiglu(limit(&self.swiglu_limits, i));
        let moe = Moe::new(router, GatedExperts::read(&w, name, sizes, gate)?);
        let gate = clamped_swiglu(limit(&self.swiglu_limits_shared, i));
        Ok(sum(moe, Mlp::sized_with(&w.at("share_expert"), c, *self.share_expert_dim, gate)?))
    }
}

fn limit(limits: &Option<Vec<Option<f32>>>, i: i32) -> Option<f32> {
    let limit = limits.as_ref()?.get(i as usize).copied()??;
    Some(limit).filter(|limit| *limit > 0.0)
}

/// SwiGLU; the gate is clamped from above after its activation, the up projection on both sides.
fn clamped_swiglu(limit: Option<f32>) -> impl Gate {
    move |gate: &Array, up: &Array| {
        let Some(limit) = limit else { return swiglu(gate, up) };
        let constant = |value| mlx::scalar(value, gate.dtype());
        let gate = ops::minimum(gate.multiply(ops::sigmoid(gate)?)?, constant(limit)?)?;
        Ok(gate.multiply(ops::clip(up, (constant(-limit)?, constant(limit)?))?)?)
    }
}
