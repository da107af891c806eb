//! Lille 130M: Llama with other tensor names, an interleaved rotary embedding, and a fused QKV
//! projection. Follows `lille-130m` of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["lille_130m", "lille-130m"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let width = config.get("n_embd").and_then(Json::as_i64).map_or(1, ffn_width);
    let config = &config::with_defaults(
        config,
        json!({
            "intermediate_size": width, "rope_traditional": true,
        }),
    );
    let names = [
        ("n_embd", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("n_kv_heads", "num_key_value_heads"),
        ("layer_norm_eps", "rms_norm_eps"),
    ];
    let c = Text::read_renamed(config, &names)?;
    let rope = Rope::of(&c)?;
    let names = Names { embedding: "tok_embeddings", ..Names::default() };
    let head = Head::read(w, Some(true), c.hidden_size, c.vocab_size)?;
    Ok(Box::new(Decoder::named(&w.at("transformer"), names, &c, head, |_, w| {
        let (a, f) = (w.at("attention"), w.at("feed_forward"));
        let attention = Attention::fused(&a, ["qkv_proj", "out_proj"], &c, rope.clone())?;
        let mlp = Mlp::of(&f, GATE_UP_DOWN, &c)?;
        pre_norm_named(
            w,
            TwoNorms { before_mixer: "attention.norm", before_ffn: "feed_forward.norm" },
            &c,
            attention,
            mlp,
        )
    })?))
}

/// Eight thirds of the model width, rounded to a multiple of 256, ties to even.
fn ffn_width(width: i64) -> i64 {
    let exact = width.saturating_mul(8) / 3;
    256 * (exact as f64 / 256.0).round_ties_even() as i64
}
