//! Phi-3 small: layer norms, interleaved projections, a clamped gated GELU; heads of every other
//! layer see a few blocks before them and, further back, each its own regular choice of blocks.
//! Follows `phi3small` of mlx-lm, but for what it gets wrong in prompts: blocks are counted from the
//! start of the sequence, and no query sees later keys.

use crate::{
    parts::{
        attention::{join_heads, split_heads},
        kv::Kv,
    },
    prelude::*,
};

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
    let (width, body) = (c.hidden_size, w.at("model"));
    let block = |i: i32| {
        let w = body.at("layers").at(i);
        let norm = |name| norm(&w, name, &c);
        let sparse = i % e.dense_attention_every_n_layers == 0;
        Ok(Block::new((
            Residual::pre(
                norm("input_layernorm")?,
                BlockSparse::read(&w.at("self_attn"), &c, &e, sparse)?,
            ),
            Residual::pre(norm("post_attention_layernorm")?, GatedMlp::read(&w.at("mlp"), &c, &e)?),
        )))
    };
    let head = Head::read(w, Some(true), width, c.vocab_size)?;
    let logit_scale = e.mup_width_multiplier.map_or(1.0, f32::recip);
    // Places in the table that no token has.
    let unused = |id: &u32| match &e.dummy_token_indices {
        Some(unused) => unused.contains(id),
        None => matches!(id, 100_256 | 100_258..=100_260 | 100_264..=100_265 | 100_267..=100_351),
    };
    let unused: Vec<bool> = (0..c.vocab_size as u32).map(|id| unused(&id)).collect();
    Ok(Box::new(Phi3Small {
        decoder: Decoder {
            embedding: body.embedding("embed_tokens", c.vocab_size, width)?,
            embedding_scale: e.mup_embedding_multiplier,
            blocks: (0..c.num_hidden_layers).map(block).collect::<Result<_>>()?,
            norm: norm(&body, "final_layernorm", &c)?,
            head: head.scaled(logit_scale),
        },
        unused: w.keep(Array::from_slice(&unused, &[c.vocab_size])),
    }))
}

fn norm(w: &Scope, name: &str, c: &Text) -> Result<Norm> {
    w.at(name).require("bias")?;
    w.layer_norm(name, c.hidden_size, c.rms_norm_eps)
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

/// Attention from one projection, in which each key head stands behind its query heads.
struct BlockSparse {
    qkv: Linear,
    output: Linear,
    rope: Rope,
    scores: Scores,
    blocks: Option<Blocks>,
    heads: i32,
    kv_heads: i32,
}

impl BlockSparse {
    fn read(w: &Scope, c: &Text, e: &Config, sparse: bool) -> Result<Self> {
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
        let all = config::product("num_attention_heads", [heads + 2 * kv_heads, dims])?;
        Ok(BlockSparse {
            qkv: w.linear_with_bias("query_key_value", width, all)?,
            output: w.linear_with_bias("dense", heads * dims, width)?,
            rope,
            scores: Scores { scale, sinks: None },
            blocks: sparse.then_some(Blocks {
                size: e.blocksparse_block_size,
                local: e.blocksparse_num_local_blocks,
                stride: e.blocksparse_vert_stride,
            }),
            heads,
            kv_heads,
        })
    }
}

impl Layer for BlockSparse {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        Kv::new(None, plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        let (batch, length, group) = (x.dim(0), x.dim(1), self.heads / self.kv_heads);
        let shape = [batch, length, self.kv_heads, group + 2, -1];
        let qkv = self.qkv.forward(x)?.reshape(&shape)?;
        let part = |from, to, heads| -> Result<Array> {
            let part = mlx::slice(&qkv, 3, from, to)?.reshape(&[batch, length, -1])?;
            split_heads(&part, heads)
        };
        let q = self.rope.forward(&part(0, group, self.heads)?, step)?;
        let k = self.rope.forward(&part(group, group + 1, self.kv_heads)?, step)?;
        let v = part(group + 1, group + 2, self.kv_heads)?;
        let seen = kv.update(k, v, step)?;
        let y = match &self.blocks {
            Some(blocks) => seen.attend_where(&q, &self.scores, step, |queries, keys| {
                blocks.seen(self.heads, queries, keys)
            }),
            None => seen.attend(&q, &self.scores, step),
        };
        self.output.forward(&join_heads(&y?)?)
    }
}

/// `gelu(a) · (b + 1)` with `a` and `b` in turns and both clamped.
struct GatedMlp {
    up: Linear,
    down: Linear,
    limit: f32,
}

impl GatedMlp {
    fn read(w: &Scope, c: &Text, e: &Config) -> Result<Self> {
        let (width, inner) = (c.hidden_size, c.intermediate_size);
        Ok(GatedMlp {
            up: w.linear_with_bias("up_proj", width, 2 * inner)?,
            down: w.linear_with_bias("down_proj", inner, width)?,
            limit: e.gegelu_limit,
        })
    }
}

impl Layer for GatedMlp {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        let x = self.up.forward(x)?;
        let pairs = x.reshape(&[x.dim(0), x.dim(1), -1, 2])?;
        let half = |i| -> Result<Array> { Ok(mlx::slice(&pairs, 3, i, i + 1)?.squeeze_axes(&[3])?) };
        let constant = |value| mlx::scalar(value, x.dtype());
        let gate = ops::minimum(half(0)?, constant(self.limit)?)?;
        let linear = ops::clip(&half(1)?, (constant(-self.limit)?, constant(self.limit)?))?;
        let gate = gate.multiply(ops::sigmoid(gate.multiply(constant(1.702)?)?)?)?;
        self.down.forward(&gate.multiply(linear.add(constant(1.0)?)?)?)
    }
}
