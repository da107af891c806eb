//! Qwen 3 Next: three layers of Gated DeltaNet for each layer of attention, whose elements have
//! gates; norms whose weights are stored less one; routed experts beside a shared expert. Follows
//! `qwen3_next` of mlx-lm, and Qwen's own code for `layer_types`.

use crate::families::prelude::*;
use crate::families::text::{qwen2_moe, qwen3_moe};
use crate::layers::attention::{gated::sigmoid, grouped::require_biases};

pub const FAMILY: Family =
    Family { model_types: &["qwen3_next", "qwen3next"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended = Recommended {
    sampling: Sampling { top_k: 20, ..Sampling::nucleus(0.7, 0.8) },
    ..Recommended::NOTHING
};

#[derive(Deserialize)]
struct Config {
    full_attention_interval: Size,
    num_experts: Count,
}

/// The config fields of a mixer with one decay a head.
#[derive(Deserialize)]
pub struct DeltaFields {
    linear_num_key_heads: Size,
    linear_num_value_heads: Size,
    linear_key_head_dim: Size,
    linear_value_head_dim: Size,
    linear_conv_kernel_dim: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = config::with_defaults(config, json!({"head_dim": 256, "rms_norm_eps": 1e-6}));
    Ok(Box::new(decoder(&config, w)?))
}

/// The decoder of this family and of those with other layouts of its projections.
pub fn decoder(config: &Json, w: &Scope) -> Result<Decoder> {
    // It is the activation of the convolutions too.
    config::only(config, json!({"hidden_act": "silu"}))?;
    let config = &config::with_defaults(
        config,
        json!({
            "full_attention_interval": 4, "num_experts": 0, "decoder_sparse_step": 1, "norm_topk_prob": true,
        }),
    );
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let sizes = DeltaFields::sizes(config, c.hidden_size)?;
    let experts: Option<qwen3_moe::Config> =
        (*e.num_experts > 0).then(|| config::read(config)).transpose()?;
    let rope = Rope::share(&c, 0.25)?;
    ignore_parts(w, &["mtp"]);
    let (body, head) = body(w);
    head.ignore("mtp");
    let is_centred = is_published(&body.at("layers"), &c, &sizes);
    let norm = |w: &Scope, name, width| {
        let norm = w.rms_norm(name, width, c.rms_norm_eps)?;
        if is_centred { norm.plus_one() } else { Ok(norm) }
    };
    let last = |body: &Scope| norm(body, "norm", c.hidden_size);
    Decoder::stack_under(w, &c, last, |i, w| {
        let mlp = w.at("mlp");
        let ffn = match &experts {
            Some(experts) if experts.is_sparse(i) => {
                let Size(inner) = config::field(config, "shared_expert_intermediate_size")?;
                let shared = qwen2_moe::shared_expert(&mlp, &c, inner)?;
                sum(qwen3_moe::experts(&mlp, &c, experts, top_k)?, shared)
            }
            _ => dense(&mlp, &c)?,
        };
        let block_norm = |name| norm(w, name, c.hidden_size);
        if attends(&c, i, *e.full_attention_interval)? {
            let w = w.at("self_attn");
            let head_norm = |name| norm(&w, name, c.head_dim());
            let norms = QkNorm::BeforeRope(head_norm("q_norm")?, head_norm("k_norm")?);
            let attention = attention(&w, &c, norms, rope.clone())?;
            return pre_norm_under(block_norm, TWO_NORMS, attention, ffn);
        }
        let mixer = delta_net(&w.at("linear_attn"), sizes, c.rms_norm_eps)?;
        pre_norm_under(block_norm, TWO_NORMS, mixer, ffn)
    })
}

impl DeltaFields {
    /// The sizes of the mixers of a stream of this width.
    pub fn sizes(config: &Json, hidden: i32) -> Result<DeltaSizes> {
        let fields: DeltaFields = config::read(config)?;
        let sizes = DeltaSizes {
            hidden,
            key_heads: *fields.linear_num_key_heads,
            value_heads: *fields.linear_num_value_heads,
            key_dim: *fields.linear_key_head_dim,
            value_dim: *fields.linear_value_head_dim,
            taps: *fields.linear_conv_kernel_dim,
        };
        sizes.check()
    }
}

/// Whether the layer is one of attention: as `layer_types` says, or the last of each interval.
pub fn attends(c: &Text, layer: i32, interval: i32) -> Result<bool> {
    let Some(kinds) = &*c.layer_types else { return Ok((layer + 1) % interval == 0) };
    match kinds[layer as usize].as_str() {
        "full_attention" => Ok(true),
        "linear_attention" => Ok(false),
        kind => {
            let reason = format!("`{kind}` is neither full_attention nor linear_attention");
            Err(Error::unsupported(format!("layer_types[{layer}]"), reason))
        }
    }
}

/// Whether norms are stored less one, as they are published and mlx-lm does not store them. Only the
/// layout of convolutions tells.
fn is_published(layers: &Scope, c: &Text, sizes: &DeltaSizes) -> bool {
    let [keys, values] = sizes.widths();
    let published = [2 * keys + values, 1, sizes.taps];
    (0..c.num_hidden_layers).any(|i| {
        let kernel = layers.at(i).at("linear_attn.conv1d").shape("weight");
        kernel.is_some_and(|shape| shape == published)
    })
}

/// Attention whose queries are stored with a gate for each of their elements, head by head.
fn attention(
    w: &Scope,
    c: &Text,
    norms: QkNorm,
    rope: Rope,
) -> Result<impl Layer<State = KvCache> + use<>> {
    require_biases(w, ["q_proj", "o_proj"], c)?;
    let (heads, dims) = (c.num_attention_heads, c.head_dim());
    let [q, gate] = w.fused_by_group("q_proj", c.hidden_size, heads, [dims, dims])?;
    let read = if *c.attention_bias { Scope::linear_with_bias } else { Scope::linear };
    let [queries, keys] = c.qk_widths();
    let k = read(w, "k_proj", c.hidden_size, keys)?;
    let v = read(w, "v_proj", c.hidden_size, keys)?;
    let output = read(w, "o_proj", queries, c.hidden_size)?;
    let attention = Attention::new([q, k, v, output], c, rope);
    let attention = attention.qk_norm(norms);
    Ok(gated_attention(attention, (gate, heads * dims), sigmoid))
}

/// Gated DeltaNet with all projections from one matrix for each group of heads, or from four.
fn delta_net(w: &Scope, sizes: DeltaSizes, eps: f32) -> Result<DeltaNet> {
    let DeltaSizes { hidden, key_heads, value_heads, key_dim, value_dim, .. } = sizes;
    let ([keys, values], each) = (sizes.widths(), value_heads / key_heads);
    let (qkv, gate, beta, decay) = if w.has_below("in_proj_qkvz") {
        let parts = [key_dim, key_dim, each * value_dim, each * value_dim];
        let [q, k, v, z] = w.fused_by_group("in_proj_qkvz", hidden, key_heads, parts)?;
        let [b, a] = w.fused_by_group("in_proj_ba", hidden, key_heads, [each, each])?;
        (vec![q, k, v], z, b, a)
    } else {
        let qkv = w.linear("in_proj_qkv", hidden, 2 * keys + values)?;
        let z = w.linear("in_proj_z", hidden, values)?;
        let b = w.linear("in_proj_b", hidden, value_heads)?;
        (vec![qkv], z, b, w.linear("in_proj_a", hidden, value_heads)?)
    };
    Ok(DeltaNet {
        qkv,
        conv: short_convs(w, &sizes)?,
        decay: Decay::read(w, vec![decay], w.take("A_log", &[value_heads])?, 1, None)?,
        beta,
        longest: 1.0,
        gate: vec![gate],
        squash: activation::silu,
        norm: w.rms_norm("norm", value_dim, eps)?,
        output: w.linear("out_proj", values, hidden)?,
        sizes,
    })
}
