//! Hunyuan Large, A13B and 7B: Hunyuan (dense) with routed experts beside a shared expert; in some
//! models, layers reuse the keys and values of the layer before (cross-layer attention). Follows
//! `hunyuan` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::hunyuan_v1_dense;

pub const FAMILY: Family =
    Family { model_types: &["hunyuan"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    num_experts: Size,
    moe_topk: PerLayer,
    num_shared_expert: PerLayer,
    moe_intermediate_size: Option<PerLayer>,
    use_mixed_mlp_moe: bool,
    use_qk_norm: bool,
    use_cla: bool,
    cla_share_factor: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "use_mixed_mlp_moe": false, "use_qk_norm": false, "use_cla": false, "cla_share_factor": 2,
            "moe_topk": 1, "num_shared_expert": 1,
        }),
    );
    let (mut c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let rope = hunyuan_v1_dense::rope(config, &c)?;
    // Configs set this to false for heads that no checkpoint has.
    c.tie_word_embeddings = c.tie_word_embeddings.filter(|tied| *tied);
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let attention = attention(&w.at("self_attn"), &c, &e, i, rope.clone())?;
        let mlp = w.at("mlp");
        let network = match *e.num_experts {
            1 => Box::new(dense(&mlp, &c, c.intermediate_size)?),
            _ => experts(&mlp, &c, &e, i)?,
        };
        pre_norm(w, &c, attention, network)
    })?))
}

/// The projected keys and values of all heads, `[batch, length, heads · head_dim]`, before rotary
/// embedding and norms.
#[derive(Clone)]
struct Projected {
    keys: Array,
    values: Array,
}

/// Attention that projects keys and values and puts them into the step, or takes those of an
/// earlier layer from it.
fn attention(
    w: &Scope,
    c: &Text,
    e: &Config,
    layer: i32,
    rope: Rope,
) -> Result<impl Layer<State = KvCache> + use<>> {
    let ([queries, keys], width) = (c.qk_widths(), c.hidden_size);
    let (heads, kv_heads) = (c.num_attention_heads, c.kv_heads());
    let borrows = e.use_cla && layer % *e.cla_share_factor != 0;
    let read = if *c.attention_bias { Scope::linear_with_bias } else { Scope::linear };
    let (q, own) = if w.has_below("qkv_proj") {
        let widths = [queries / kv_heads, c.head_dim(), c.head_dim()];
        let [q, k, v] = w.fused_by_group("qkv_proj", width, kv_heads, widths)?;
        (q, Some([k, v]))
    } else {
        let own = |name| (!borrows).then(|| read(w, name, width, keys)).transpose();
        (read(w, "q_proj", width, queries)?, own("k_proj")?.zip(own("v_proj")?).map(<[_; 2]>::from))
    };
    let output = read(w, "o_proj", queries, width)?;
    let norm = |name| w.rms_norm(name, c.head_dim(), c.rms_norm_eps);
    let norms = || -> Result<_> { Ok([norm("query_layernorm")?, norm("key_layernorm")?]) };
    let norms = e.use_qk_norm.then(norms).transpose()?;
    let scores = Scores { scale: (c.head_dim() as f32).powf(-0.5), sinks: None };
    let run = move |x: &Array, kv: &mut KvCache, step: &Step| {
        if let Some([k, v]) = &own {
            step.put(Projected { keys: k.forward(x)?, values: v.forward(x)? });
        }
        let Projected { keys, values } = step.lent(0)?;
        let mut q = rope.forward(&split_heads(&q.forward(x)?, heads)?, step)?;
        let mut k = rope.forward(&split_heads(&keys, kv_heads)?, step)?;
        if let Some([q_norm, k_norm]) = &norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let v = split_heads(&values, kv_heads)?;
        output.forward(&join_heads(&kv.attend(&q, k, v, &scores, step)?)?)
    };
    Ok(Mixer { window: None, run })
}

fn dense(w: &Scope, c: &Text, inner: i32) -> Result<Mlp> {
    if !w.has_below("gate_and_up_proj") {
        return Mlp::sized(w, c, inner);
    }
    let [up, gate] = w.fused("gate_and_up_proj", c.hidden_size, [inner, inner])?;
    Ok(Mlp::new(gate, up, w.linear("down_proj", inner, c.hidden_size)?, gate_of(c)?))
}

fn experts(w: &Scope, c: &Text, e: &Config, layer: i32) -> Result<Ffn> {
    let count = *e.num_experts;
    let inner = match &e.moe_intermediate_size {
        Some(sizes) => *sizes.of("moe_intermediate_size", layer)?,
        None => c.intermediate_size,
    };
    let logits = w.at("gate").linear("wg", c.hidden_size, count)?;
    let k = *e.moe_topk.of("moe_topk", layer)?;
    check_choice("moe_topk", count, k)?;
    let router = LinearRouter::new(logits, route, count, k)?.choosing(first_top_k);
    let sizes = ExpertSizes { count, width: c.hidden_size, inner };
    let moe = Moe::new(router, GatedExperts::read(w, "switch_mlp", sizes, gate_of(c)?)?);
    if !e.use_mixed_mlp_moe {
        return Ok(Box::new(moe));
    }
    let shared = *e.num_shared_expert.of("num_shared_expert", layer)?;
    let inner = config::product("num_shared_expert", [shared, c.intermediate_size])?;
    Ok(sum(moe, dense(&w.at("shared_mlp"), c, inner)?))
}

/// The outputs of the experts are weighted in float32.
fn route(logits: &Array, k: i32, top_k: TopK) -> Result<(Array, Array)> {
    let (ids, weights) = softmax_then_top_k(logits, k, top_k)?;
    Ok((ids, weights.as_dtype(Dtype::Float32)?))
}
