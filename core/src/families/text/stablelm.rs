//! StableLM 2: Llama with layer norms and a partial rotary embedding; some models have a layer norm
//! for each head, some run attention and MLP in parallel. Follows `stablelm` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::qwen2;

pub const FAMILY: Family =
    Family { model_types: &["stablelm"], build, recommended: Recommended::NOTHING };

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    use_qkv_bias: bool,
    qk_layernorm: bool,
    use_parallel_residual: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "layer_norm_eps": 1e-5, "tie_word_embeddings": false,
        }),
    );
    let names = [("layer_norm_eps", "rms_norm_eps")];
    let (mut c, e): (Text, Config) = (Text::read_renamed(config, &names)?, config::read(config)?);
    c.attention_bias = e.use_qkv_bias.into();
    let rope = Rope::share(&c, 0.25)?;
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    Ok(Box::new(Decoder::stack_under(
        w,
        &c,
        |w| norm(w, "norm"),
        |_, w| {
            let a = w.at("self_attn");
            let qk_norm = if e.qk_layernorm { norms(&a, &c)? } else { QkNorm::None };
            let attention = qwen2::attention(&a, &c, rope.clone())?
                .precision(|_| Dtype::Float32)
                .qk_norm(qk_norm);
            let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?;
            if e.use_parallel_residual {
                let branches = Parallel(attention, mlp);
                return Ok(Block::new(Residual::pre(norm(w, "input_layernorm")?, branches)));
            }
            pre_norm_under(|name| norm(w, name), TWO_NORMS, attention, mlp)
        },
    )?))
}

/// A layer norm for each head.
fn norms(w: &Scope, c: &Text) -> Result<QkNorm> {
    let norm = |name, heads| -> Result<Norm> {
        let norms = w.at(name).at("norms");
        let each = (0..heads).map(|head| norms.at(head).take("weight", &[c.head_dim()]));
        let weight = ops::stack(&each.collect::<Result<Vec<_>>>()?, 0)?.expand_dims(1)?;
        Ok(Norm::Heads { weight: w.keep(weight), eps: c.rms_norm_eps })
    };
    let (q, k) = (norm("q_layernorm", c.num_attention_heads)?, norm("k_layernorm", c.kv_heads())?);
    Ok(QkNorm::BeforeRope(q, k))
}
