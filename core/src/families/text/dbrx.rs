//! DBRX: Mixtral with layer norms without biases, a fused QKV projection with `clip_qkv`, and
//! tensor names of its own. Follows `dbrx` of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["dbrx"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    ffn_config: FfnConfig,
    attn_config: AttentionConfig,
}

#[derive(Deserialize)]
struct FfnConfig {
    ffn_hidden_size: Size,
    moe_num_experts: Size,
    moe_top_k: Size,
}

#[derive(Deserialize)]
struct AttentionConfig {
    clip_qkv: Option<Positive>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (own, e): (_, Config) = (config, config::read(config)?);
    let nested = |name: &str| config.get("attn_config").and_then(|nested| nested.get(name));
    let config = config::with_defaults(
        config,
        json!({
            "kv_n_heads": nested("kv_n_heads"), "rope_theta": nested("rope_theta"),
            "intermediate_size": *e.ffn_config.ffn_hidden_size, "rms_norm_eps": 1e-5,
        }),
    );
    let c = Text::read_renamed(
        &config,
        &[
            ("d_model", "hidden_size"),
            ("n_layers", "num_hidden_layers"),
            ("n_heads", "num_attention_heads"),
            ("kv_n_heads", "num_key_value_heads"),
            ("max_seq_len", "max_position_embeddings"),
        ],
    )?;
    if let Some(ffn) = own.get("ffn_config") {
        config::only(ffn, json!({"moe_normalize_expert_weights": 1}))?;
        if let Some(activation) = ffn.get("ffn_act_fn").filter(|activation| !activation.is_null()) {
            config::only(activation, json!({"name": "silu"}))?;
        }
    }
    let rope = Rope::of(&c)?;
    let norm = |w: &Scope, name| w.layer_norm(name, c.hidden_size, c.rms_norm_eps);
    let body = w.at("transformer");
    let ends = Ends { norm: norm(&body, "norm_f")?, head: Head::of(w, &c)? };
    let names = Names { embedding: "wte", layers: "blocks", ..Names::default() };
    Ok(Box::new(Decoder::assemble(&body, names, &c, ends, |_, w| {
        let outer = w.at("norm_attn_norm");
        let attention =
            Attention::fused(&outer.at("attn"), ["Wqkv", "out_proj"], &c, rope.clone())?
                .clip_qkv(e.attn_config.clip_qkv.map(f32::from));
        let ffn = moe(&w.at("ffn"), &c, &e.ffn_config)?;
        pre_norm_under(
            |name| norm(&outer, name),
            TwoNorms { before_mixer: "norm_1", before_ffn: "norm_2" },
            attention,
            ffn,
        )
    })?))
}

fn moe(w: &Scope, c: &Text, e: &FfnConfig) -> Result<Moe> {
    let (count, width, inner) = (*e.moe_num_experts, c.hidden_size, *e.ffn_hidden_size);
    check_choice("ffn_config.moe_top_k", count, *e.moe_top_k)?;
    let logits = w.at("router").linear("layer", width, count)?;
    let router = LinearRouter::new(logits, route, count, *e.moe_top_k)?.choosing(first_top_k);
    let published = w.at("experts.mlp");
    let experts = if w.has_below("experts.mlp") {
        let rows = config::product("ffn_config.moe_num_experts", [count, inner])?;
        let read = |name| -> Result<Array> {
            Ok(published.take(name, &[rows, width])?.reshape(&[count, inner, width])?)
        };
        // Unlike the others, the way back is stored input first.
        let (gate, up, down) = (read("w1")?, read("v1")?, read("w2")?.swap_axes(1, 2)?);
        GatedExperts::of(w, Matrix::Dense(gate), Matrix::Dense(up), Matrix::Dense(down), swiglu)?
    } else {
        GatedExperts::read_named(
            w,
            "switch_mlp",
            MlpNames { gate: "w1", up: "v1", down: "w2" },
            ExpertSizes { count, width, inner },
            swiglu,
        )?
    };
    Ok(Moe::new(router, experts))
}

/// The router weights are computed in float32 and rounded to the precision of the model.
fn route(logits: &Array, k: i32, top_k: TopK) -> Result<(Array, Array)> {
    let single = logits.as_dtype(Dtype::Float32)?;
    let (ids, weights) = softmax_then_top_k_normalized(&single, k, top_k)?;
    Ok((ids, weights.as_dtype(logits.dtype())?))
}
