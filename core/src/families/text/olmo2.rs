//! OLMo 2: Llama with norms after each branch instead of before, and queries and keys normalised
//! over all heads together. Follows `olmo2` of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["olmo2"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(config)?;
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |_, w| {
        post_norm(w, &c, attention(&w.at("self_attn"), &c, rope.clone())?)
    })?))
}

pub fn attention(w: &Scope, c: &Text, rope: Rope) -> Result<Attention> {
    let norm = |name, heads: i32| w.rms_norm(name, heads * c.head_dim(), c.rms_norm_eps);
    let (q_norm, k_norm) = (norm("q_norm", c.num_attention_heads)?, norm("k_norm", c.kv_heads())?);
    Ok(Attention::read(w, QKVO, c, rope)?.qk_norm(QkNorm::Whole(q_norm, k_norm)))
}

/// A block with a norm after each branch.
pub fn post_norm(w: &Scope, c: &Text, attention: Attention) -> Result<Block> {
    let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
    let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, c)?;
    Ok(Block::new((
        Residual::post(attention, norm("post_attention_layernorm")?),
        Residual::post(mlp, norm("post_feedforward_layernorm")?),
    )))
}
