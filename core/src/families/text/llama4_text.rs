//! Llama 4's dense text models: Llama with neighbouring rotary pairs, whose rotated queries and keys
//! are normalised, without weights, and see their own chunk of the sequence; some layers have no
//! positions and see everything. Follows `llama4_text` of mlx-lm; chunks and layers without positions
//! follow Meta's code instead.

use crate::{
    parts::{
        attention::{join_heads, projections, split_heads},
        kv::Kv,
    },
    prelude::*,
};

pub const FAMILY: Family = Family { model_types: &["llama4_text"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, e) = read(config)?;
    // Exports of MLX call the head `output`.
    let output = w.has_below("output").then(|| w.linear("output", c.hidden_size, c.vocab_size));
    let mut sizes = c.clone();
    sizes.tie_word_embeddings = Some(output.is_some() || c.tie_word_embeddings == Some(true));
    let mlp = |_, w: &Scope| -> Result<Ffn> { Ok(Box::new(dense(w, &c, &e)?)) };
    let decoder = decoder(w, &sizes, &e, c.rms_norm_eps, mlp)?;
    Ok(Box::new(match output {
        Some(head) => Decoder { head: Head::new(Some(head?)), ..decoder },
        None => decoder,
    }))
}

#[derive(Deserialize)]
pub struct Config {
    #[serde(deserialize_with = "config::size")]
    intermediate_size_mlp: i32,
    no_rope_layers: Option<Vec<i32>>,
    #[serde(deserialize_with = "config::size")]
    no_rope_layer_interval: i32,
    use_qk_norm: bool,
    attn_temperature_tuning: Switch,
    #[serde(deserialize_with = "config::positive")]
    floor_scale: f32,
    attn_scale: f32,
    #[serde(deserialize_with = "config::optional_size")]
    attention_chunk_size: Option<i32>,
}

/// The first configs have a number where later ones have a truth.
#[derive(Deserialize)]
#[serde(untagged)]
enum Switch {
    Bool(bool),
    Number(i32),
}

/// The fields of Llama 4's text models, with the defaults that transformers leaves out.
pub fn read(config: &Json) -> Result<(Text, Config)> {
    let config = &config::with_defaults(config, json!({
        "no_rope_layer_interval": 4, "use_qk_norm": true, "attn_temperature_tuning": true,
        "floor_scale": 8192.0, "attn_scale": 0.1, "rope_theta": 500_000.0, "head_dim": 128,
        "tie_word_embeddings": false, "attention_chunk_size": 8192,
    }));
    let (mut c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    c.rope_traditional = true;
    if let Some(layers) = e.listed()
        && layers.len() != c.num_hidden_layers as usize
    {
        let reason = format!("{} entries for {} layers", layers.len(), c.num_hidden_layers);
        return Err(Error::config("no_rope_layers", reason));
    }
    Ok((c, e))
}

impl Config {
    fn listed(&self) -> Option<&Vec<i32>> {
        self.no_rope_layers.as_ref().filter(|layers| !layers.is_empty())
    }

    /// The list names, against what it is called, the layers that rotate.
    fn rotates(&self, i: i32) -> bool {
        match self.listed() {
            Some(layers) => layers[i as usize] != 0,
            None => (i + 1) % self.no_rope_layer_interval != 0,
        }
    }

    /// How many positions share a chunk, in layers that see only theirs.
    fn chunk(&self, c: &Text, i: i32) -> Result<Option<i32>> {
        let chunked = match &c.layer_types {
            None => self.rotates(i),
            Some(kinds) => match &*kinds[i as usize] {
                "chunked_attention" => true,
                "full_attention" => false,
                kind => {
                    let reason = format!("`{kind}` is neither full_attention nor chunked_attention");
                    return Err(Error::config(format!("layer_types[{i}]"), reason));
                }
            },
        };
        Ok(self.attention_chunk_size.filter(|_| chunked))
    }
}

/// The stack; `eps` is that of the norms of queries and keys.
pub fn decoder(
    w: &Scope,
    c: &Text,
    e: &Config,
    eps: f32,
    ffn: impl Fn(i32, &Scope) -> Result<Ffn>,
) -> Result<Decoder> {
    let rope = Rope::of(c)?;
    Decoder::stack(w, c, |i, w| {
        let rotates = e.rotates(i);
        let normed = rotates && e.use_qk_norm;
        let tuned = match e.attn_temperature_tuning {
            Switch::Bool(tuned) => tuned,
            Switch::Number(number) => number != 0,
        };
        let attention = ChunkedAttention {
            projections: projections(&w.at("self_attn"), QKVO, c)?,
            heads: [c.num_attention_heads, c.kv_heads()],
            rope: if rotates { rope.clone() } else { Rope::None },
            norm: normed.then_some(Norm::Rms { weight: None, eps }),
            scores: Scores { scale: (c.head_dim() as f32).powf(-0.5), sinks: None },
            growth: (tuned && !rotates).then_some((e.floor_scale, e.attn_scale)),
            chunk: e.chunk(c, i)?,
        };
        pre_norm(w, c, attention, ffn(i, &w.at("feed_forward"))?)
    })
}

/// The network of layers without experts.
pub fn dense(w: &Scope, c: &Text, e: &Config) -> Result<Mlp> {
    Mlp::sized(w, c, e.intermediate_size_mlp, swiglu)
}

/// Attention of a chunk of the sequence to itself, or of everything; without positions, queries may
/// grow with theirs ([Nakanishi 2025](https://arxiv.org/abs/2501.19399)).
struct ChunkedAttention {
    projections: [Linear; 4],
    heads: [i32; 2],
    rope: Rope,
    norm: Option<Norm>,
    scores: Scores,
    /// After how many positions queries first grow, and how much.
    growth: Option<(f32, f32)>,
    chunk: Option<i32>,
}

impl ChunkedAttention {
    /// `[batch, length, heads · head_dim]` to heads that are rotated and normalised.
    fn place(&self, x: &Array, heads: i32, step: &Step) -> Result<Array> {
        let x = self.rope.forward(&split_heads(x, heads)?, step)?;
        self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))
    }
}

impl Layer for ChunkedAttention {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        Kv::new(self.chunk, plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        let ([q, k, v, output], [heads, kv_heads]) = (&self.projections, self.heads);
        let mut queries = self.place(&q.forward(x)?, heads, step)?;
        if let Some((positions, strength)) = self.growth {
            let at = ops::arange::<_, f32>(1, step.length + 1, None)?.add(&step.position)?;
            let steps = at.divide(Array::from_f32(positions))?.floor()?;
            let factor = steps.log1p()?.multiply(Array::from_f32(strength))?;
            let factor = factor.add(Array::from_f32(1.0))?.expand_dims(-1)?;
            queries = queries.multiply(factor)?.as_dtype(x.dtype())?;
        }
        let keys = self.place(&k.forward(x)?, kv_heads, step)?;
        let seen = kv.update(keys, split_heads(&v.forward(x)?, kv_heads)?, step)?;
        let is_first = |chunk| step.offset.is_some_and(|offset| offset + step.length <= chunk);
        let gathered = match self.chunk {
            Some(chunk) if !is_first(chunk) => {
                let chunk = Array::from_int(chunk);
                seen.attend_where(&queries, &self.scores, step, |queries, keys| {
                    Ok(queries.floor_divide(&chunk)?.eq(keys.floor_divide(&chunk)?)?)
                })?
            }
            _ => seen.attend(&queries, &self.scores, step)?,
        };
        output.forward(&join_heads(&gathered)?)
    }
}
