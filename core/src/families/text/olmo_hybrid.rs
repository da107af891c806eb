//! OLMo Hybrid: three layers of Gated DeltaNet, whose eigenvalues may be negative, for each layer of
//! OLMo 2. Follows `olmo_hybrid` of mlx-lm, and its authors' code, as in transformers, for models
//! without rotary positions.

use crate::families::prelude::*;
use crate::families::text::{
    olmo2,
    qwen3_next::{self, DeltaFields},
};

pub const FAMILY: Family =
    Family { model_types: &["olmo_hybrid"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let defaults = json!({"linear_allow_neg_eigval": true, "layer_norm_epsilon": 1e-5});
    let config = &config::with_defaults(config, defaults);
    let c = Text::read(config)?;
    let sizes = DeltaFields::sizes(config, c.hidden_size)?;
    let has_negative: bool = config::field(config, "linear_allow_neg_eigval")?;
    let Epsilon(eps) = config::field(config, "layer_norm_epsilon")?;
    let nested = c.rope_parameters.as_ref();
    let base = nested.map_or(c.rope_theta, |nested| nested.rope_theta);
    let rope = base.map_or(Ok(Rope::None), |base| Rope::base(c.head_dim(), base))?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        if qwen3_next::attends(&c, i, 4)? {
            return olmo2::post_norm(w, &c, olmo2::attention(&w.at("self_attn"), &c, rope.clone())?);
        }
        let mixer = delta_net(&w.at("linear_attn"), sizes, eps)?;
        let mixer = DeltaNet { longest: if has_negative { 2.0 } else { 1.0 }, ..mixer };
        let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?;
        pre_norm_named(w, norms(w), &c, mixer, mlp)
    })?))
}

/// The names of the norms around Gated DeltaNet, of which there are two pairs.
fn norms(w: &Scope) -> TwoNorms<&'static str> {
    if !w.has_below("attention_layer_norm") {
        return TWO_NORMS;
    }
    TwoNorms { before_mixer: "attention_layer_norm", before_ffn: "feedforward_layer_norm" }
}

fn delta_net(w: &Scope, sizes: DeltaSizes, eps: f32) -> Result<DeltaNet> {
    let DeltaSizes { hidden, value_heads, value_dim, .. } = sizes;
    let [_, values] = sizes.widths();
    let decay = w.linear("a_proj", hidden, value_heads)?;
    Ok(DeltaNet {
        qkv: short_qkv(w, &sizes)?,
        conv: short_convs(w, &sizes)?,
        decay: Decay::read(w, vec![decay], w.take("A_log", &[value_heads])?, 1, None)?,
        beta: w.linear("b_proj", hidden, value_heads)?,
        longest: 1.0,
        gate: vec![w.linear("g_proj", hidden, values)?],
        squash: activation::silu,
        norm: w.rms_norm("o_norm", value_dim, eps)?,
        output: w.linear("o_proj", values, hidden)?,
        sizes,
    })
}
