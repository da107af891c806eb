//! IQuest Loop Coder: Llama whose stack runs twice. In the second run each head mixes, by a learned
//! gate, what it finds among the first run's keys and in a short window of its own. Follows
//! `iquestloopcoder` of mlx-lm.

use crate::prelude::*;
use std::rc::Rc;

pub const FAMILY: Family = Family { model_types: &["iquestloopcoder"], build };

#[derive(Deserialize)]
struct Config {
    loop_num: Size,
    loop_window_size: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "rope_theta": 500_000.0, "max_position_embeddings": 131_072, "tie_word_embeddings": false,
        "loop_num": 2, "loop_window_size": 64,
    }));
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    if *e.loop_num != 2 {
        return Err(Error::config("loop_num", format!("{}, and only 2 are supported", *e.loop_num)));
    }
    let (body, rope) = (w.at("model"), Rope::of(&c)?);
    let shared: Vec<_> = (0..c.num_hidden_layers)
        .map(|layer| Ok(Rc::new(Shared::read(&body, &c, &rope, layer)?)))
        .collect::<Result<_>>()?;
    let runs = [None, Some(*e.loop_window_size)].into_iter();
    let blocks = runs.flat_map(|window| {
        let layer = move |(layer, shared): (i32, &Rc<Shared>)| {
            Block::new(Run { shared: shared.clone(), layer, window })
        };
        (0..).zip(&shared).map(layer)
    });
    Ok(Box::new(Decoder {
        embedding: body.embedding("embed_tokens", c.vocab_size, c.hidden_size)?,
        embedding_scale: None,
        blocks: blocks.collect(),
        norm: body.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?,
        head: Head::of(w, &c)?,
    }))
}

/// The weights of a layer, which both runs use.
struct Shared {
    before: Norm,
    attention: Attention,
    ffn: Residual<Mlp>,
    /// Weights `[heads, head_dim, 1]` and biases `[heads, 1, 1]`.
    gate: (Array, Array),
    scores: Scores,
}

impl Shared {
    fn read(body: &Scope, c: &Text, rope: &Rope, layer: i32) -> Result<Self> {
        let w = body.at("layers").at(layer);
        let g = body.at("gate_projections").at(layer);
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        let (heads, dims) = (c.num_attention_heads, c.head_dim());
        let mlp = Mlp::read(&w.at("mlp"), GATE_UP_DOWN, c, swiglu)?;
        Ok(Shared {
            before: norm("input_layernorm")?,
            attention: Attention::read(&w.at("self_attn"), QKVO, c, rope.clone())?,
            ffn: Residual::pre(norm("post_attention_layernorm")?, mlp),
            gate: (
                g.tensor("weight", &[heads, dims])?.expand_dims(-1)?,
                g.tensor("bias", &[heads])?.reshape(&[heads, 1, 1])?,
            ),
            scores: Scores { scale: (dims as f32).powf(-0.5), sinks: None },
        })
    }
}

/// A layer in one of the runs. In the first it is Llama's, whose keys and values stay for the second.
struct Run {
    shared: Rc<Shared>,
    layer: i32,
    /// Of the second run.
    window: Option<i32>,
}

impl Layer for Run {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        Kv::new(self.window, plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        let Shared { before, attention, ffn, gate: (weight, bias), scores } = &*self.shared;
        let [q, k, v] = attention.heads(&before.forward(x)?, step)?;
        let seen = kv.update(k, v, step)?;
        let mut gathered = seen.attend(&q, scores, step)?;
        if self.window.is_some() {
            let gate = ops::sigmoid(q.matmul(weight)?.add(bias)?)?;
            let global = step.lent(self.layer).attend(&q, scores, step)?;
            let rest = mlx::scalar(1.0, gate.dtype())?.subtract(&gate)?;
            gathered = gate.multiply(global)?.add(rest.multiply(gathered)?)?;
        } else {
            step.lend(self.layer, seen);
        }
        ffn.forward(&x.add(attention.project(&join_heads(&gathered)?)?)?, &mut (), step)
    }
}
