//! Ling 3: Kimi Delta Attention with decays of a lower bound, latent attention with a gate on each
//! head in the last layer of each group, and Ling's mixture of experts. Follows `bailing_moe_v3` of
//! mlx-lm, and transformers for `layer_types` and decays without a bound.

use crate::families::prelude::*;
use crate::families::text::{bailing_moe::Ling, qwen3_next};
use crate::layers::{attention::gated::single_sigmoid, recurrent::decay::lower_bound};

pub const FAMILY: Family =
    Family { model_types: &["bailing_moe_v3"], build, recommended: Recommended::NOTHING };

/// The epsilon of the norms of latents, which is that of the authors' norm; mlx-lm has the config's.
const EPS: f32 = 1e-6;

#[derive(Deserialize)]
struct Config {
    layer_group_size: Size,
    short_conv_kernel_size: Size,
    kda_safe_gate: bool,
    kda_lower_bound: f32,
    linear_num_heads: Option<Size>,
}

/// The names under which transformers saves some fields.
const SAVED: [(&str, &str); 6] = [
    ("model_max_length", "max_position_embeddings"),
    ("moe_renormalize", "norm_topk_prob"),
    ("num_expert_group", "n_group"),
    ("num_experts_per_token", "num_experts_per_tok"),
    ("linear_head_dim", "head_dim"),
    ("linear_conv_kernel_dim", "short_conv_kernel_size"),
];

pub fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    config::read_renamed(config, &SAVED, |config| decoder(config, w))
}

fn decoder(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    // The activation is that of the convolutions too.
    config::only(config, json!({"no_kda_lora": true, "hidden_act": "silu"}))?;
    let config = &config::with_defaults(
        config,
        json!({
            "moe_router_enable_expert_bias": true, "score_function": "sigmoid", "norm_topk_prob": true,
            "kda_safe_gate": true, "kda_lower_bound": -5.0, "short_conv_kernel_size": 4,
        }),
    );
    let (ling, e): (Ling, Config) = (Ling::read(config)?, config::read(config)?);
    let c = &ling.text;
    let bound = lower_bound("kda_lower_bound", e.kda_lower_bound)?;
    let bound = e.kda_safe_gate.then_some(bound);
    let latent = LatentSizes::read(config, c.num_attention_heads)?;
    let (rope, sizes) = (latent.rope(c)?, e.sizes(c));
    ignore_prediction_layers(w, c);
    let refine = |router: LossFreeRouter| router.strict().wide();
    Ok(Box::new(ling.decoder(w, refine, |i, w, ffn| {
        let a = w.at("attention");
        let Size(group) = e.layer_group_size;
        let is_last = c.layer_types.is_none() && i >= c.num_hidden_layers / group * group;
        if !is_last && !qwen3_next::attends(c, i, group)? {
            // transformers saves it under the name that it has in the other layers.
            a.rename(&[("attention.dense.", "attention.o_proj.")]);
            return pre_norm(w, c, DeltaNet::kimi(&a, sizes, c.rms_norm_eps, bound)?, ffn);
        }
        let gates = c.num_attention_heads;
        let projection = a.linear("g_proj", c.hidden_size, gates)?;
        let gate = OutputGate { projection, gates, squash: single_sigmoid };
        let mla = Mla::read(&a, c, &latent, EPS, rope.clone())?;
        pre_norm(w, c, gated_mla(mla, Some(gate)), ffn)
    })?))
}

impl Config {
    fn sizes(&self, c: &Text) -> DeltaSizes {
        let heads = self.linear_num_heads.map_or(c.num_attention_heads, i32::from);
        let width = c.head_dim();
        DeltaSizes {
            hidden: c.hidden_size,
            key_heads: heads,
            value_heads: heads,
            key_dim: width,
            value_dim: width,
            taps: *self.short_conv_kernel_size,
        }
    }
}
