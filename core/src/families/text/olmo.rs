//! OLMo: Llama with weightless layer norms and, in some models, `clip_qkv`. Follows `olmo` of
//! mlx-lm for the first exports, and transformers for the later ones and for `clip_qkv`.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["olmo"], build, recommended: Recommended::NOTHING };

/// The epsilon, which no config contains.
const EPS: f32 = 1e-5;

#[derive(Deserialize)]
struct Config {
    embedding_size: Option<Size>,
    clip_qkv: Option<Positive>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let first = config.get("d_model").is_some();
    let e: Config = config::read(config)?;
    let c = if first {
        read_first(config)?
    } else {
        Text::read(&config::with_defaults(config, json!({"rms_norm_eps": EPS})))?
    };
    let rope = Rope::of(&c)?;
    let norm = || Norm::Layer { weight: None, bias: None, eps: EPS };
    let body = w.at(if first { "model.transformer" } else { "model" });
    let old = Names { embedding: "wte", layers: "blocks", ..Names::default() };
    let names = if first { old } else { Names::default() };
    let (width, inner) = (c.hidden_size, c.intermediate_size);
    let rows = e.embedding_size.map_or(c.vocab_size, i32::from);
    let sizes = Text { vocab_size: rows, ..c.clone() };
    let tied = Some(c.tie_word_embeddings == Some(true));
    let (place, name) = if first { (&body, "ff_out") } else { (w, "lm_head") };
    let head = Head::named(place, name, tied, width, rows)?;
    let ends = Ends { norm: norm(), head };
    Ok(Box::new(Decoder::assemble(&body, names, &sizes, ends, |_, w| {
        let (attention, mlp) = if first {
            let [up, gate] = w.fused("ff_proj", width, [inner; 2])?;
            let mlp = Mlp::new(gate, up, w.linear("ff_out", inner, width)?, gate_of(&c)?);
            (Attention::fused(w, ["att_proj", "attn_out"], &c, rope.clone())?, mlp)
        } else {
            let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?;
            (Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?, mlp)
        };
        let attention = attention.clip_qkv(e.clip_qkv.map(f32::from));
        Ok(Block::new((Residual::pre(norm(), attention), Residual::pre(norm(), mlp))))
    })?))
}

/// The config fields under the names of the first exports.
fn read_first(config: &Json) -> Result<Text> {
    let integer = |name| config.get(name).and_then(Json::as_i64);
    let ratio = integer("mlp_ratio").unwrap_or(4);
    let both =
        integer("mlp_hidden_size").or(integer("d_model").map(|width| width.saturating_mul(ratio)));
    let config = config::with_defaults(
        config,
        json!({
            "rms_norm_eps": EPS, "intermediate_size": both.map(|both| both / 2),
        }),
    );
    Text::read_renamed(
        &config,
        &[
            ("d_model", "hidden_size"),
            ("n_layers", "num_hidden_layers"),
            ("n_heads", "num_attention_heads"),
            ("weight_tying", "tie_word_embeddings"),
        ],
    )
}
