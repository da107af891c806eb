//! Jamba: Mamba with norms of what the token selects, attention without positions in every eighth layer,
//! and experts in every second one, whose weights are the softmax over all experts. Follows `jamba` of
//! transformers; that of mlx-lm normalises the weights of the selected experts.

use crate::families::prelude::*;
use crate::families::text::mamba::TimeStepRank;

pub const FAMILY: Family =
    Family { model_types: &["jamba", "jamba_3b"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    attn_layer_offset: Count,
    attn_layer_period: Size,
    expert_layer_offset: Count,
    expert_layer_period: Size,
    mamba_d_conv: Size,
    mamba_d_state: Size,
    mamba_expand: Size,
    mamba_dt_rank: Option<TimeStepRank>,
    mamba_conv_bias: bool,
    mamba_proj_bias: bool,
    num_experts: Size,
    num_experts_per_tok: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    config::only(config, json!({"hidden_act": "silu"}))?;
    let known = [LayerKind::Attention, LayerKind::Recurrence];
    let kinds = LayerKind::of_config(config, &["layers_block_type", "layer_types"], &known)?;
    let config = &config::with_defaults(
        config,
        json!({
            "attn_layer_offset": 4, "attn_layer_period": 8, "expert_layer_offset": 1,
            "expert_layer_period": 2, "mamba_d_conv": 4, "mamba_d_state": 16, "mamba_expand": 2,
            "mamba_conv_bias": true, "mamba_proj_bias": false,
        }),
    );
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    config::check_entries("layers_block_type", kinds.as_ref(), c.num_hidden_layers)?;
    let attends = |i: i32| match &kinds {
        Some(kinds) => kinds[i as usize] == LayerKind::Attention,
        None => i % *e.attn_layer_period == *e.attn_layer_offset,
    };
    let sizes = SelectiveScanSizes {
        hidden: c.hidden_size,
        inner: config::product("mamba_expand", [*e.mamba_expand, c.hidden_size])?,
        state: *e.mamba_d_state,
        time_step_rank: TimeStepRank::of(e.mamba_dt_rank, c.hidden_size),
        taps: *e.mamba_d_conv,
    };
    let biases = SelectiveScanBiases { projections: e.mamba_proj_bias, conv: e.mamba_conv_bias };
    let names = Names { norm: "final_layernorm", ..Names::default() };
    Ok(Box::new(Decoder::named(&w.at("model"), names, &c, Head::of(w, &c)?, |i, w| {
        let norms = TwoNorms { before_mixer: "input_layernorm", before_ffn: "pre_ff_layernorm" };
        let f = w.at("feed_forward");
        let has_experts = i % *e.expert_layer_period == *e.expert_layer_offset;
        let ffn = if *e.num_experts > 1 && has_experts { e.experts(&f, &c) } else { dense(&f, &c) }?;
        if attends(i) {
            let attention = Attention::read(&w.at("self_attn"), QKVO, &c, Rope::None)?;
            return pre_norm_named(w, norms, &c, attention, ffn);
        }
        let selection = SelectionNorms::Weighted(c.rms_norm_eps);
        let mixer = SelectiveScan::read(&w.at("mamba"), sizes, biases, selection)?;
        pre_norm_named(w, norms, &c, mixer, ffn)
    })?))
}

impl Config {
    fn experts(&self, w: &Scope, c: &Text) -> Result<Ffn> {
        let (count, width) = (*self.num_experts, c.hidden_size);
        let logits = w.linear("router", width, count)?;
        let k = *self.num_experts_per_tok;
        let router = LinearRouter::new(logits, softmax_then_top_k, count, k)?;
        let sizes = ExpertSizes { count, width, inner: c.intermediate_size };
        Ok(Box::new(Moe::new(router.choosing(first_top_k), stacked_experts(w, c, sizes)?)))
    }
}
