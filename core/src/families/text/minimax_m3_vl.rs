//! MiniMax M3 (text): norms that mean `1 + w`, clamped networks, experts as in DeepSeek V3 beside one
//! that all share; most layers attend to a limited number of blocks of keys, which an indexer, a
//! small attention of its own, chooses. Follows `minimax_m3_vl` of mlx-lm.

use super::{gemma3_text::without, glm4_moe, gpt_oss::clamped_swiglu};
use crate::{
    parts::{
        attention::{join_heads, split_heads},
        kv::Kv,
        router::first_top_k,
    },
    prelude::*,
};
use mlx_rs::Dtype;

pub const FAMILY: Family = Family { model_types: &["minimax_m3_vl", "minimax_m3"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "config::size")]
    dense_intermediate_size: i32,
    #[serde(deserialize_with = "config::size")]
    shared_intermediate_size: i32,
    #[serde(default, deserialize_with = "config::optional_size")]
    rotary_dim: Option<i32>,
    partial_rotary_factor: f64,
    use_qk_norm: bool,
    use_gemma_norm: bool,
    swiglu_alpha: f32,
    #[serde(deserialize_with = "config::positive")]
    swiglu_limit: f32,
    mlp_layer_types: Option<Vec<String>>,
    moe_layer_freq: Option<Vec<i32>>,
    layer_types: Option<Vec<String>>,
    sparse_attention_freq: Option<Vec<i32>>,
    #[serde(default, deserialize_with = "config::optional_size")]
    index_block_size: Option<i32>,
}

#[derive(Deserialize)]
struct IndexerConfig {
    #[serde(deserialize_with = "config::size")]
    index_n_heads: i32,
    #[serde(deserialize_with = "config::size")]
    index_head_dim: i32,
    #[serde(deserialize_with = "config::size")]
    index_topk_blocks: i32,
    #[serde(deserialize_with = "config::count")]
    index_local_blocks: i32,
}

/// How published configs nest what later ones do not.
const NESTED: &[(&str, &str)] = &[
    ("sparse_num_index_heads", "index_n_heads"),
    ("sparse_index_dim", "index_head_dim"),
    ("sparse_block_size", "index_block_size"),
    ("sparse_topk_blocks", "index_topk_blocks"),
    ("sparse_local_block", "index_local_blocks"),
    ("sparse_attention_freq", "sparse_attention_freq"),
];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (config, is_nested) = flat(config)?;
    build_flat(&config, w).map_err(|error| match error {
        Error::Config { field, reason, .. } if is_nested => {
            let name = NESTED.iter().find(|(_, ours)| *ours == field);
            let nested = |(theirs, _): &(&str, &str)| format!("sparse_attention_config.{theirs}");
            Error::config(name.map_or(field, nested), reason)
        }
        error => error,
    })
}

