//! PLaMo 3: four norms a block whose weights are stored less an offset, normalised queries and
//! keys, fused projections, and seven sliding-window layers with a rotary base of their own for
//! each full layer. Follows `plamo3` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::phi3;

pub const FAMILY: Family =
    Family { model_types: &["plamo3"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    window_size: Size,
    sliding_window_pattern: Size,
    rope_local_theta: Positive,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 13312,
            "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 32000,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "window_size": 2048,
            "sliding_window_pattern": 8, "rope_theta": 1_000_000.0, "rope_local_theta": 10_000.0,
        }),
    );
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let (full, local) = (Rope::of(&c)?, Rope::base(c.head_dim(), *e.rope_local_theta)?);
    let (width, head_dim) = (c.hidden_size, c.head_dim());
    let norm =
        |w: &Scope, name, width, offset| w.rms_norm(name, width, c.rms_norm_eps)?.plus(offset);
    let layers = w.at("model.layers.layers");
    Ok(Box::new(Decoder::stack_under(
        w,
        &c,
        |w| norm(w, "norm", width, 1.0),
        |i, _| {
            let w = layers.at(i);
            // The window counts the tokens before a token; mlx-lm uses one less when it decodes.
            let back = c.sliding_window.unwrap_or(*e.window_size) + 1;
            let is_full = (i + 1) % *e.sliding_window_pattern == 0;
            let (rope, window) = if is_full { (&full, None) } else { (&local, Some(back)) };
            let a = w.at("mixer");
            let head_norm = |name| norm(&a, name, head_dim, 1.0);
            let attention = Attention::fused(&a, ["qkv_proj", "o_proj"], &c, rope.clone())?
                .window(window)
                .qk_norm(QkNorm::BeforeRope(head_norm("q_norm")?, head_norm("k_norm")?));
            block(&w, &c, attention, phi3::mlp(&w.at("mlp"), &c)?)
        },
    )?))
}

/// The block of four norms, whose weights are stored less an offset.
pub fn block(
    w: &Scope,
    c: &Text,
    mixer: impl Layer + 'static,
    ffn: impl Layer + 'static,
) -> Result<Block> {
    let norm = |(name, offset)| w.rms_norm(name, c.hidden_size, c.rms_norm_eps)?.plus(offset);
    let norms = FourNorms {
        before_mixer: ("pre_mixer_norm", 1.0),
        after_mixer: ("post_mixer_norm", 0.2),
        before_ffn: ("pre_mlp_norm", 1.0),
        after_ffn: ("post_mlp_norm", 5.0_f32.powf(-1.5)),
    };
    Ok(Block::new(sandwich(norm, norms, mixer, ffn)?))
}
