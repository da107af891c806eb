//! Hunyuan (dense): Llama whose queries and keys are normalised after the rotary embedding, with a
//! rotary base that the config scales by `alpha`. Follows `hunyuan_v1_dense` of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family = Family {
    model_types: &["hunyuan_v1_dense", "hunyuan_dense"],
    build,
    recommended: Recommended::NOTHING,
};

#[derive(Deserialize)]
struct Positions {
    rope_scaling: Option<Stretch>,
    rope_parameters: Option<Stretch>,
}

#[derive(Deserialize)]
struct Stretch {
    alpha: Option<Positive<f64>>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "tie_word_embeddings": false, "use_qk_norm": true,
        }),
    );
    let c = Text::read(config)?;
    let use_qk_norm: bool = config::field(config, "use_qk_norm")?;
    let rope = rope(config, &c)?;
    Ok(Box::new(Decoder::stack(w, &c, |_, w| {
        let a = w.at("self_attn");
        let mut attention = Attention::read(&a, QKVO, &c, rope.clone())?;
        if use_qk_norm {
            let norm = |name| a.rms_norm(name, c.head_dim(), c.rms_norm_eps);
            let norms = QkNorm::AfterRope(norm("query_layernorm")?, norm("key_layernorm")?);
            attention = attention.qk_norm(norms);
        }
        pre_norm(w, &c, attention, Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?)
    })?))
}

/// The rotary embedding, whose base may be scaled.
pub fn rope(config: &Json, c: &Text) -> Result<Rope> {
    let e: Positions = config::read(config)?;
    let magnitude = e.rope_scaling.as_ref().or(e.rope_parameters.as_ref());
    let Some(alpha) = magnitude.and_then(|magnitude| magnitude.alpha) else { return Rope::of(c) };
    // Configs call this type `dynamic`, but with an `alpha` it depends neither on the length nor on
    // other fields.
    c.rope_scaling();
    let dims = f64::from(c.head_dim());
    let base = f64::from(c.rope_theta()) * alpha.powf(dims / (dims - 2.0));
    Rope::base(c.head_dim(), base as f32)
}