fn build_flat(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let e: Config = config::read(config)?;
    let c = Text::read(&without(config, &["layer_types"]))?;
    let names = [("num_local_experts", "n_routed_experts")];
    let routing: LossFreeRouting = config::read_renamed(config, &names, config::read)?;
    let layers = c.num_hidden_layers;
    config::check_entries("mlp_layer_types", e.mlp_layer_types.as_ref(), layers)?;
    config::check_entries("moe_layer_freq", e.moe_layer_freq.as_ref(), layers)?;
    config::check_entries("layer_types", e.layer_types.as_ref(), layers)?;
    config::check_entries("sparse_attention_freq", e.sparse_attention_freq.as_ref(), layers)?;
    // The text is read alone.
    ignore_parts(w, &["vision_tower", "multi_modal_projector", "patch_merge_mlp"]);
    let norm = |w: &Scope, name: &str, width| {
        let norm = w.rms_norm(name, width, c.rms_norm_eps)?;
        if e.use_gemma_norm { norm.plus_one() } else { Ok(norm) }
    };
    let (dims, rope) = e.rope(&c, None)?;
    let last = |w: &Scope| norm(w, "norm", c.hidden_size);
    let decoder = Decoder::stack_under(w, &c, last, |i, w| {
        let a = w.at("self_attn");
        let mut attention = Attention::read(&a, QKVO, &c, rope.clone())?;
        if e.use_qk_norm {
            let head_norm = |name| norm(&a, name, c.head_dim());
            attention =
                attention.qk_norm(QkNorm::BeforeRope(head_norm("q_norm")?, head_norm("k_norm")?));
        }
        let before = norm(w, "input_layernorm", c.hidden_size)?;
        let ffn = Residual::pre(
            norm(w, "post_attention_layernorm", c.hidden_size)?,
            e.network(w, &c, i as usize, &routing)?,
        );
        let Some(block) = e.index_block_size.filter(|_| e.is_sparse(i as usize)) else {
            return Ok(Block::new((Residual::pre(before, attention), ffn)));
        };
        let s: IndexerConfig = config::read(config)?;
        let (heads, head_dim) = (s.index_n_heads, s.index_head_dim);
        let queries = config::product("index_head_dim", [heads, head_dim])?;
        if c.num_attention_heads % heads != 0 {
            let reason = format!("does not divide the {} query heads", c.num_attention_heads);
            return Err(Error::config("index_n_heads", reason));
        }
        let indexer = Indexer {
            q: a.linear("index_q_proj", c.hidden_size, queries)?,
            k: a.linear("index_k_proj", c.hidden_size, head_dim)?,
            norms: [norm(&a, "index_q_norm", head_dim)?, norm(&a, "index_k_norm", head_dim)?],
            rope: e.rope(&c, Some(dims.min(head_dim)))?.1,
            heads,
            block,
            blocks: s.index_topk_blocks,
            local: s.index_local_blocks,
        };
        let group = c.num_attention_heads / heads;
        let attention = SparseAttention { attention, indexer, group };
        Ok(Block::new((Residual::pre(before, attention), ffn)))
    })?;
    Ok(Box::new(decoder))
}

/// The config of the text with nothing nested, and whether anything was.
fn flat(config: &Json) -> Result<(Json, bool)> {
    let mut text = config::text(config)?.clone();
    let nested = text.get("sparse_attention_config").cloned().unwrap_or_default();
    if !nested.is_object() && !nested.is_null() {
        return Err(Error::config("sparse_attention_config", "not an object"));
    }
    for (theirs, ours) in NESTED {
        if let (Some(value), Some(fields)) = (nested.get(theirs), text.as_object_mut()) {
            fields.insert(ours.to_string(), value.clone());
        }
    }
    let config = config::with_defaults(&text, json!({
        "hidden_size": 6144, "intermediate_size": 3072, "dense_intermediate_size": 12288,
        "shared_intermediate_size": 3072, "num_attention_heads": 64, "num_key_value_heads": 4,
        "num_hidden_layers": 60, "num_local_experts": 128, "num_experts_per_tok": 4,
        "max_position_embeddings": 1_048_576, "rms_norm_eps": 1e-6, "rope_theta": 5e6,
        "head_dim": 128, "partial_rotary_factor": 0.5, "vocab_size": 200_064,
        "tie_word_embeddings": false, "routed_scaling_factor": 2.0, "norm_topk_prob": true,
        "use_qk_norm": true, "use_gemma_norm": true, "swiglu_alpha": 1.702, "swiglu_limit": 7.0,
        "index_local_blocks": 1,
    }));
    Ok((config, nested.is_object()))
}

impl Config {
    /// How many elements of a head are rotated, and how.
    fn rope(&self, c: &Text, dims: Option<i32>) -> Result<(i32, Rope)> {
        let nested = c.rope_scaling();
        let share = nested.and_then(|nested| nested.partial_rotary_factor);
        let share = share.unwrap_or(self.partial_rotary_factor);
        let own = self.rotary_dim.unwrap_or((f64::from(c.head_dim()) * share) as i32);
        if own > c.head_dim() {
            let reason = format!("{own} of the {} elements of a head", c.head_dim());
            return Err(Error::config("rotary_dim", reason));
        }
        let dims = dims.unwrap_or(own);
        let base = nested.and_then(|nested| nested.rope_theta).unwrap_or(c.rope_theta());
        Ok((dims, Rope::scaled(dims, base, false, nested, c.max_position_embeddings)?))
    }

