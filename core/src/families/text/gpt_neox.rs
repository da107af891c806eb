//! GPT-NeoX and Pythia: attention and an MLP without a gate in parallel, each after its own layer
//! norm; the fused QKV projection is ordered by heads. Follows `gpt_neox` of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["gpt_neox"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let parallel: Option<bool> = config::field(config, "use_parallel_residual")?;
    let width = config.get("hidden_size").and_then(Json::as_i64).unwrap_or(0);
    let config = &config::with_defaults(
        config,
        json!({
            "layer_norm_eps": 1e-5, "tie_word_embeddings": false, "attention_bias": true,
            "mlp_bias": true, "hidden_act": "gelu", "intermediate_size": width.saturating_mul(4),
        }),
    );
    let names = [
        ("layer_norm_eps", "rms_norm_eps"),
        ("rotary_emb_base", "rope_theta"),
        ("rotary_pct", "partial_rotary_factor"),
    ];
    let mut c = Text::read_renamed(config, &names)?;
    c.num_key_value_heads = None;
    let rope = Rope::share(&c, 0.25)?;
    // The published name, then the name that mlx-lm writes.
    let (body, layers, head) = if w.has_below("gpt_neox") {
        (w.at("gpt_neox"), "layers", w.clone())
    } else {
        (w.at("model"), "h", w.at("model"))
    };
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    let tied = c.tie_word_embeddings;
    let head = Head::named(&head, "embed_out", tied, c.hidden_size, c.vocab_size)?;
    let ends = Ends { norm: norm(&body, "final_layer_norm")?, head };
    let names = Names { embedding: "embed_in", layers, ..Names::default() };
    Ok(Box::new(Decoder::assemble(&body, names, &c, ends, |_, w| {
        // Masks and rotary frequencies of old exporters; they follow from the config.
        let a = w.at("attention");
        a.ignore_named(&["masked_bias", "inv_freq"]);
        a.ignore("bias");
        let (names, heads) = (["query_key_value", "dense"], c.num_attention_heads);
        grouped::require_biases(&a, names, &c)?;
        let attention = Attention::fused_by_group(&a, names, heads, &c, rope.clone())?;
        let names = PlainNames { up: "dense_h_to_4h", down: "dense_4h_to_h" };
        let mlp = PlainMlp::of(&w.at("mlp"), names, &c)?;
        let (pre, post) = (norm(w, "input_layernorm")?, norm(w, "post_attention_layernorm")?);
        Ok(if parallel.unwrap_or(true) {
            Block::new(Residual::plain(Parallel((pre, attention), (post, mlp))))
        } else {
            Block::new((Residual::pre(pre, attention), Residual::pre(post, mlp)))
        })
    })?))
}
