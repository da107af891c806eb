//! Llama 4's text models: Llama with an interleaved rotary embedding, weightless norms of queries and
//! keys after it, and chunked attention; some layers have neither rotary embedding nor chunks. Layers
//! with experts send a token to one of them, whose input is multiplied by its score, and to a shared
//! expert. Follows `llama4_text` of mlx-lm, and Meta's code, as in transformers, for chunks, layers
//! without positions and experts.

use crate::families::prelude::*;
use crate::families::text::smollm3::Positions;

pub const FAMILY: Family =
    Family { model_types: &["llama4_text"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (config, mut c) = read(config)?;
    // MLX checkpoints call the output head `output`.
    let output = w.has_below("output").then(|| w.linear("output", c.hidden_size, c.vocab_size));
    c.tie_word_embeddings = Some(output.is_some() || c.tie_word_embeddings == Some(true));
    let decoder = decoder(&config, w, &c, c.rms_norm_eps)?;
    Ok(Box::new(match output {
        Some(head) => Decoder { head: Head::new(Some(head?)), ..decoder },
        None => decoder,
    }))
}

/// The config of the text models, with the defaults that transformers omits.
pub fn read(config: &Json) -> Result<(Json, Text)> {
    let config = config::with_defaults(
        config,
        json!({
            "use_qk_norm": true, "attn_temperature_tuning": true, "floor_scale": 8192.0,
            "attn_scale": 0.1, "rope_theta": 500_000.0, "head_dim": 128,
            "tie_word_embeddings": false, "attention_chunk_size": 8192, "num_local_experts": 0,
            "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
        }),
    );
    let mut c = Text::read(&config)?;
    c.rope_traditional = true.into();
    Ok((config, c))
}

#[derive(Deserialize)]
struct Config {
    use_qk_norm: bool,
    attn_temperature_tuning: Switch,
    floor_scale: Positive,
    attn_scale: f32,
    attention_chunk_size: Option<Size>,
    num_local_experts: Count,
    num_experts_per_tok: Count,
    moe_layers: Option<Vec<i32>>,
    interleave_moe_layer_step: Count,
}

impl Config {
    fn has_experts(&self, layer: i32) -> bool {
        *self.num_local_experts > 0
            && match &self.moe_layers {
                Some(layers) => layers.contains(&layer),
                None => (layer + 1) % self.interleave_moe_layer_step.max(1) == 0,
            }
    }
}

/// Early configs have a number where later ones have a boolean.
#[derive(Deserialize)]
#[serde(untagged)]
enum Switch {
    Bool(bool),
    Number(i32),
}

/// The decoder of a config that [`read`] completed; `eps` is the epsilon of the norms of queries and keys.
pub fn decoder(config: &Json, w: &Scope, c: &Text, eps: f32) -> Result<Decoder> {
    let e: Config = config::read(config)?;
    if *e.num_local_experts > 0 {
        for name in ["num_experts_per_tok", "interleave_moe_layer_step"] {
            config::field::<Size>(config, name)?;
        }
    }
    // Without dense layers, their width is of no account.
    config.get("intermediate_size_mlp");
    let positions = Positions::read(config, c.num_hidden_layers)?;
    let is_tuned = !matches!(e.attn_temperature_tuning, Switch::Bool(false) | Switch::Number(0));
    let rope = Rope::of(c)?;
    Decoder::stack(w, c, |i, w| {
        let rotates = positions.are_in(i);
        let rope = if rotates { rope.clone() } else { Rope::None };
        let mut attention = Attention::read(&w.at("self_attn"), QKVO, c, rope)?;
        if rotates && e.use_qk_norm {
            let norm = || Norm::Rms { weight: None, eps };
            attention = attention.qk_norm(QkNorm::AfterRope(norm(), norm()));
        }
        if !rotates && is_tuned {
            let (Positive(positions), strength) = (e.floor_scale, e.attn_scale);
            attention = attention.queries(move |q, step| grow(q, positions, strength, step));
        }
        let is_chunked = match c.layer_types.as_ref().map(|kinds| &*kinds[i as usize]) {
            None => rotates,
            Some("chunked_attention") => true,
            Some("full_attention") => false,
            Some(kind) => {
                let reason = format!("`{kind}` is neither full_attention nor chunked_attention");
                return Err(Error::unsupported(format!("layer_types[{i}]"), reason));
            }
        };
        let chunk = e.attention_chunk_size.filter(|_| is_chunked).map(i32::from);
        let ffn = w.at("feed_forward");
        let ffn = match e.has_experts(i) {
            true => moe(&ffn, c, &e)?,
            false => dense(&ffn, c, config)?,
        };
        pre_norm(w, c, in_chunks(attention, chunk), ffn)
    })
}

/// In layers without a rotary embedding, queries are scaled with their position, in steps of this
/// many tokens ([Nakanishi 2025](https://arxiv.org/abs/2501.19399)).
fn grow(q: Array, positions: f32, strength: f32, step: &Step) -> Result<Array> {
    let at = step.positions_of_heads()?.add(Array::from_f32(1.0))?;
    let steps = at.divide(Array::from_f32(positions))?.floor()?;
    let factor = steps.log1p()?.multiply(Array::from_f32(strength))?;
    let factor = factor.add(Array::from_f32(1.0))?.expand_dims(-1)?;
    Ok(q.multiply(factor)?.as_dtype(q.dtype())?)
}

/// Attention within a chunk of the sequence, or over the whole sequence.
fn in_chunks(attention: Attention, chunk: Option<i32>) -> impl Layer<State = KvCache> {
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

/// The MLP of layers without experts.
fn dense(w: &Scope, c: &Text, config: &Json) -> Result<Ffn> {
    let Size(inner) = config::field(config, "intermediate_size_mlp")?;
    Ok(Box::new(Mlp::sized(w, c, inner)?))
}

/// Routed experts, whose input is the token times the sigmoid of its logit, beside a shared expert
/// with unscaled input.
fn moe(w: &Scope, c: &Text, e: &Config) -> Result<Ffn> {
    let count = *e.num_local_experts;
    check_choice("num_experts_per_tok", 1, *e.num_experts_per_tok)?;
    let router = w.linear("router", c.hidden_size, count)?;
    // Published checkpoints store transposed weights.
    let place = if w.has("experts.gate_up_proj") { &w.transposed() } else { w };
    let sizes = ExpertSizes { count, width: c.hidden_size, inner: c.intermediate_size };
    let experts = GatedExperts::read(place, "experts", sizes, gate_of(c)?)?;
    let shared = Mlp::of(&w.at("shared_expert"), GATE_UP_DOWN, c)?;
    Ok(Box::new(Map(move |x: &Array| {
        let logits = router.forward(x)?;
        let ids = first_top_k(&logits, 1)?;
        let scores = take_along_axis(&logits, &ids, -1)?.as_dtype(Dtype::Float32)?;
        let scaled = x.multiply(ops::sigmoid(scores)?.as_dtype(x.dtype())?)?;
        let y = experts.forward(&scaled, &ids)?.squeeze_axes(&[-2])?;
        Ok(y.add(shared.apply(x)?)?)
    })))
}
