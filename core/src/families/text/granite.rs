//! Granite: Llama with four factors: of the embeddings, of each branch, of the attention scores and
//! of the logits. Follows `granite` of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["granite"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    embedding_multiplier: Positive,
    residual_multiplier: Positive,
    attention_multiplier: Positive,
    logits_scaling: Positive,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    build_with(config, w, |w, c| Mlp::of(&w.at("mlp"), GATE_UP_DOWN, c))
}

/// The same with other feed-forward networks.
pub fn build_with<F: Layer + 'static>(
    config: &Json,
    w: &Scope,
    ffn: impl Fn(&Scope, &Text) -> Result<F>,
) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({"tie_word_embeddings": true}));
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let rope = Rope::of(&c)?;
    let scores = Scores { scale: *e.attention_multiplier, sinks: None };
    let decoder = Decoder::stack(w, &c, |_, w| {
        let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
        let attention = attention.scores(scores.clone());
        scaled_pre_norm(w, &c, *e.residual_multiplier, attention, ffn(w, &c)?)
    })?;
    Ok(Box::new(Decoder {
        embedding_scale: Some(*e.embedding_multiplier),
        head: decoder.head.divided(*e.logits_scaling),
        ..decoder
    }))
}

/// The pre-norm block, each of whose branches is multiplied by `scale`.
pub fn scaled_pre_norm(
    w: &Scope,
    c: &Text,
    scale: f32,
    mixer: impl Layer + 'static,
    ffn: impl Layer + 'static,
) -> Result<Block> {
    let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
    Ok(Block::new((
        Residual::pre(norm("input_layernorm")?, mixer).scaled(scale),
        Residual::pre(norm("post_attention_layernorm")?, ffn).scaled(scale),
    )))
}