    fn is_sparse(&self, layer: usize) -> bool {
        match (&self.layer_types, &self.sparse_attention_freq) {
            (Some(kinds), _) => kinds[layer] != "full_attention",
            (None, Some(sparse)) => sparse[layer] != 0,
            (None, None) => true,
        }
    }

    fn network(&self, w: &Scope, c: &Text, layer: usize, routing: &LossFreeRouting) -> Result<Ffn> {
        let activation = || clamped_swiglu(self.swiglu_alpha, self.swiglu_limit);
        let has_experts = match (&self.mlp_layer_types, &self.moe_layer_freq) {
            (Some(kinds), _) => kinds[layer] == "sparse",
            (None, Some(sparse)) => sparse[layer] != 0,
            (None, None) => true,
        };
        let moe = w.at("block_sparse_moe");
        if !has_experts {
            // Some exports keep the name of mixtures.
            let mlp = if w.has_below("mlp") { w.at("mlp") } else { moe };
            let inner = self.dense_intermediate_size;
            return Ok(Box::new(Mlp::sized(&mlp, c, inner, activation())?));
        }
        let router = glm4_moe::router_corrected(&moe, &moe, c, routing)?.normalized().rounded();
        let sizes = [routing.n_routed_experts, c.hidden_size, c.intermediate_size];
        let (experts, shared) = self.experts(&moe, c, sizes)?;
        Ok(sum(Moe::new(router, experts), shared))
    }

    /// Experts, and the network that all tokens share. Some exports fold that in as the last expert,
    /// and some join gates and values.
    fn experts(
        &self,
        w: &Scope,
        c: &Text,
        [count, width, inner]: [i32; 3],
    ) -> Result<(GatedExperts, Mlp)> {
        let activation = || clamped_swiglu(self.swiglu_alpha, self.swiglu_limit);
        let alone = || -> Result<Mlp> {
            let (w, inner) = (w.at("shared_experts"), self.shared_intermediate_size);
            if !w.has_below("gate_up_proj") {
                return Mlp::sized(&w, c, inner, activation());
            }
            let [gate, up] = w.fused("gate_up_proj", width, [inner, inner])?;
            Ok(Mlp::new([gate, up, w.linear("down_proj", inner, width)?], activation()))
        };
        let stacked = w.at("switch_mlp");
        let is_joined = stacked.has_below("gate_up_proj");
        let first = if is_joined { "gate_up_proj" } else { "gate_proj" };
        let is_folded = [first, "down_proj"].iter().all(|name| {
            let shape = stacked.at(name).shape("weight").unwrap_or_default();
            shape.first() == Some(&(count + 1))
        });
        if !is_joined && !is_folded {
            let (names, sizes) = (["w1", "w3", "w2"], [count, width, inner]);
            let experts = GatedExperts::read_named(w, "switch_mlp", names, sizes, activation())?;
            return Ok((experts, alone()?));
        }
        let all = count + i32::from(is_folded);
        let [gate, up] = if is_joined {
            stacked.at("gate_up_proj").halves(&[all, 2 * inner, width])?
        } else {
            let read = |name| stacked.at(name).matrix(&[all, inner, width]);
            [read("gate_proj")?, read("up_proj")?]
        };
        let down = stacked.at("down_proj").matrix(&[all, width, inner])?;
        let routed = |matrix: &Matrix| matrix.experts(0, count);
        let last = |matrix: &Matrix| -> Result<Linear> {
            Ok(Linear::new(w.keep_matrix(matrix.expert(count)?), None))
        };
        let experts = [routed(&gate)?, routed(&up)?, routed(&down)?];
        let shared = if is_folded {
            Mlp::new([last(&gate)?, last(&up)?, last(&down)?], activation())
        } else {
            alone()?
        };
        Ok((GatedExperts::of(w, experts, activation())?, shared))
    }
}

