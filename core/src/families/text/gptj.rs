//! GPT-J: attention and an MLP without a gate in parallel after one layer norm; a partial,
//! interleaved rotary embedding. Follows `gptj` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::gpt2;

pub const FAMILY: Family =
    Family { model_types: &["gptj"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400,
            "mlp_bias": true, "activation_function": "gelu_new",
        }),
    );
    let mut c = gpt2::read(config)?;
    c.rope_traditional = true.into();
    let rope = Rope::rotary_dim(&c, config::field(config, "rotary_dim")?)?;
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    // The published name, then the name that mlx-lm writes.
    let body = w.at(if w.has_below("transformer") { "transformer" } else { "model" });
    // The output head has a bias, which tied embeddings lack, so the checkpoint must contain it.
    w.at("lm_head").require("bias")?;
    let head = Head::read(w, Some(false), c.hidden_size, c.vocab_size)?;
    let ends = Ends { norm: norm(&body, "ln_f")?, head };
    let names = Names { embedding: "wte", layers: "h", ..Names::default() };
    Ok(Box::new(Decoder::assemble(&body, names, &c, ends, |_, w| {
        let a = w.at("attn");
        // Old exporters stored the attention masks.
        a.ignore("bias");
        a.ignore("masked_bias");
        let names = ["q_proj", "k_proj", "v_proj", "out_proj"];
        let attention = Attention::read(&a, names, &c, rope.clone())?;
        let names = PlainNames { up: "fc_in", down: "fc_out" };
        let mlp = PlainMlp::of(&w.at("mlp"), names, &c)?;
        Ok(Block::new(Residual::pre(norm(w, "ln_1")?, Parallel(attention, mlp))))
    })?))
}
