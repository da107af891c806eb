//! Phi-3 small: layer norms, interleaved projections, a clamped gated GELU; heads of every other
//! layer see a few blocks before them and, further back, each its own regular choice of blocks.
//! Follows `phi3small` of mlx-lm, but for what it gets wrong in prompts: blocks are counted from the
//! start of the sequence, and no query sees later keys.

use crate::{parts::attention::join_heads, prelude::*};

pub const FAMILY: Family = Family { model_types: &["phi3small"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "config::size")]
    dense_attention_every_n_layers: i32,
    #[serde(deserialize_with = "config::positive")]
    gegelu_limit: f32,
    #[serde(deserialize_with = "config::positive")]
    mup_attn_multiplier: f32,
    mup_use_scaling: bool,
    #[serde(default, deserialize_with = "config::optional_positive")]
    mup_embedding_multiplier: Option<f32>,
    #[serde(default, deserialize_with = "config::optional_positive")]
    mup_width_multiplier: Option<f32>,
    #[serde(deserialize_with = "config::positive")]
    rope_position_scale: f32,
    rope_scaling: Option<Magnitude>,
    #[serde(deserialize_with = "config::size")]
    blocksparse_block_size: i32,
    #[serde(deserialize_with = "config::size")]
    blocksparse_num_local_blocks: i32,
    #[serde(deserialize_with = "config::size")]
    blocksparse_vert_stride: i32,
    dummy_token_indices: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct Magnitude {
    #[serde(default, deserialize_with = "config::optional_positive")]
    long_mscale: Option<f32>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "intermediate_size": config.get("ff_intermediate_size"),
        "rms_norm_eps": config.get("layer_norm_epsilon"),
        "rope_theta": config.get("rope_embedding_base").unwrap_or(&json!(1e6)),
        "mup_attn_multiplier": 1.0, "mup_use_scaling": true, "mup_embedding_multiplier": 10.0,
        "mup_width_multiplier": 8.0, "rope_position_scale": 1.0, "blocksparse_block_size": 64,
        "blocksparse_num_local_blocks": 16, "blocksparse_vert_stride": 8,
    }));
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    let (body, head) = (w.at("model"), Head::read(w, Some(true), c.hidden_size, c.vocab_size)?);
    let logit_scale = e.mup_width_multiplier.map_or(1.0, f32::recip);
    // Places in the table that no token has.
    let unused = |id: &u32| match &e.dummy_token_indices {
        Some(unused) => unused.contains(id),
        None => matches!(id, 100_256 | 100_258..=100_260 | 100_264..=100_265 | 100_267..=100_351),
    };
    let unused: Vec<bool> = (0..c.vocab_size as u32).map(|id| unused(&id)).collect();
    let ends = (norm(&body, "final_layernorm")?, head.scaled(logit_scale));
    let decoder = Decoder::assemble(&body, ["embed_tokens", "layers"], &c, ends, |i, w| {
        let sparse = i % e.dense_attention_every_n_layers == 0;
        let attention = attention(&w.at("self_attn"), &c, &e, sparse)?;
        let mlp = mlp(&w.at("mlp"), &c, e.gegelu_limit)?;
        pre_norm_under(|name| norm(w, name), TWO_NORMS, attention, mlp)
    })?;
    Ok(Box::new(Phi3Small {
        decoder: Decoder { embedding_scale: e.mup_embedding_multiplier, ..decoder },
        unused: w.keep(Array::from_slice(&unused, &[c.vocab_size])),
    }))
}

struct Phi3Small {
    decoder: Decoder,
    unused: Array,
}

impl Wrapper for Phi3Small {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let logits = self.decoder.logits(hidden)?;
        let never = mlx::scalar(f32::NEG_INFINITY, logits.dtype())?;
        Ok(ops::select(&self.unused, never, logits)?)
    }
}

/// Which blocks a head sees, if not all.
struct Blocks {
    size: i32,
    local: i32,
    stride: i32,
}

impl Blocks {
    /// `[heads, queries, keys]` from positions `[queries, 1]` and `[1, keys]`.
    fn seen(&self, heads: i32, queries: &Array, keys: &Array) -> Result<Array> {
        let block = |positions: &Array| positions.floor_divide(Array::from_int(self.size));
        let (queries, keys) = (block(queries)?, block(keys)?);
        let near = queries.subtract(&keys)?.lt(Array::from_int(self.local))?;
        let head = ops::arange::<_, i32>(1, heads + 1, None)?.reshape(&[heads, 1, 1])?;
        let phase = keys.add(head)?.remainder(Array::from_int(self.stride))?;
        Ok(phase.eq(Array::from_int(0))?.logical_or(near)?)
    }
}

/// Attention to a choice of blocks in sparse layers.
fn attention(w: &Scope, c: &Text, e: &Config, sparse: bool) -> Result<impl Layer + 'static> {
    let (width, heads, kv_heads) = (c.hidden_size, c.num_attention_heads, c.kv_heads());
    let dims = c.head_dim();
    let mut rope = Rope::of(c)?;
    match &mut rope {
        Rope::Base { scale, .. } => *scale *= e.rope_position_scale,
        Rope::Frequencies { magnitude, .. } => {
            let own = e.rope_scaling.as_ref().and_then(|scaling| scaling.long_mscale);
            *magnitude = own.unwrap_or(*magnitude);
        }
        _ => {}
    }
    let scale = if e.mup_use_scaling {
        e.mup_attn_multiplier / dims as f32
    } else {
        (dims as f32).powf(-0.5)
    };
    config::product("num_attention_heads", [heads + 2 * kv_heads, dims])?;
    w.at("query_key_value").require("bias")?;
    let outputs = [heads / kv_heads * dims, dims, dims];
    let [q, k, v] = w.fused_by_group("query_key_value", width, kv_heads, outputs)?;
    let output = w.linear_with_bias("dense", heads * dims, width)?;
    let scores = Scores { scale, sinks: None };
    let blocks = sparse.then_some(Blocks {
        size: e.blocksparse_block_size,
        local: e.blocksparse_num_local_blocks,
        stride: e.blocksparse_vert_stride,
    });
    let attention = Attention::new([q, k, v, output], c, rope);
    Ok(attention.run_by(move |attention, x, kv, step| {
        let [q, k, v] = attention.heads(x, step)?;
        let seen = kv.update(k, v, step)?;
        let gathered = match &blocks {
            Some(blocks) => seen.attend_where(&q, &scores, step, |queries, keys| {
                blocks.seen(heads, queries, keys)
            }),
            None => seen.attend(&q, &scores, step),
        };
        attention.project(&join_heads(&gathered?)?)
    }))
}

/// `gelu(gate) · (up + 1)` with both clamped; they stand in turns.
fn mlp(w: &Scope, c: &Text, limit: f32) -> Result<impl Layer + 'static> {
    let (width, inner) = (c.hidden_size, c.intermediate_size);
    w.at("up_proj").require("bias")?;
    let [gate, up] = w.fused_by_group("up_proj", width, inner, [1, 1])?;
    let down = w.linear_with_bias("down_proj", inner, width)?;
    Ok(Map(move |x: &Array| {
        let constant = |value| mlx::scalar(value, x.dtype());
        let gate = ops::minimum(gate.forward(x)?, constant(limit)?)?;
        let up = ops::clip(&up.forward(x)?, (constant(-limit)?, constant(limit)?))?;
        let gate = gate.multiply(ops::sigmoid(gate.multiply(constant(1.702)?)?)?)?;
        down.forward(&gate.multiply(up.add(constant(1.0)?)?)?)
    }))
}
