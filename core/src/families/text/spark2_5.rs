//! Spark 2.5: three sliding layers for each full one, with their own rotary embeddings, and a gate
//! on what each head gathers. Follows `spark2_5` of mlx-lm.

use super::phi3;
use crate::{parts::gated_attention::single_sigmoid, prelude::*};
use std::collections::HashMap;

pub const FAMILY: Family = Family { model_types: &["spark2_5"], build };

#[derive(Deserialize)]
struct Config {
    rope_parameters: HashMap<String, config::RopeScaling>,
    hidden_act: String,
    gate_attn_act_mode: String,
    headwise_attn_output_gate: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "tie_word_embeddings": true,
        "hidden_act": "gelu", "gate_attn_act_mode": "sigmoid", "headwise_attn_output_gate": true,
    }));
    let (mut c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    for (field, expected, found) in [
        ("hidden_act", "gelu", &*e.hidden_act),
        ("gate_attn_act_mode", "sigmoid", &*e.gate_attn_act_mode),
    ] {
        if found != expected {
            return Err(Error::config(field, format!("`{found}`, not {expected}")));
        }
    }
    if !e.headwise_attn_output_gate {
        return Err(Error::config("headwise_attn_output_gate", "attention without is not supported"));
    }
    let kind = |i| if i % 4 == 3 { "full_attention" } else { "sliding_attention" };
    c.layer_types.get_or_insert_with(|| (0..c.num_hidden_layers).map(|i| kind(i).into()).collect());
    let body = w.at("model");
    // Some conversions rename the table.
    let table = if body.has_below("embed_tokens") { "embed_tokens" } else { "embedding" };
    let head = Head::of(w, &c)?;
    Ok(Box::new(Decoder::named(&body, [table, "layers", "norm"], &c, head, |i, w| {
        let mlp = Mlp::read(&w.at("mlp"), GATE_UP_DOWN, &c, geglu)?;
        pre_norm(w, &c, attention(&w.at("self_attn"), &c, &e, i)?, mlp)
    })?))
}

/// Attention with a gate on each head.
fn attention(w: &Scope, c: &Text, e: &Config, i: i32) -> Result<impl Layer + 'static> {
    let (width, heads, dims) = (c.hidden_size, c.num_attention_heads, c.head_dim());
    let read = if c.attention_bias { Scope::linear_with_bias } else { Scope::linear };
    if c.attention_bias {
        w.at("q_k_v_proj").require("bias")?;
        w.at("out_proj").require("bias")?;
    }
    let window = c.window(i)?;
    let kind = if window.is_some() { "sliding_attention" } else { "full_attention" };
    let Some(parameters) = e.rope_parameters.get(kind) else {
        return Err(Error::config(format!("rope_parameters.{kind}"), "missing"));
    };
    let rotated = f64::from(dims) * parameters.partial_rotary_factor.unwrap_or(1.0).min(1.0);
    let base = parameters.rope_theta.unwrap_or(10_000.0);
    let context = c.max_position_embeddings;
    let rope = Rope::scaled(rotated as i32, base, false, Some(parameters), context)?;
    let gate = read(w, "g_proj", width, heads)?;
    let attention = phi3::attention(w, ["q_k_v_proj", "out_proj"], c, rope)?.window(window);
    Ok(gated_attention(attention, (gate, heads), single_sigmoid))
}
