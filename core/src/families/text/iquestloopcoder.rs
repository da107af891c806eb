//! IQuest Loop Coder: Llama whose stack runs twice. In the second run each head mixes, by a learned
//! gate, attention over the keys of the first run and over a short sliding window of its own.
//! Follows `iquestloopcoder` of mlx-lm.

use crate::families::prelude::*;
use std::rc::Rc;

pub const FAMILY: Family =
    Family { model_types: &["iquestloopcoder"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "rope_theta": 500_000.0, "max_position_embeddings": 131_072, "tie_word_embeddings": false,
            "loop_window_size": 64,
        }),
    );
    config::only(config, json!({"loop_num": 2}))?;
    let c = Text::read(config)?;
    let Size(window) = config::field(config, "loop_window_size")?;
    let (body, rope) = (w.at("model"), Rope::of(&c)?);
    let layers: Vec<_> = (0..c.num_hidden_layers)
        .map(|layer| Ok(Rc::new(Shared::read(&body, &c, &rope, layer)?)))
        .collect::<Result<_>>()?;
    let mut blocks = Vec::new();
    for window in [None, Some(window)] {
        for (layer, shared) in (0..).zip(&layers) {
            blocks.push(run(layer, shared.clone(), window));
        }
    }
    Ok(Box::new(Decoder {
        embedding: body.embedding("embed_tokens", c.vocab_size, c.hidden_size)?,
        embedding_scale: None,
        blocks,
        norm: body.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?,
        head: Head::of(w, &c)?,
        original_context: c.original_context(),
    }))
}

/// The weights of a layer, which both runs share.
struct Shared {
    before: Norm,
    attention: Attention,
    ffn: Residual<Ffn>,
    /// The gate: weights `[heads, head_dim, 1]` and biases `[heads, 1, 1]`.
    gate: (Array, Array),
}

impl Shared {
    fn read(body: &Scope, c: &Text, rope: &Rope, layer: i32) -> Result<Self> {
        let w = body.at("layers").at(layer);
        let g = body.at("gate_projections").at(layer);
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        let (heads, dims) = (c.num_attention_heads, c.head_dim());
        Ok(Shared {
            before: norm("input_layernorm")?,
            attention: Attention::read(&w.at("self_attn"), QKVO, c, rope.clone())?,
            ffn: Residual::pre(norm("post_attention_layernorm")?, dense(&w.at("mlp"), c)?),
            gate: (
                g.tensor("weight", &[heads, dims])?.expand_dims(-1)?,
                g.tensor("bias", &[heads])?.reshape(&[heads, 1, 1])?,
            ),
        })
    }
}

/// A layer in one of the runs: the first is a Llama layer, whose keys and values the second run
/// reads beside its sliding window.
fn run(layer: i32, shared: Rc<Shared>, window: Option<i32>) -> Block {
    let run = move |x: &Array, kv: &mut KvCache, step: &Step| {
        let Shared { before, attention, ffn, gate: (weight, bias) } = &*shared;
        let [q, k, v] = attention.heads(&before.forward(x)?, step)?;
        let seen = kv.update(k, v, step)?;
        let mut gathered = seen.attend(&q, &attention.scores, step)?;
        if window.is_some() {
            let gate = ops::sigmoid(q.matmul(weight)?.add(bias)?)?;
            let global = step.lent::<AttentionView>(layer)?.attend(&q, &attention.scores, step)?;
            let rest = mlx::scalar(1.0, gate.dtype())?.subtract(&gate)?;
            gathered = gate.multiply(global)?.add(rest.multiply(gathered)?)?;
        } else {
            step.lend(layer, seen);
        }
        ffn.forward(&x.add(attention.project(&join_heads(&gathered)?)?)?, &mut (), step)
    };
    Block::new(Mixer { window, run })
}
