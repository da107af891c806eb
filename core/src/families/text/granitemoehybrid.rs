//! Granite 4: Granite in which most layers replace attention by Mamba 2, whose attention has no
//! positions unless the config says `rope`, and whose experts, if there are any, stand beside a shared
//! MLP. Follows `granitemoehybrid` of transformers; that of mlx-lm normalises all groups of Mamba 2 as
//! one, bounds its time steps, and rotates by default.

use crate::families::prelude::*;
use crate::families::text::{granite::scaled_pre_norm, granitemoe};

pub const FAMILY: Family =
    Family { model_types: &["granitemoehybrid"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    embedding_multiplier: Positive,
    residual_multiplier: Positive,
    attention_multiplier: Positive,
    logits_scaling: Positive,
    #[serde(default)]
    num_local_experts: Count,
    shared_intermediate_size: Option<Size>,
    position_embedding_type: Option<String>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    // It is the activation of the convolutions too.
    config::only(config, json!({"hidden_act": "silu"}))?;
    let known = [LayerKind::Attention, LayerKind::Recurrence];
    let kinds = LayerKind::of_config(config, &["layer_types", "layers_block_type"], &known)?;
    let config = &config::with_defaults(
        config,
        json!({
            "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
            "attention_multiplier": 1.0, "logits_scaling": 1.0,
        }),
    );
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let layers = c.num_hidden_layers;
    config::check_entries("layers_block_type", kinds.as_ref(), layers)?;
    let kinds = kinds.unwrap_or_else(|| vec![LayerKind::Recurrence; layers as usize]);
    let rope = match e.position_embedding_type.as_deref() {
        Some("rope") => Rope::of(&c)?,
        _ => Rope::None,
    };
    let decoder = Decoder::stack(w, &c, |i, w| {
        let (scale, ffn) = (*e.residual_multiplier, e.network(config, w, &c)?);
        if kinds[i as usize] == LayerKind::Attention {
            let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
            return scaled_pre_norm(w, &c, scale, attention.scale(*e.attention_multiplier), ffn);
        }
        let norm = GatedNorm { eps: c.rms_norm_eps, is_before_gate: false };
        let mixer = Mamba2Config::read(config, &[])?;
        let mixer = Mamba2::read(&w.at("mamba"), c.hidden_size, &mixer, Some(norm))?;
        scaled_pre_norm(w, &c, scale, mixer, ffn)
    })?;
    Ok(Box::new(Decoder {
        embedding_scale: Some(*e.embedding_multiplier),
        head: decoder.head.divided(*e.logits_scaling),
        ..decoder
    }))
}

impl Config {
    /// The shared MLP, beside experts if there are any. mlx-lm splits it where it stands alone.
    fn network(&self, config: &Json, w: &Scope, c: &Text) -> Result<Ffn> {
        if *self.num_local_experts == 0 && w.has_below("mlp") {
            return dense(&w.at("mlp"), c);
        }
        let s = w.at("shared_mlp");
        let inner = self.shared_intermediate_size.map_or(c.intermediate_size, i32::from);
        let [gate, up] = s.fused("input_linear", c.hidden_size, [inner, inner])?;
        let down = s.linear("output_linear", inner, c.hidden_size)?;
        let shared = Mlp::new(gate, up, down, swiglu);
        if *self.num_local_experts == 0 {
            return Ok(Box::new(shared));
        }
        let experts =
            granitemoe::experts(&w.at("block_sparse_moe"), c, &config::read(config)?)?;
        Ok(sum(experts, shared))
    }
}
