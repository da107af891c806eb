//! Gemma 2: Gemma with four norms a block, softcapping of attention scores and logits, and a
//! sliding window in every second layer. Follows `gemma2` of mlx-lm, and Gemma's authors for the
//! sliding window.

use crate::families::prelude::*;
use crate::families::text::gemma;

pub const FAMILY: Family =
    Family { model_types: &["gemma2", "gemma2_text"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended =
    Recommended { end_tokens: &["<end_of_turn>"], ..Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    query_pre_attn_scalar: Positive,
    attn_logit_softcapping: Option<Positive>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "head_dim": 256, "tie_word_embeddings": true, "query_pre_attn_scalar": 144.0,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        }),
    );
    let (c, e): (Text, Config) = (gemma::read(config)?, config::read(config)?);
    let rope = Rope::of(&c)?;
    let (scale, softcap) =
        (e.query_pre_attn_scalar.powf(-0.5), e.attn_logit_softcapping.map(f32::from));
    let decoder = Decoder::stack(w, &c, |i, w| {
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps)?.plus_one();
        // mlx-lm has no sliding window here, which is equivalent until the window is full.
        let window = c.window_where(i, |i| i % 2 == 0)?;
        let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
        let attention = softcapped(attention.window(window), scale, softcap);
        let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?;
        Ok(Block::new(sandwich(norm, FOUR_NORMS, attention, mlp)?))
    })?;
    let decoder = gemma::scaled(decoder, &c)?;
    let head = decoder.head.softcap(*c.final_logit_softcapping);
    Ok(Box::new(Decoder { head, ..decoder }))
}

/// Attention with scores of this scale that are bounded before the softmax.
pub fn softcapped(
    attention: Attention,
    scale: f32,
    softcap: Option<f32>,
) -> impl Layer<State = KvCache> {
    attention.run_by(move |attention, x, kv, step| {
        let [q, k, v] = attention.heads(x, step)?;
        let (keys, values, mask) = kv.update(k, v, step)?.parts(step)?;
        let scores = capped_scores(&q, &keys, scale, softcap)?;
        // A mask of every row gets an axis for the groups of heads.
        let mask = if mask.ndim() == 4 { mask.expand_dims(1)? } else { mask };
        let scores = ops::select(&mask, &scores, mlx::scalar(f32::NEG_INFINITY, q.dtype())?)?;
        let weights = ops::softmax_axis(&scores, -1, true)?;
        let gathered = weights.matmul(values.expand_dims(2)?)?.reshape(q.shape())?;
        attention.project(&join_heads(&gathered)?)
    })
}

/// Scores `[batch, key heads, group, length, keys]` that are bounded before the softmax, which no
/// kernel does.
fn capped_scores(q: &Array, keys: &Array, scale: f32, softcap: Option<f32>) -> Result<Array> {
    let constant = |value| mlx::scalar(value, q.dtype());
    let kv_heads = keys.dim(1);
    let grouped = [q.dim(0), kv_heads, q.dim(1) / kv_heads, q.dim(2), q.dim(3)];
    let queries = q.multiply(constant(scale)?)?.reshape(&grouped)?;
    let scores = queries.matmul(keys.expand_dims(2)?.swap_axes(-1, -2)?)?;
    let Some(softcap) = softcap else { return Ok(scores) };
    let cap = constant(softcap)?;
    Ok(ops::tanh(&scores.divide(&cap)?)?.multiply(cap)?)
}
