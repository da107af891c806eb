//! Hunyuan Large, A13B and 7B: Hunyuan (dense) with experts beside a shared network; in some, layers
//! take keys and values, before they are rotated and normalised, from the layer before. Follows
//! `hunyuan` of mlx-lm.

use super::hunyuan_v1_dense;
use crate::{
    model::{Cache, Embedded},
    parts::{
        attention::{join_heads, split_heads},
        kv::Kv,
        router::{TopK, check_choice, first_top_k, softmax_then_top_k},
    },
    prelude::*,
};
use mlx_rs::Dtype;
use std::any::Any;

pub const FAMILY: Family = Family { model_types: &["hunyuan"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "config::size")]
    num_experts: i32,
    moe_topk: config::PerLayer,
    num_shared_expert: config::PerLayer,
    moe_intermediate_size: Option<config::PerLayer>,
    use_mixed_mlp_moe: bool,
    use_qk_norm: bool,
    use_cla: bool,
    #[serde(deserialize_with = "config::size")]
    cla_share_factor: i32,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "use_mixed_mlp_moe": false, "use_qk_norm": false, "use_cla": false, "cla_share_factor": 2,
        "moe_topk": 1, "num_shared_expert": 1,
    }));
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let rope = hunyuan_v1_dense::rope(config, &c)?;
    // Configs say false of heads that no checkpoint has.
    let tied = c.tie_word_embeddings.filter(|tied| *tied);
    let head = Head::read(w, tied, c.hidden_size, c.vocab_size)?;
    let body = w.at("model");
    let layer = |i| HunyuanLayer::read(&body.at("layers").at(i), &c, &e, i, rope.clone());
    Ok(Box::new(Hunyuan {
        layers: (0..c.num_hidden_layers).map(layer).collect::<Result<_>>()?,
        outer: Decoder {
            embedding: body.embedding("embed_tokens", c.vocab_size, c.hidden_size)?,
            embedding_scale: None,
            blocks: Vec::new(),
            norm: body.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?,
            head,
        },
    }))
}

struct Hunyuan {
    outer: Decoder,
    layers: Vec<HunyuanLayer>,
}

impl Wrapper for Hunyuan {
    fn inner(&self) -> &dyn LanguageModel {
        &self.outer
    }

    fn cache(&self, plan: &CachePlan) -> Cache {
        let state = |_| Box::new(Kv::new(None, plan)) as Box<dyn State>;
        Cache::new(self.layers.iter().map(state).collect(), plan)
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        let (mut h, mut lent) = (x.hidden.clone(), None);
        for (layer, state) in self.layers.iter().zip(&mut cache.states) {
            let kv = (&mut **state as &mut dyn Any).downcast_mut();
            h = layer.forward(&h, &mut lent, kv.expect("every layer has keys"), step)?;
        }
        self.outer.norm.forward(&h)
    }
}

struct HunyuanLayer {
    norms: [Norm; 2],
    q: Linear,
    /// Those of keys and values, in layers that do not borrow these.
    own: Option<[Linear; 2]>,
    output: Linear,
    qk_norms: Option<[Norm; 2]>,
    rope: Rope,
    scores: Scores,
    heads: [i32; 2],
    ffn: Ffn,
}

