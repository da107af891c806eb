//! Llama 4's dense text models: Llama with neighbouring rotary pairs, whose rotated queries and keys
//! are normalised, without weights, and see their own chunk of the sequence; some layers have no
//! positions and see everything. Follows `llama4_text` of mlx-lm; chunks and layers without positions
//! follow Meta's code instead.

use crate::prelude::*;

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
    intermediate_size_mlp: Size,
    no_rope_layers: Option<Vec<i32>>,
    no_rope_layer_interval: Size,
    use_qk_norm: bool,
    attn_temperature_tuning: Switch,
    floor_scale: Positive,
    attn_scale: f32,
    attention_chunk_size: Option<Size>,
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
    config::check_entries("no_rope_layers", e.listed(), c.num_hidden_layers)?;
    Ok((c, e))
}

impl Switch {
    fn is_on(&self) -> bool {
        match self {
            Switch::Bool(is_on) => *is_on,
            Switch::Number(number) => *number != 0,
        }
    }
}

impl Config {
    fn listed(&self) -> Option<&Vec<i32>> {
        self.no_rope_layers.as_ref().filter(|layers| !layers.is_empty())
    }

    /// The list names, against what it is called, the layers that rotate.
    fn rotates(&self, i: i32) -> bool {
        match self.listed() {
            Some(layers) => layers[i as usize] != 0,
            None => (i + 1) % *self.no_rope_layer_interval != 0,
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
        Ok(self.attention_chunk_size.filter(|_| chunked).map(i32::from))
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
        let rope = if rotates { rope.clone() } else { Rope::None };
        let mut attention = Attention::read(&w.at("self_attn"), QKVO, c, rope)?;
        if rotates && e.use_qk_norm {
            let norm = || Norm::Rms { weight: None, eps };
            attention = attention.qk_norm(QkNorm::AfterRope(norm(), norm()));
        }
        if !rotates && e.attn_temperature_tuning.is_on() {
            let (positions, strength) = (e.floor_scale, e.attn_scale);
            attention = attention.queries(move |q, step| grow(q, *positions, strength, step));
        }
        pre_norm(w, c, in_chunks(attention, e.chunk(c, i)?), ffn(i, &w.at("feed_forward"))?)
    })
}

/// Without positions, queries grow with theirs, in steps of so many
/// ([Nakanishi 2025](https://arxiv.org/abs/2501.19399)).
fn grow(q: Array, positions: f32, strength: f32, step: &Step) -> Result<Array> {
    let at = ops::arange::<_, f32>(1, step.length + 1, None)?.add(&step.position)?;
    let steps = at.divide(Array::from_f32(positions))?.floor()?;
    let factor = steps.log1p()?.multiply(Array::from_f32(strength))?;
    let factor = factor.add(Array::from_f32(1.0))?.expand_dims(-1)?;
    Ok(q.multiply(factor)?.as_dtype(q.dtype())?)
}

/// Attention of a chunk of the sequence to itself, or of everything.
fn in_chunks(attention: Attention, chunk: Option<i32>) -> impl Layer<State = Kv> {
    attention.window(chunk).run_by(move |attention, x, kv, step| {
        let [q, k, v] = attention.heads(x, step)?;
        let seen = kv.update(k, v, step)?;
        let is_first = |chunk| step.offset.is_some_and(|offset| offset + step.length <= chunk);
        let gathered = match chunk {
            Some(chunk) if !is_first(chunk) => {
                let chunk = Array::from_int(chunk);
                seen.attend_where(&q, &attention.scores, step, |queries, keys| {
                    Ok(queries.floor_divide(&chunk)?.eq(keys.floor_divide(&chunk)?)?)
                })?
            }
            _ => seen.attend(&q, &attention.scores, step)?,
        };
        attention.project(&join_heads(&gathered)?)
    })
}

/// The network of layers without experts.
pub fn dense(w: &Scope, c: &Text, e: &Config) -> Result<Mlp> {
    Mlp::sized(w, c, *e.intermediate_size_mlp, swiglu)
}
