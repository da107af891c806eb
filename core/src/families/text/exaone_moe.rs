//! K-EXAONE: EXAONE 4's attention with norms before each branch, and DeepSeek V3's mixture of
//! experts. Follows `exaone_moe` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::qwen3;

pub const FAMILY: Family =
    Family { model_types: &["exaone_moe"], build, recommended: Recommended::NOTHING };

const NAMES: &[(&str, &str)] =
    &[("num_experts", "n_routed_experts"), ("num_shared_experts", "n_shared_experts")];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": true,
            "first_k_dense_replace": 1, "rope_theta": 1e6,
        }),
    );
    let c = Text::read(config)?;
    let layers = c.num_hidden_layers;
    if c.layer_types.is_some() {
        // Transformers writes it beside the list that it made of it.
        config.get("sliding_window_pattern");
    }
    let routing = LossFreeRouting::read(config, NAMES)?;
    let mut listed = config.clone();
    if let Some(sparse) = config::field::<Option<Vec<bool>>>(config, "is_moe_layer")? {
        config::check_entries("is_moe_layer", Some(&sparse), layers)?;
        let kind = |sparse: &bool| if *sparse { "sparse" } else { "dense" };
        let kinds: Vec<_> = sparse.iter().map(kind).collect();
        listed = config::with_defaults(&json!({"mlp_layer_types": kinds}).into(), listed);
    }
    let sparsity = config::read_renamed(&listed, NAMES, |config| Sparsity::read(config, layers))?;
    let windows: Vec<_> = (0..layers).map(|i| c.window(i)).collect::<Result<_>>()?;
    let slides = windows.iter().any(Option::is_some);
    let rope = Rope::of(&c)?;
    // The multi-token prediction layers are ignored; they are meant for speculative decoding.
    w.ignore("mtp");
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let window = windows[i as usize];
        let rope = if slides && window.is_none() { Rope::None } else { rope.clone() };
        let attention = qwen3::attention(&w.at("self_attn"), &c, rope)?;
        let router = |w: &Scope, _| loss_free_router(w, &c, &routing);
        let network = sparsity.network(&w.at("mlp"), &c, i, router)?;
        pre_norm(w, &c, attention.window(window), network)
    })?))
}
