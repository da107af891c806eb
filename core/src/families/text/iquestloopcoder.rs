//! IQuest Loop Coder: Llama whose stack runs twice. In the second run each head mixes, by a learned
//! gate, what it finds among the first run's keys and in a short window of its own. Follows
//! `iquestloopcoder` of mlx-lm.

use crate::{
    parts::{
        attention::{join_heads, split_heads},
        kv::Kv,
    },
    prelude::*,
};
use std::rc::Rc;

pub const FAMILY: Family = Family { model_types: &["iquestloopcoder"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "config::size")]
    loop_num: i32,
    #[serde(deserialize_with = "config::size")]
    loop_window_size: i32,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "rope_theta": 500_000.0, "max_position_embeddings": 131_072, "tie_word_embeddings": false,
        "loop_num": 2, "loop_window_size": 64,
    }));
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    if e.loop_num != 2 {
        return Err(Error::config("loop_num", format!("{}, and only 2 are supported", e.loop_num)));
    }
    let (body, rope) = (w.at("model"), Rope::of(&c)?);
    let mut first = Vec::new();
    let mut second = Vec::new();
    for layer in 0..c.num_hidden_layers {
        let shared = Rc::new(Shared::read(&body, &c, &rope, layer)?);
        first.push(Block::new(First { shared: shared.clone(), layer }));
        second.push(Block::new(Second { shared, layer, window: e.loop_window_size }));
    }
    first.append(&mut second);
    Ok(Box::new(Decoder {
        embedding: body.embedding("embed_tokens", c.vocab_size, c.hidden_size)?,
        embedding_scale: None,
        blocks: first,
        norm: body.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?,
        head: Head::read(w, c.tie_word_embeddings, c.hidden_size, c.vocab_size)?,
    }))
}

/// The weights of a layer, which both runs use.
struct Shared {
    before: Norm,
    projections: [Linear; 4],
    ffn: Residual<Mlp>,
    /// Weights `[heads, head_dim, 1]` and biases `[heads, 1, 1]`.
    gate: (Array, Array),
    heads: [i32; 2],
    rope: Rope,
    scores: Scores,
}

impl Shared {
    fn read(body: &Scope, c: &Text, rope: &Rope, layer: i32) -> Result<Self> {
        let w = body.at("layers").at(layer);
        let (a, g) = (w.at("self_attn"), body.at("gate_projections").at(layer));
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        let read = if c.attention_bias { Scope::linear_with_bias } else { Scope::linear };
        let (width, heads, dims) = (c.hidden_size, c.num_attention_heads, c.head_dim());
        let keys = c.kv_heads() * dims;
        let mlp = Mlp::read(&w.at("mlp"), GATE_UP_DOWN, c, swiglu)?;
        Ok(Shared {
            before: norm("input_layernorm")?,
            projections: [
                read(&a, "q_proj", width, heads * dims)?,
                read(&a, "k_proj", width, keys)?,
                read(&a, "v_proj", width, keys)?,
                read(&a, "o_proj", heads * dims, width)?,
            ],
            ffn: Residual::pre(norm("post_attention_layernorm")?, mlp),
            gate: (
                g.tensor("weight", &[heads, dims])?.expand_dims(-1)?,
                g.tensor("bias", &[heads])?.reshape(&[heads, 1, 1])?,
            ),
            heads: [heads, c.kv_heads()],
            rope: rope.clone(),
            scores: Scores { scale: (dims as f32).powf(-0.5), sinks: None },
        })
    }

    fn project(&self, x: &Array, step: &Step) -> Result<[Array; 3]> {
        let ([q, k, v, _], [heads, kv_heads]) = (&self.projections, self.heads);
        let x = self.before.forward(x)?;
        Ok([
            self.rope.forward(&split_heads(&q.forward(&x)?, heads)?, step)?,
            self.rope.forward(&split_heads(&k.forward(&x)?, kv_heads)?, step)?,
            split_heads(&v.forward(&x)?, kv_heads)?,
        ])
    }

    fn finish(&self, x: &Array, gathered: &Array, step: &Step) -> Result<Array> {
        let y = self.projections[3].forward(&join_heads(gathered)?)?;
        self.ffn.forward(&x.add(y)?, &mut (), step)
    }
}

/// A layer in the first run: Llama's, whose keys and values stay for the second.
struct First {
    shared: Rc<Shared>,
    layer: i32,
}

impl Layer for First {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        Kv::new(None, plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        let [q, k, v] = self.shared.project(x, step)?;
        let seen = kv.update(k, v, step)?;
        step.lend(self.layer, seen.clone());
        self.shared.finish(x, &seen.attend(&q, &self.shared.scores, step)?, step)
    }
}

/// The same layer in the second run.
struct Second {
    shared: Rc<Shared>,
    layer: i32,
    window: i32,
}

impl Layer for Second {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        Kv::new(Some(self.window), plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        let Shared { scores, gate: (weight, bias), .. } = &*self.shared;
        let [q, k, v] = self.shared.project(x, step)?;
        let gate = ops::sigmoid(q.matmul(weight)?.add(bias)?)?;
        let global = step.lent(self.layer).attend(&q, scores, step)?;
        let local = kv.attend(&q, k, v, scores, step)?;
        let rest = mlx::scalar(1.0, gate.dtype())?.subtract(&gate)?;
        let mixed = gate.multiply(global)?.add(rest.multiply(local)?)?;
        self.shared.finish(x, &mixed, step)
    }
}
