//! Attention with one key-value head for all query heads: over a sliding window and, beyond it,
//! over groups of tokens that some layers pool and some select. The rotary embedding is undone on
//! its output. Follows `deepseek_v41` of mlx-lm.

use crate::{
    checkpoint::{
        config::{self, Json, Size, Text},
        scope::Scope,
    },
    error::{Error, Result},
    layers::{algebra::Layer, cache_plan::CachePlan, state::Recurrent, step::Step},
};
use crate::{
    families::text::deepseek_v41::{
        compressed::{Compressor, Far, Groups, attend},
        compression::{Compression, Reads},
        group_indexer::GroupIndexer,
        rounding::{mxfp4, mxfp8, nvfp4},
        tail_rope::TailRope,
    },
    layers::{
        attention::{
            grouped::{join_heads, split_heads},
            kv_cache::KvCache,
            scores::Scores,
        },
        linear::{Experts, Linear},
        norm::Norm,
    },
};
use mlx_rs::{Array, Dtype, ops};
use serde::Deserialize;
use serde_json::json;

/// The name of a tensor in this checkpoint, of the two that MLX and the authors use.
pub type Name = fn([&'static str; 2]) -> &'static str;

/// The settings that all layers share.
pub struct CompressedSizes<'a> {
    text: &'a Text,
    name: Name,
    own: OwnSizes,
    compression: Compression,
    /// The rotary embeddings of layers without groups, which have no scaling, and of layers with
    /// groups.
    ropes: [TailRope; 2],
}

/// The config fields of the attention.
#[derive(Deserialize)]
struct OwnSizes {
    q_lora_rank: Size,
    qk_rope_head_dim: Size,
    /// The number of groups of heads that the output is split into, and the rank that each is
    /// projected to.
    o_groups: Size,
    o_lora_rank: Size,
}

impl OwnSizes {
    fn check(&self, c: &Text, narrowest: i32) -> Result<()> {
        let (rotated, heads, head_dim) =
            (*self.qk_rope_head_dim, c.num_attention_heads, c.head_dim());
        if rotated % 2 != 0 || rotated > narrowest {
            let reason =
                format!("{rotated} of {narrowest} elements of a head cannot be rotated in pairs");
            return Err(Error::config("qk_rope_head_dim", reason));
        }
        if heads * head_dim % *self.o_groups != 0 {
            let reason = format!("does not divide {heads} heads of {head_dim}");
            return Err(Error::config("o_groups", reason));
        }
        config::product("o_lora_rank", [*self.o_groups, *self.o_lora_rank])?;
        Ok(())
    }
}

/// Attention of one layer.
pub struct CompressedAttention {
    source: Normed,
    q: Linear,
    key: Normed,
    output: Output,
    scores: Scores,
    rope: TailRope,
    window: i32,
    heads: i32,
    reads: Option<Reads>,
    pool: Option<Pool>,
    indexer: Option<GroupIndexer>,
}

/// A projection and the norm after it.
struct Normed {
    linear: Linear,
    norm: Norm,
}

impl Normed {
    fn forward(&self, x: &Array) -> Result<Array> {
        self.norm.forward(&self.linear.forward(x)?)
    }
}

/// The way back to the stream: a matrix for each group of heads, then one for all.
struct Output {
    each: Experts,
    whole: Linear,
}

/// What makes entries of groups.
struct Pool {
    compressor: Compressor,
    /// To what indexers score.
    index: Option<Normed>,
    layer: i32,
    size: i32,
}

impl<'a> CompressedSizes<'a> {
    /// Reads the config fields; `name` maps tensor names.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault.
    pub fn read(config: &Json, text: &'a Text, name: Name) -> Result<Self> {
        let (own, compression): (OwnSizes, _) = (config::read(config)?, Compression::read(config)?);
        own.check(text, text.head_dim().min(*compression.index_head_dim))?;
        let original = json!({"original_max_position_embeddings": text.max_position_embeddings});
        let scaling = match config.get("rope_scaling") {
            Some(scaling) if scaling.is_object() => config::with_defaults(scaling, original),
            _ => original.into(),
        };
        let (dims, base) = (*own.qk_rope_head_dim, *compression.compress_rope_theta);
        let ropes = [
            TailRope::yarn(dims, text.rope_theta(), &json!({}).into())?,
            TailRope::yarn(dims, base, &scaling)?,
        ];
        Ok(CompressedSizes { text, name, own, compression, ropes })
    }

    /// Reads the attention of a layer.
    ///
    /// # Errors
    /// As [`Scope::linear`]; [`Error::Config`] when layers do not fit together.
    pub fn attention(&self, w: &Scope, layer: i32) -> Result<CompressedAttention> {
        let (c, e) = (self.text, &self.compression);
        let (width, heads, dims) = (c.hidden_size, c.num_attention_heads, c.head_dim());
        let linear = |names, input, output| w.linear((self.name)(names), input, output);
        let norm = |names, width| w.rms_norm((self.name)(names), width, c.rms_norm_eps);
        let window = c.sliding_window.ok_or_else(|| Error::config("sliding_window", "missing"))?;
        let reads = e.reads(layer)?;
        let chosen = reads.filter(|_| e.chooses(layer));
        let indexer =
            chosen.map(|reads| self.indexer(&w.at("indexer"), layer, reads)).transpose()?;
        let pool = e.pools(layer).then(|| self.pool(w, layer)).transpose()?;
        e.unused(layer, reads).for_each(|unused| w.ignore(unused));
        let (rank, inner) = (*self.own.q_lora_rank, *self.own.o_groups * *self.own.o_lora_rank);
        let sinks = w.take((self.name)(["sinks", "attn_sink"]), &[heads])?;
        let sinks = w.keep(sinks.as_dtype(Dtype::Float32)?);
        Ok(CompressedAttention {
            source: Normed {
                linear: linear(["q_a_proj", "wq_a"], width, rank)?,
                norm: norm(["q_a_norm", "q_norm"], rank)?,
            },
            q: linear(["q_b_proj", "wq_b"], rank, heads * dims)?,
            key: Normed {
                linear: linear(["kv_proj", "wkv"], width, dims)?,
                norm: norm(["kv_norm"; 2], dims)?,
            },
            output: Output {
                each: self.grouped(w)?,
                whole: linear(["o_b_proj", "wo_b"], inner, width)?,
            },
            scores: Scores { scale: (dims as f32).powf(-0.5), sinks: Some(sinks) },
            rope: self.ropes[usize::from(e.size(layer) > 0)].clone(),
            window,
            heads,
            reads,
            pool,
            indexer,
        })
    }

    /// One matrix for each group of heads; the authors store them as one.
    fn grouped(&self, w: &Scope) -> Result<Experts> {
        let (groups, rank) = (*self.own.o_groups, *self.own.o_lora_rank);
        let w = w.at((self.name)(["o_a_proj", "wo_a"]));
        let input = self.text.num_attention_heads * self.text.head_dim() / groups;
        let matrix = if w.shape("weight").is_some_and(|shape| shape.len() == 2) {
            let split = |a: &Array| Ok(a.reshape(&[groups, rank, a.dim(-1)])?);
            w.matrix(&[groups * rank, input])?.map(split)?
        } else {
            w.matrix(&[groups, rank, input])?
        };
        let lora = w.lora_of_experts(|i| w.at(i), matrix.stack_sizes())?;
        Ok(Experts::new(w.keep_matrix(matrix.for_experts()?), None).with_lora(lora))
    }

    fn pool(&self, w: &Scope, layer: i32) -> Result<Pool> {
        let (c, e, name) = (self.text, &self.compression, self.name);
        let (indexer, w, size) = (w.at("indexer"), w.at("compressor"), e.size(layer));
        let linear = |names| w.linear(name(names), c.hidden_size, c.head_dim());
        let gate = (size > 1).then(|| linear(["gate_proj", "wgate"])).transpose()?;
        let norm = w.rms_norm(name(["kv_norm", "norm"]), c.head_dim(), c.rms_norm_eps)?;
        let index = || -> Result<Normed> {
            let width = *e.index_head_dim;
            let linear = indexer.linear(name(["k_proj", "wk"]), c.head_dim(), width)?;
            Ok(Normed { linear, norm: indexer.rms_norm("k_norm", width, c.rms_norm_eps)? })
        };
        let compressor = Compressor::new(linear(["kv_proj", "wkv"])?, gate, norm, size);
        let index = e.chooses(layer).then(index).transpose()?;
        Ok(Pool { compressor, index, layer, size })
    }

    fn indexer(&self, w: &Scope, layer: i32, reads: Reads) -> Result<GroupIndexer> {
        let e = &self.compression;
        let heads = *e.index_n_heads;
        let queries = config::product("index_head_dim", [heads, *e.index_head_dim])?;
        Ok(GroupIndexer {
            q: w.linear((self.name)(["q_b_proj", "wq_b"]), *self.own.q_lora_rank, queries)?,
            weights: w.linear("weights_proj", self.text.hidden_size, heads)?,
            heads,
            top_k: *e.index_topk,
            candidates: e.candidates(layer),
            reads,
        })
    }
}

impl Pool {
    /// Makes the groups of the step available to this layer and later ones.
    fn lend(
        &self,
        x: &Array,
        open: &mut Recurrent,
        entries: &mut KvCache,
        rope: &TailRope,
        step: &Step,
    ) -> Result<()> {
        let (latents, groups) = (self.compressor.forward(x, open, step)?, step.grouped(self.size)?);
        let place = |x: &Array| rope.forward(x, &groups.position, self.size);
        let keys = nvfp4(&place(&latents)?)?;
        let seen = match &self.index {
            Some(index) => {
                let index = index.forward(&latents)?;
                entries.update(keys, mxfp4(&place(&index)?)?, &groups)?
            }
            None => entries.update_keys(keys, &groups)?,
        };
        step.lend(self.layer, seen);
        Ok(())
    }
}

/// The ids of the groups selected by an indexer, for its layer and for later layers without one;
/// `None` when all groups are visible.
#[derive(Clone)]
struct ChosenGroups(Option<Array>);

impl Layer for CompressedAttention {
    /// The sliding window, and, in layers that pool, the open group and the entries of all groups.
    type State = (KvCache, Option<(Recurrent, KvCache)>);

    /// The cached keys are already rounded to few bits, in a different way than quantized caches
    /// round.
    fn state(&self, plan: &CachePlan) -> Self::State {
        let plan = &CachePlan { quantization: None, ..*plan };
        let groups = |pool: &Pool| (Recurrent::default(), KvCache::strided(pool.size, plan));
        let window = KvCache::new(Some(self.window), plan).read_by_slot();
        (window, self.pool.as_ref().map(groups))
    }

    fn forward(&self, x: &Array, (kv, groups): &mut Self::State, step: &Step) -> Result<Array> {
        let (rope, at) = (&self.rope, &step.position);
        let source = self.source.forward(x)?;
        let q = rope.forward(&split_heads(&self.q.forward(&source)?, self.heads)?, at, 1)?;
        let key = self.key.forward(x)?.expand_dims(1)?;
        let window = kv.update_keys(mxfp8(&rope.forward(&key, at, 1)?)?, step)?;
        if let (Some(pool), Some((open, entries))) = (&self.pool, groups) {
            pool.lend(x, open, entries, rope, step)?;
        }
        if let Some(indexer) = &self.indexer {
            step.put(ChosenGroups(indexer.choose(x, &source, rope, step)?));
        }
        let far =
            self.reads.map(|reads| Groups::lent(reads.pooled, reads.size, step)).transpose()?;
        let chosen = || step.get().and_then(|ChosenGroups(chosen)| chosen);
        let far = far.as_ref().map(|groups| Far { groups, choice: chosen() });
        let y = join_heads(&rope.back(&attend(&q, &window, far, &self.scores, step)?, at)?)?;
        let Output { each, whole } = &self.output;
        let (groups, batch, length) = (each.count(), x.dim(0), x.dim(1));
        let y = y.reshape(&[batch * length, groups, -1])?.swap_axes(0, 1)?;
        let y = each.forward(&y, &ops::arange::<_, i32>(0, groups, None)?, false)?;
        whole.forward(&y.swap_axes(0, 1)?.reshape(&[batch, length, -1])?)
    }
}