impl HunyuanLayer {
    fn read(w: &Scope, c: &Text, e: &Config, layer: i32, rope: Rope) -> Result<Self> {
        let a = w.at("self_attn");
        let (borrows, width) = (e.use_cla && layer % e.cla_share_factor != 0, c.hidden_size);
        let norm = |w: &Scope, name, width| w.rms_norm(name, width, c.rms_norm_eps);
        let qk_norm = |name| norm(&a, name, c.head_dim());
        let qk_norms = || -> Result<_> { Ok([qk_norm("query_layernorm")?, qk_norm("key_layernorm")?]) };
        let ([queries, keys], kv_heads) = (c.qk_widths(), c.kv_heads());
        let read = if c.attention_bias { Scope::linear_with_bias } else { Scope::linear };
        let (q, own) = if a.has_below("qkv_proj") {
            let widths = [queries / kv_heads, c.head_dim(), c.head_dim()];
            let [q, k, v] = a.fused_by_group("qkv_proj", width, kv_heads, widths)?;
            (q, Some([k, v]))
        } else {
            let pair = || -> Result<_> { Ok([read(&a, "k_proj", width, keys)?, read(&a, "v_proj", width, keys)?]) };
            (read(&a, "q_proj", width, queries)?, (!borrows).then(pair).transpose()?)
        };
        let mlp = w.at("mlp");
        Ok(HunyuanLayer {
            norms: [
                norm(w, "input_layernorm", width)?,
                norm(w, "post_attention_layernorm", width)?,
            ],
            q,
            own,
            output: read(&a, "o_proj", queries, width)?,
            qk_norms: e.use_qk_norm.then(qk_norms).transpose()?,
            rope,
            scores: Scores { scale: (c.head_dim() as f32).powf(-0.5), sinks: None },
            heads: [c.num_attention_heads, kv_heads],
            ffn: match e.num_experts {
                1 => Box::new(dense(&mlp, c, c.intermediate_size)?),
                _ => experts(&mlp, c, e, layer as usize)?,
            },
        })
    }

    fn forward(
        &self,
        x: &Array,
        lent: &mut Option<[Array; 2]>,
        kv: &mut Kv,
        step: &Step,
    ) -> Result<Array> {
        let [before, after] = &self.norms;
        let normed = before.forward(x)?;
        if let Some([k, v]) = &self.own {
            *lent = Some([k.forward(&normed)?, v.forward(&normed)?]);
        }
        let [k, v] = lent.as_ref().expect("the first layer does not borrow");
        let [heads, kv_heads] = self.heads;
        let mut q = self.rope.forward(&split_heads(&self.q.forward(&normed)?, heads)?, step)?;
        let mut k = self.rope.forward(&split_heads(k, kv_heads)?, step)?;
        if let Some([q_norm, k_norm]) = &self.qk_norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let gathered = kv.attend(&q, k, split_heads(v, kv_heads)?, &self.scores, step)?;
        let h = x.add(self.output.forward(&join_heads(&gathered)?)?)?;
        Ok(h.add(self.ffn.forward(&after.forward(&h)?, &mut (), step)?)?)
    }
}

fn dense(w: &Scope, c: &Text, inner: i32) -> Result<Mlp> {
    if !w.has_below("gate_and_up_proj") {
        return Mlp::sized(w, c, inner, swiglu);
    }
    let [up, gate] = w.fused("gate_and_up_proj", c.hidden_size, [inner, inner])?;
    Ok(Mlp::new([gate, up, w.linear("down_proj", inner, c.hidden_size)?], swiglu))
}

fn experts(w: &Scope, c: &Text, e: &Config, layer: usize) -> Result<Ffn> {
    let count = e.num_experts;
    let inner = match &e.moe_intermediate_size {
        Some(sizes) => sizes.of(layer, "moe_intermediate_size")?,
        None => c.intermediate_size,
    };
    let logits = w.at("gate").linear("wg", c.hidden_size, count)?;
    let choice = (count, e.moe_topk.of(layer, "moe_topk")?);
    check_choice("moe_topk", choice)?;
    let router = LinearRouter::new(logits, route, choice)?.choosing(first_top_k);
    let moe = Moe::new(router, GatedExperts::read(w, "switch_mlp", [count, c.hidden_size, inner], swiglu)?);
    if !e.use_mixed_mlp_moe {
        return Ok(Box::new(moe));
    }
    let shared = e.num_shared_expert.of(layer, "num_shared_expert")?;
    let inner = config::product("num_shared_expert", [shared, c.intermediate_size])?;
    Ok(sum(moe, dense(&w.at("shared_mlp"), c, inner)?))
}

/// What experts give is weighed in single precision.
fn route(logits: &Array, k: i32, top_k: TopK) -> Result<(Array, Array)> {
    let (ids, weights) = softmax_then_top_k(logits, k, top_k)?;
    Ok((ids, weights.as_dtype(Dtype::Float32)?))
}
