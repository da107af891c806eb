//! Llama 4's dense text models: Llama with neighbouring rotary pairs, some layers without positions,
//! and queries and keys normalised, without weights, where they are rotated. Follows `llama4_text`
//! of mlx-lm; layers without positions follow Meta's code instead.

use crate::{
    parts::{
        attention::{join_heads, split_heads},
        kv::Kv,
    },
    prelude::*,
};

pub const FAMILY: Family = Family { model_types: &["llama4_text"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "config::size")]
    intermediate_size_mlp: i32,
    no_rope_layers: Option<Vec<i32>>,
    #[serde(deserialize_with = "config::size")]
    no_rope_layer_interval: i32,
    use_qk_norm: bool,
    attn_temperature_tuning: bool,
    #[serde(deserialize_with = "config::positive")]
    floor_scale: f32,
    attn_scale: f32,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    // Transformers leaves out of a config what is its default.
    let config = &config::with_defaults(config, json!({
        "no_rope_layer_interval": 4, "use_qk_norm": true, "attn_temperature_tuning": true,
        "floor_scale": 8192.0, "attn_scale": 0.1, "rope_theta": 500_000.0, "head_dim": 128,
        "tie_word_embeddings": false,
    }));
    let e: Config = config::read(config)?;
    let mut c = Text::read(config)?;
    (c.intermediate_size, c.rope_traditional) = (e.intermediate_size_mlp, true);
    let listed = e.no_rope_layers.as_ref().filter(|layers| !layers.is_empty());
    if let Some(layers) = listed
        && layers.len() != c.num_hidden_layers as usize
    {
        let reason = format!("{} entries for {} layers", layers.len(), c.num_hidden_layers);
        return Err(Error::config("no_rope_layers", reason));
    }
    // The list names, against what it is called, the layers that rotate.
    let rotates = |i: i32| match listed {
        Some(layers) => layers[i as usize] != 0,
        None => (i + 1) % e.no_rope_layer_interval != 0,
    };
    let rope = Rope::of(&c)?;
    let norm = || Norm::Rms { weight: None, eps: c.rms_norm_eps };
    // Exports of MLX call the head `output`.
    let output = w.has_below("output").then(|| w.linear("output", c.hidden_size, c.vocab_size));
    let mut sizes = c.clone();
    sizes.tie_word_embeddings = Some(output.is_some() || c.tie_word_embeddings == Some(true));
    let decoder = Decoder::stack(w, &sizes, |i, w| {
        let mlp = Mlp::read(&w.at("feed_forward"), GATE_UP_DOWN, &c, swiglu)?;
        let a = w.at("self_attn");
        if !rotates(i) {
            return pre_norm(w, &c, Unrotated::read(&a, &c, &e)?, mlp);
        }
        let attention = Attention::read(&a, QKVO, &c, rope.clone())?;
        let qk_norm = if e.use_qk_norm { QkNorm::AfterRope(norm(), norm()) } else { QkNorm::None };
        pre_norm(w, &c, attention.qk_norm(qk_norm), mlp)
    })?;
    Ok(Box::new(match output {
        Some(head) => Decoder { head: Head::new(Some(head?)), ..decoder },
        None => decoder,
    }))
}

/// Attention without positions, whose queries grow with theirs
/// ([Nakanishi 2025](https://arxiv.org/abs/2501.19399)).
struct Unrotated {
    projections: [Linear; 4],
    heads: [i32; 2],
    scores: Scores,
    /// After how many positions queries first grow, and how much.
    growth: Option<(f32, f32)>,
}

impl Unrotated {
    fn read(w: &Scope, c: &Text, e: &Config) -> Result<Self> {
        let read = if c.attention_bias { Scope::linear_with_bias } else { Scope::linear };
        let (width, all) = (c.hidden_size, c.num_attention_heads * c.head_dim());
        let keys = c.kv_heads() * c.head_dim();
        Ok(Unrotated {
            projections: [
                read(w, "q_proj", width, all)?,
                read(w, "k_proj", width, keys)?,
                read(w, "v_proj", width, keys)?,
                read(w, "o_proj", all, width)?,
            ],
            heads: [c.num_attention_heads, c.kv_heads()],
            scores: Scores { scale: (c.head_dim() as f32).powf(-0.5), sinks: None },
            growth: e.attn_temperature_tuning.then_some((e.floor_scale, e.attn_scale)),
        })
    }
}

impl Layer for Unrotated {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        Kv::new(None, plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        let ([q, k, v, output], [heads, kv_heads]) = (&self.projections, self.heads);
        let mut queries = split_heads(&q.forward(x)?, heads)?;
        if let Some((positions, strength)) = self.growth {
            let at = ops::arange::<_, f32>(1, step.length + 1, None)?.add(&step.position)?;
            let steps = at.divide(Array::from_f32(positions))?.floor()?;
            let factor = steps.log1p()?.multiply(Array::from_f32(strength))?;
            let factor = factor.add(Array::from_f32(1.0))?.expand_dims(-1)?;
            queries = queries.multiply(factor)?.as_dtype(x.dtype())?;
        }
        let keys = split_heads(&k.forward(x)?, kv_heads)?;
        let values = split_heads(&v.forward(x)?, kv_heads)?;
        output.forward(&join_heads(&kv.attend(&queries, keys, values, &self.scores, step)?)?)
    }
}
