//! Kimi Linear: three layers of Kimi Delta Attention for each layer of latent attention without
//! positions; DeepSeek V3's mixture of experts. Follows `kimi_linear` of mlx-lm, and transformers for
//! the epsilon of the norms of low ranks and the precision of the router.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["kimi_linear"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended =
    Recommended { end_tokens: &["<|im_end|>"], ..Recommended::NOTHING };

/// Names of fields of the mixture of experts, and those of DeepSeek V3.
pub const NAMES: &[(&str, &str)] = &[
    ("num_experts", "n_routed_experts"),
    ("num_experts_per_token", "num_experts_per_tok"),
    ("num_shared_experts", "n_shared_experts"),
    ("moe_renormalize", "norm_topk_prob"),
    ("num_expert_group", "n_group"),
];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    config::only(config, json!({"mla_use_nope": true}))?;
    let config = &config::with_defaults(
        config,
        json!({
            "num_experts_per_token": 1, "num_shared_experts": 0, "moe_renormalize": true,
            "moe_router_activation_func": "sigmoid", "routed_scaling_factor": 1.0, "num_expert_group": 1,
            "qk_nope_head_dim": config.get("head_dim"), "v_head_dim": config.get("head_dim"),
        }),
    );
    let c = Text::read(config)?;
    let latent = LatentSizes::read(config, c.num_attention_heads)?;
    let delta = DeltaLayers::read(config)?;
    let sparsity = config::read_renamed(config, NAMES, |config| {
        Sparsity::read(config, c.num_hidden_layers)
    })?;
    w.at("model").ignore("mtp");
    ignore_prediction_layers(w, &c);
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let place = if w.has_below("block_sparse_moe") { "block_sparse_moe" } else { "mlp" };
        let ffn = sparsity.network(&w.at(place), &c, i, |w, _| router(w, &c, config))?;
        let a = w.at("self_attn");
        if delta.include(i) {
            let mixer = DeltaNet::kimi(&a, delta.sizes(&c)?, c.rms_norm_eps, None)?;
            return pre_norm(w, &c, mixer, ffn);
        }
        // The norms of the low-rank projections have an epsilon of their own.
        pre_norm(w, &c, Mla::read(&a, &c, &latent, 1e-6, Rope::None)?, ffn)
    })?))
}

/// `linear_attn_config`: which layers have Kimi Delta Attention, and its sizes.
#[derive(Deserialize)]
pub struct DeltaLayers {
    kda_layers: Vec<i32>,
    num_heads: Size,
    head_dim: Size,
    short_conv_kernel_size: Option<Size>,
}

impl DeltaLayers {
    /// Reads `linear_attn_config`, or what transformers writes in its place: a list of the kinds of
    /// layers, with the sizes beside it.
    pub fn read(config: &Json) -> Result<Self> {
        let known = [LayerKind::Attention, LayerKind::Recurrence];
        let is_nested = config.get("linear_attn_config").is_some_and(|nested| !nested.is_null());
        let kinds = match is_nested {
            true => None,
            false => LayerKind::of_config(config, &["layer_types"], &known)?,
        };
        let Some(kinds) = kinds else { return config::field(config, "linear_attn_config") };
        let layers = (1..).zip(&kinds).filter(|(_, kind)| **kind == LayerKind::Recurrence);
        Ok(DeltaLayers {
            kda_layers: layers.map(|(layer, _)| layer).collect(),
            num_heads: config::field(config, "linear_num_heads")?,
            head_dim: config::field(config, "linear_head_dim")?,
            short_conv_kernel_size: config::field(config, "linear_conv_kernel_dim")?,
        })
    }

    /// Whether this layer has it; the config counts from one.
    pub fn include(&self, layer: i32) -> bool {
        self.kda_layers.contains(&(layer + 1))
    }

    pub fn sizes(&self, c: &Text) -> Result<DeltaSizes> {
        let (Size(heads), Size(width)) = (self.num_heads, self.head_dim);
        config::product("linear_attn_config.head_dim", [heads, width])?;
        Ok(DeltaSizes {
            hidden: c.hidden_size,
            key_heads: heads,
            value_heads: heads,
            key_dim: width,
            value_dim: width,
            taps: self.short_conv_kernel_size.map_or(4, i32::from),
        })
    }
}

/// The router, with the scoring function of the config.
pub fn router(w: &Scope, c: &Text, config: &Json) -> Result<LossFreeRouter> {
    let score = router::score(config, "moe_router_activation_func")?;
    let router = config::read_renamed(config, NAMES, |config| {
        loss_free_router(w, c, &config::read(config)?)
    });
    Ok(router?.scores(score))
}
