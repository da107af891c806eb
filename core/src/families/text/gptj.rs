//! GPT-J: attention and a network without a gate side by side after one layer norm; rotary pairs are
//! neighbours, in a part of each head. Follows `gptj` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::gpt2;

pub const FAMILY: Family =
    Family { model_types: &["gptj"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400,
            "mlp_bias": true,
        }),
    );
    let mut c = gpt2::read(config)?;
    c.rope_traditional = true.into();
    let rope = Rope::rotary_dim(&c, config::field(config, "rotary_dim")?)?;
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    // As published, then as mlx-lm writes it.
    let body = w.at(if w.has_below("transformer") { "transformer" } else { "model" });
    // A head that is the embedding would still have a bias.
    w.at("lm_head").require("bias")?;
    let head = Head::read(w, Some(false), c.hidden_size, c.vocab_size)?;
    let ends = (norm(&body, "ln_f")?, head);
    Ok(Box::new(Decoder::assemble(&body, ["wte", "h"], &c, ends, |_, w| {
        let a = w.at("attn");
        // The masks of old exporters.
        a.ignore("bias");
        a.ignore("masked_bias");
        let names = ["q_proj", "k_proj", "v_proj", "out_proj"];
        let attention = Attention::read(&a, names, &c, rope.clone())?;
        let mlp = PlainMlp::read(&w.at("mlp"), ["fc_in", "fc_out"], &c, gelu_tanh)?;
        Ok(Block::new(Residual::pre(norm(w, "ln_1")?, Parallel(attention, mlp))))
    })?))
}
