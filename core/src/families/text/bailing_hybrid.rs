//! Ling and Ring 2.5: Ling Linear with latent attention in the layers that attend over all tokens.
//! Ling 3, whose configs have the same name, is `bailing_moe_v3`. Follows `bailing_hybrid` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::{bailing_moe::Ling, bailing_moe_linear::LinearLayers, bailing_moe_v3};

pub const FAMILY: Family =
    Family { model_types: &["bailing_hybrid"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let architectures: Option<Vec<String>> = config::field(config, "architectures")?;
    let is_v3 = |names: Vec<String>| names.iter().any(|name| name == "BailingMoeV3ForCausalLM");
    if architectures.is_some_and(is_v3) || config.get("kda_safe_gate").is_some() {
        return bailing_moe_v3::build(config, w);
    }
    let config = &config::with_defaults(
        config,
        json!({
            "moe_router_enable_expert_bias": true, "score_function": "sigmoid", "use_qk_norm": true,
            "norm_topk_prob": true, "partial_rotary_factor": 0.5,
        }),
    );
    let (ling, layers) = (Ling::read(config)?, LinearLayers::read(config)?);
    let c = &ling.text;
    let latent = LatentSizes::read(config, c.num_attention_heads)?;
    let (rope, latent_rope) = (Rope::share(c, 0.5)?, latent.rope(c)?);
    ignore_prediction_layers(w, c);
    let refine = |router: LossFreeRouter| router.strict().rounded();
    Ok(Box::new(ling.decoder(w, refine, |i, w, ffn| {
        let a = w.at("attention");
        if layers.attend(c, i) {
            let mla = Mla::read(&a, c, &latent, c.rms_norm_eps, latent_rope.clone())?;
            return pre_norm(w, c, mla, ffn);
        }
        pre_norm(w, c, layers.mixer(&a, &ling, rope.clone(), i)?, ffn)
    })?))
}
