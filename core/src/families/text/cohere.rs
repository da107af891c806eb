//! Command R: attention and MLP in parallel after one layer norm, an interleaved rotary embedding,
//! scaled logits. Follows `cohere` of mlx-lm, and Cohere's code for `rope_scaling`.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["cohere"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
pub struct Config {
    logit_scale: Positive,
    layer_norm_bias: bool,
    use_qk_norm: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, e) = read(
        config,
        json!({
            "hidden_size": 8192, "num_hidden_layers": 40, "intermediate_size": 22528,
            "num_attention_heads": 64, "vocab_size": 256_000,
            "rope_theta": 8_000_000.0,
        }),
    )?;
    let rope = Rope::of(&c)?;
    stack(w, &c, &e, |_, w| {
        let attention = Attention::read(w, QKVO, &c, rope.clone())?;
        if !e.use_qk_norm {
            return Ok(attention);
        }
        let norm = |name, heads| -> Result<Norm> {
            let weight = w.at(name).take("weight", &[heads, c.head_dim()])?;
            Ok(Norm::Heads { weight: w.keep(weight.expand_dims(1)?), eps: c.rms_norm_eps })
        };
        let (q_norm, k_norm) =
            (norm("q_norm", c.num_attention_heads)?, norm("k_norm", c.kv_heads())?);
        Ok(attention.qk_norm(QkNorm::BeforeRope(q_norm, k_norm)))
    })
}

/// The config fields of both Cohere families.
pub fn read(config: &Json, defaults: Value) -> Result<(Text, Config)> {
    let config = config::with_defaults(config, defaults);
    let config = config::with_defaults(
        &config,
        json!({
            "layer_norm_eps": 1e-5, "layer_norm_bias": false, "use_qk_norm": false,
            "logit_scale": 0.0625, "tie_word_embeddings": true, "rope_traditional": true,
        }),
    );
    Ok((
        Text::read_renamed(&config, &[("layer_norm_eps", "rms_norm_eps")])?,
        config::read(&config)?,
    ))
}

/// Blocks with two parallel branches.
pub fn stack(
    w: &Scope,
    c: &Text,
    e: &Config,
    attention: impl Fn(i32, &Scope) -> Result<Attention>,
) -> Result<Box<dyn LanguageModel>> {
    let read = if e.layer_norm_bias { Scope::layer_norm_with_bias } else { Scope::layer_norm };
    let norm = |w: &Scope, name| read(w, name, c.hidden_size, c.rms_norm_eps);
    let decoder = Decoder::stack_under(
        w,
        c,
        |w| norm(w, "norm"),
        |i, w| {
            let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, c)?;
            let branches = Parallel(attention(i, &w.at("self_attn"))?, mlp);
            Ok(Block::new(Residual::pre(norm(w, "input_layernorm")?, branches)))
        },
    )?;
    Ok(Box::new(Decoder { head: decoder.head.scaled(*e.logit_scale), ..decoder }))
}
