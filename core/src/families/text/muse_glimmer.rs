//! Muse Glimmer (text): four norms a block whose weight `w` means `1 + w`, a gate on the output of
//! attention, normalised embeddings; three sliding-window layers with a rotary embedding, then a
//! full layer without. Follows `muse_glimmer` of mlx-lm.

use crate::families::text::nanochat::Normed;
use crate::{families::prelude::*, layers::attention::gated::sigmoid};

pub const FAMILY: Family = Family {
    model_types: &["muse_glimmer", "muse_glimmer_text"],
    build,
    recommended: Recommended::NOTHING,
};

#[derive(Deserialize)]
struct Config {
    post_norm_eps: Epsilon,
    qk_scale_factor: Positive,
    layer_rope_theta: Option<Vec<f32>>,
    final_logit_softcapping: Positive,
    output_multiplier: Positive,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let tied: Option<bool> = config::field(config, "tie_word_embeddings")?;
    let config = match config.get("text_config").filter(|text| !text.is_null()) {
        Some(text) => config::with_defaults(text, config.clone()),
        None => config.clone(),
    };
    let config = &config::with_defaults(
        &config,
        json!({
            "hidden_size": 6656, "num_hidden_layers": 52, "intermediate_size": 19968,
            "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 202_048,
            "rms_norm_eps": 1e-5, "post_norm_eps": 1e-8, "sliding_window": 2048,
            "qk_scale_factor": 3.87, "max_position_embeddings": 131_072, "rope_theta": 500_000.0,
            "final_logit_softcapping": 20.0,
            "output_multiplier": 0.196_116_135_138_184_04,
        }),
    );
    let (mut c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    // What `text_config` says of tied embeddings does not count in the whole model.
    c.tie_word_embeddings = Some(tied.unwrap_or(false));
    config::only(config, json!({"hidden_activation": "silu"}))?;
    config::check_entries("layer_rope_theta", e.layer_rope_theta.as_ref(), c.num_hidden_layers)?;
    let towers = ["vision_tower", "vision_adapter", "vision_projection", "perception_emb_norm"];
    ignore_parts(w, &towers);
    let rope = Rope::of(&c)?;
    let plain = || Norm::Rms { weight: None, eps: c.rms_norm_eps };
    let decoder = Decoder::stack(w, &c, |i, w| {
        let (a, window) = (w.at("self_attn"), c.window_where(i, |i| i % 4 != 3)?);
        let bases = e.layer_rope_theta.as_ref();
        let rotates = bases.map_or(window.is_some(), |bases| bases[i as usize] != 0.0);
        let attention =
            Attention::read(&a, QKVO, &c, if rotates { rope.clone() } else { Rope::None })?
                .qk_norm(QkNorm::BeforeRope(plain(), plain()))
                .scale(*e.qk_scale_factor * (c.head_dim() as f32).powf(-0.5))
                .window(window);
        let [queries, _] = c.qk_widths();
        let gate = (a.linear("gate_proj", c.hidden_size, queries)?, queries);
        let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?;
        let attention = gated_attention(attention, gate, sigmoid);
        let (eps, post) = (c.rms_norm_eps, *e.post_norm_eps);
        let norm = |(name, eps)| w.rms_norm(name, c.hidden_size, eps)?.plus_one();
        let names = FourNorms {
            before_mixer: (FOUR_NORMS.before_mixer, eps),
            after_mixer: (FOUR_NORMS.after_mixer, post),
            before_ffn: (FOUR_NORMS.before_ffn, eps),
            after_ffn: (FOUR_NORMS.after_ffn, post),
        };
        Ok(Block::new(sandwich(norm, names, attention, mlp)?))
    })?;
    let head = decoder.head.scaled(*e.output_multiplier).softcap(Some(*e.final_logit_softcapping));
    Ok(Box::new(Normed { norm: plain(), decoder: Decoder { head, ..decoder } }))
}
