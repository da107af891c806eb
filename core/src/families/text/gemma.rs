//! Gemma: Llama with GeGLU, norms whose weight `w` means `1 + w`, and embeddings multiplied by the
//! square root of their width. Follows `gemma` of mlx-lm, and
//! transformers for the activation.

use crate::families::prelude::*;

pub const FAMILY: Family = Family { model_types: &["gemma"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended =
    Recommended { end_tokens: &["<end_of_turn>"], ..Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = config::with_defaults(
        config,
        json!({
            "head_dim": 256, "tie_word_embeddings": true, "hidden_act": "gelu_pytorch_tanh",
        }),
    );
    let c = read_renamed(&config)?;
    let rope = Rope::of(&c)?;
    let decoder = Decoder::stack(w, &c, |_, w| {
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps)?.plus_one();
        let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
        let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?;
        pre_norm_under(norm, TWO_NORMS, attention, mlp)
    })?;
    Ok(Box::new(scaled(decoder, &c)?))
}

/// The config fields of Gemma 2 and later, which call the activation `hidden_activation`.
pub fn read(config: &Json) -> Result<Text> {
    let config = config::with_defaults(config, json!({"hidden_activation": "gelu_pytorch_tanh"}));
    read_renamed(&config)
}

/// Where a config has both names of the activation, that of the authors' later code counts.
fn read_renamed(config: &Json) -> Result<Text> {
    config.get("hidden_act");
    Text::read_renamed(config, &[("hidden_activation", "hidden_act")])
}

/// A decoder with the embeddings and the final norm of all Gemma models.
pub fn scaled(decoder: Decoder, c: &Text) -> Result<Decoder> {
    Ok(Decoder {
        embedding_scale: Some((c.hidden_size as f32).sqrt()),
        norm: decoder.norm.plus_one()?,
        ..decoder
    })
}
