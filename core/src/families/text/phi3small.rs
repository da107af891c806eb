//! Phi-3 small: layer norms, interleaved projections, a clamped gated GELU, and block-sparse
//! attention in every other layer: a few local blocks and a regular pattern of distant ones that
//! differs by head. Follows `phi3small` of mlx-lm, except where its prefill is wrong: here blocks
//! are counted from the start of the sequence, and no query sees later keys.

use crate::families::prelude::*;
use crate::families::text::gpt_oss::clamped_swiglu;

pub const FAMILY: Family =
    Family { model_types: &["phi3small"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    dense_attention_every_n_layers: Size,
    gegelu_limit: Positive,
    mup_attn_multiplier: Positive,
    mup_use_scaling: bool,
    mup_embedding_multiplier: Option<Positive>,
    mup_width_multiplier: Option<Positive>,
    rope_position_scale: Positive,
    dummy_token_indices: Option<Vec<u32>>,
}

/// The blocks that a head attends to in block-sparse layers.
#[derive(Clone, Copy, Deserialize)]
struct Blocks {
    blocksparse_block_size: Size,
    blocksparse_num_local_blocks: Size,
    blocksparse_vert_stride: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "intermediate_size": config.get("ff_intermediate_size"),
            "rms_norm_eps": config.get("layer_norm_epsilon"),
            "rope_theta": config.get("rope_embedding_base").cloned().unwrap_or(1e6.into()),
            "mup_attn_multiplier": 1.0, "mup_use_scaling": true, "mup_embedding_multiplier": 10.0,
            "mup_width_multiplier": 8.0, "rope_position_scale": 1.0, "blocksparse_block_size": 64,
            "blocksparse_num_local_blocks": 16, "blocksparse_vert_stride": 8,
        }),
    );
    let (mut c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let blocks: Blocks = config::read(config)?;
    (c.attention_bias, c.tie_word_embeddings) = (true.into(), Some(true));
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    let logit_scale = e.mup_width_multiplier.map_or(1.0, |width| width.recip());
    // The ids in the table that no token has.
    let unused = |id: &u32| match &e.dummy_token_indices {
        Some(unused) => unused.contains(id),
        None => matches!(id, 100_256 | 100_258..=100_260 | 100_264..=100_265 | 100_267..=100_351),
    };
    let unused: Vec<bool> = (0..c.vocab_size as u32).map(|id| unused(&id)).collect();
    let last = |w: &Scope| norm(w, "final_layernorm");
    let decoder = Decoder::stack_under(w, &c, last, |i, w| {
        let is_sparse = i % *e.dense_attention_every_n_layers == 0;
        let blocks = Some(blocks).filter(|_| is_sparse);
        let attention = attention(&w.at("self_attn"), &c, &e, blocks)?;
        let mlp = mlp(&w.at("mlp"), &c, *e.gegelu_limit)?;
        pre_norm_under(|name| norm(w, name), TWO_NORMS, attention, mlp)
    })?;
    Ok(Box::new(Phi3Small {
        decoder: Decoder {
            embedding_scale: e.mup_embedding_multiplier.map(f32::from),
            head: decoder.head.scaled(logit_scale),
            ..decoder
        },
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

impl Blocks {
    /// `[…, heads, queries, keys]` from positions `[…, queries, 1]` and `[…, 1, keys]`.
    fn seen(&self, heads: i32, queries: &Array, keys: &Array) -> Result<Array> {
        let size = Array::from_int(*self.blocksparse_block_size);
        let (queries, keys) = (queries.floor_divide(&size)?, keys.floor_divide(&size)?);
        let local = Array::from_int(*self.blocksparse_num_local_blocks);
        let near = queries.subtract(&keys)?.lt(local)?;
        let head = ops::arange::<_, i32>(1, heads + 1, None)?.reshape(&[heads, 1, 1])?;
        let phase = keys.add(head)?.remainder(Array::from_int(*self.blocksparse_vert_stride))?;
        Ok(phase.eq(Array::from_int(0))?.logical_or(near)?)
    }
}

/// Block-sparse or full attention.
fn attention(
    w: &Scope,
    c: &Text,
    e: &Config,
    blocks: Option<Blocks>,
) -> Result<impl Layer<State = KvCache> + use<>> {
    let mut rope = Rope::of(c)?;
    if let Rope::Base { scale, .. } = &mut rope {
        *scale *= *e.rope_position_scale;
    }
    let (heads, dims) = (c.num_attention_heads, c.head_dim() as f32);
    let scale = if e.mup_use_scaling { *e.mup_attn_multiplier / dims } else { dims.powf(-0.5) };
    let names = ["query_key_value", "dense"];
    grouped::require_biases(w, names, c)?;
    let attention = Attention::fused_by_group(w, names, c.kv_heads(), c, rope)?.scale(scale);
    Ok(attention.run_by(move |attention, x, kv, step| {
        let [q, k, v] = attention.heads(x, step)?;
        let (seen, scores) = (kv.update(k, v, step)?, &attention.scores);
        let gathered = match blocks {
            Some(blocks) => seen.attend_where(&q, scores, step, |q, k| blocks.seen(heads, q, k))?,
            None => seen.attend(&q, scores, step)?,
        };
        attention.project(&join_heads(&gathered)?)
    }))
}

/// An MLP whose gate and up rows alternate.
fn mlp(w: &Scope, c: &Text, limit: f32) -> Result<Mlp> {
    let (width, inner) = (c.hidden_size, c.intermediate_size);
    w.at("up_proj").require("bias")?;
    let [gate, up] = w.fused_by_group("up_proj", width, inner, [1, 1])?;
    let down = w.linear_with_bias("down_proj", inner, width)?;
    Ok(Mlp::new(gate, up, down, clamped_swiglu(1.702, limit)))
}
