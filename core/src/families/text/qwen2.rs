//! Qwen 2 and 2.5: Llama with biases on queries, keys and values. Follows `qwen2` of mlx-lm, and
//! Qwen's own code for sliding windows.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["qwen2", "acereason"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "tie_word_embeddings": true, "rope_theta": 1e6,
        }),
    );
    let mut c = switch_windows(Text::read(config)?, config, |i, first| i >= first)?;
    c.attention_bias = true.into();
    Ok(Box::new(decoder(w, &c)?))
}

/// Sliding windows, if the config enables them. Without a list, the layers for which `slides`
/// returns true have one; it gets `max_window_layers` too.
pub fn switch_windows(c: Text, config: &Json, slides: fn(i32, i32) -> bool) -> Result<Text> {
    let config = config::with_defaults(
        config,
        json!({
            "use_sliding_window": false, "max_window_layers": 28,
        }),
    );
    let Count(first) = config::field(&config, "max_window_layers")?;
    let kind = |i| if slides(i, first) { "sliding_attention" } else { "full_attention" };
    let usual = || (0..c.num_hidden_layers).map(|i| kind(i).to_string()).collect();
    let is_on: bool = config::field(&config, "use_sliding_window")?;
    // A window that is switched off counts as read, and so do its layers.
    let (_, _) = (*c.sliding_window, c.layer_types.is_some());
    let layer_types = is_on.then(|| c.layer_types.as_ref().cloned().unwrap_or_else(usual));
    Ok(Text { layer_types: layer_types.into(), ..c })
}

pub fn decoder(w: &Scope, c: &Text) -> Result<Decoder> {
    let rope = Rope::of(c)?;
    Decoder::stack(w, c, |i, w| {
        let attention = attention(&w.at("self_attn"), c, rope.clone())?.window(c.window(i)?);
        pre_norm(w, c, attention, Mlp::of(&w.at("mlp"), GATE_UP_DOWN, c)?)
    })
}

/// Attention without a bias on the output projection, whatever queries, keys and values have.
pub fn attention(w: &Scope, c: &Text, rope: Rope) -> Result<Attention> {
    Ok(Attention::new(projections(w, c)?, c, rope))
}

pub fn projections(w: &Scope, c: &Text) -> Result<[Linear; 4]> {
    let read = if *c.attention_bias { Scope::linear_with_bias } else { Scope::linear };
    let ([queries, keys], width) = (c.qk_widths(), c.hidden_size);
    Ok([
        read(w, "q_proj", width, queries)?,
        read(w, "k_proj", width, keys)?,
        read(w, "v_proj", width, keys)?,
        w.linear("o_proj", queries, width)?,
    ])
}