/// Attention to blocks of keys.
struct SparseAttention {
    attention: Attention,
    indexer: Indexer,
    /// How many query heads share a choice.
    group: i32,
}

impl Layer for SparseAttention {
    type State = (Kv, Kv);

    fn state(&self, plan: &CachePlan) -> (Kv, Kv) {
        (self.attention.state(plan), Kv::of_indexer(plan))
    }

    fn forward(&self, x: &Array, (kv, index): &mut (Kv, Kv), step: &Step) -> Result<Array> {
        let [q, k, v] = self.attention.heads(x, step)?;
        let seen = kv.update(k, v, step)?;
        let scores = &self.attention.scores;
        let gathered = match self.indexer.choose(x, index, step)? {
            None => seen.attend(&q, scores, step)?,
            Some(chosen) => {
                let chosen = ops::repeat_axis::<bool>(chosen, self.group, 1)?;
                seen.attend_where(&q, scores, step, |_, _| Ok(chosen))?
            }
        };
        self.attention.project(&join_heads(&gathered)?)
    }
}

/// Scores blocks of keys by the best key in them.
struct Indexer {
    q: Linear,
    k: Linear,
    norms: [Norm; 2],
    rope: Rope,
    heads: i32,
    block: i32,
    blocks: i32,
    local: i32,
}

impl Indexer {
    /// Remembers keys of its own, and says which ones each query sees, beside those after it:
    /// `[batch, heads, length, keys]`; nothing when there are no more blocks than it may choose.
    fn choose(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Option<Array>> {
        let [q_norm, k_norm] = &self.norms;
        let place = |x: Array, heads, norm: &Norm| -> Result<Array> {
            self.rope.forward(&norm.forward(&split_heads(&x, heads)?)?, step)
        };
        let seen = kv.update_keys(place(self.k.forward(x)?, 1, k_norm)?, step)?;
        let (keys, mask) = seen.keys(step)?;
        let count = keys.dim(2);
        let blocks = count / self.block + i32::from(count % self.block > 0);
        if blocks <= self.blocks {
            return Ok(None);
        }
        let queries = place(self.q.forward(x)?, self.heads, q_norm)?;
        let single = |x: &Array| x.as_dtype(Dtype::Float32);
        let scores = single(&queries)?.matmul(single(&keys)?.swap_axes(-1, -2)?)?;
        let never = Array::from_f32(f32::NEG_INFINITY);
        let scores = ops::select(&mask, scores, &never)?;
        let shape = [x.dim(0), self.heads, x.dim(1), blocks * self.block - count];
        let rest = ops::full::<f32>(&shape, never)?;
        let scores = ops::concatenate(&[scores, rest], -1)?;
        let scores = ops::unflatten(&scores, -1, &[blocks, self.block])?.max_axis(-1, false)?;
        let own = seen.own(step)?.floor_divide(Array::from_int(self.block))?.expand_dims(-1)?;
        let ids = ops::arange::<_, i32>(0, blocks, None)?;
        let distance = own.subtract(ids)?;
        let is_local = distance.ge(Array::from_int(0))?;
        let is_local = is_local.logical_and(distance.lt(Array::from_int(self.local))?)?;
        let scores = ops::select(&is_local, Array::from_f32(f32::INFINITY), scores)?;
        let ids = first_top_k(&scores, self.blocks)?;
        let none = ops::zeros_dtype(scores.shape(), Dtype::Bool)?;
        let chosen = none.put_along_axis(&ids, Array::from_bool(true), -1)?.expand_dims(-1)?;
        let wide = [x.dim(0), self.heads, x.dim(1), blocks, self.block];
        let chosen = ops::broadcast_to(&chosen, &wide)?.flatten(-2, -1)?;
        Ok(Some(mlx::slice(&chosen, 3, 0, count)?))
    }
}
