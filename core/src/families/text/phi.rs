//! Phi 1.5 and 2: attention and an MLP without a gate in parallel after one layer norm, a partial
//! rotary embedding, and biases everywhere, in the output head too. Follows `phi` of mlx-lm, and
//! transformers for norms of queries and keys.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["phi"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    qk_layernorm: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "hidden_size": 2560, "num_hidden_layers": 32, "intermediate_size": 10240,
            "num_attention_heads": 32, "vocab_size": 51200, "attention_bias": true, "mlp_bias": true,
            "layer_norm_eps": 1e-5, "qk_layernorm": false, "hidden_act": "gelu_new",
        }),
    );
    let e: Config = config::read(config)?;
    let mut c = Text::read_renamed(config, &[("layer_norm_eps", "rms_norm_eps")])?;
    let rope = Rope::share(&c, 0.4)?;
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    // The output head has a bias, which tied embeddings lack, so the checkpoint must contain it.
    c.tie_word_embeddings = Some(false);
    w.at("lm_head").require("bias")?;
    let last = |w: &Scope| norm(w, "final_layernorm");
    Ok(Box::new(Decoder::stack_under(w, &c, last, |_, w| {
        let names = ["q_proj", "k_proj", "v_proj", "dense"];
        let a = w.at("self_attn");
        let mut attention =
            Attention::read(&a, names, &c, rope.clone())?.precision(|_| Dtype::Float32);
        if e.qk_layernorm {
            let norm = |name| a.layer_norm_with_bias(name, c.head_dim(), c.rms_norm_eps);
            let norms = QkNorm::BeforeRope(norm("q_layernorm")?, norm("k_layernorm")?);
            attention = attention.qk_norm(norms);
        }
        let mlp = PlainMlp::of(&w.at("mlp"), PlainNames { up: "fc1", down: "fc2" }, &c)?;
        Ok(Block::new(Residual::pre(norm(w, "input_layernorm")?, Parallel(attention, mlp))))
    })?))
}
