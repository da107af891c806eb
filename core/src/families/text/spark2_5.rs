//! Spark 2.5: Llama with three sliding-window layers for each full layer, a rotary embedding for
//! each kind, and a gate on the output of each head. Follows `spark2_5` of mlx-lm.

use crate::{families::prelude::*, layers::attention::gated::single_sigmoid};

pub const FAMILY: Family =
    Family { model_types: &["spark2_5"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "tie_word_embeddings": true,
        }),
    );
    config::only(
        config,
        json!({
            "hidden_act": "gelu", "gate_attn_act_mode": "sigmoid", "headwise_attn_output_gate": true,
        }),
    )?;
    let mut c = Text::read(config)?;
    let kind = |i| if i % 4 == 3 { "full_attention" } else { "sliding_attention" };
    if c.layer_types.is_none() {
        let kinds = (0..c.num_hidden_layers).map(|i| kind(i).into()).collect();
        c.layer_types = Some(kinds).into();
    }
    let (body, heads) = (w.at("model"), c.num_attention_heads);
    // Some conversions rename the embedding table.
    let table = if body.has_below("embed_tokens") { "embed_tokens" } else { "embedding" };
    let read = if *c.attention_bias { Scope::linear_with_bias } else { Scope::linear };
    let names = Names { embedding: table, ..Names::default() };
    Ok(Box::new(Decoder::named(&body, names, &c, Head::of(w, &c)?, |i, w| {
        let (a, window) = (w.at("self_attn"), c.window(i)?);
        let own = c.rope_of(window)?;
        let share = own.partial_rotary_factor.unwrap_or(1.0).min(1.0);
        let (dims, base) = (f64::from(c.head_dim()) * share, own.rope_theta.unwrap_or(10_000.0));
        let context = c.max_position_embeddings;
        let rope = Rope::scaled(dims as i32, base, false, Some(own), context)?;
        let names = ["q_k_v_proj", "out_proj"];
        grouped::require_biases(&a, names, &c)?;
        let attention = Attention::fused(&a, names, &c, rope)?.window(window);
        let gate = (read(&a, "g_proj", c.hidden_size, heads)?, heads);
        let mlp = Mlp::read(&w.at("mlp"), GATE_UP_DOWN, &c, geglu)?;
        pre_norm(w, &c, gated_attention(attention, gate, single_sigmoid), mlp)
    })?))
}
