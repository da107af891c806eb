//! StableLM 2: Llama with layer norms and heads that are rotated in part; some have a layer norm for
//! each head, some run both branches side by side. Follows `stablelm` of mlx-lm.

use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["stablelm"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    use_qkv_bias: bool,
    #[serde(default)]
    qk_layernorm: bool,
    #[serde(default)]
    use_parallel_residual: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let e: Config = config::read(config)?;
    let c = Text::read_renamed(&config::with_defaults(config, json!({
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": false,
    })), &[("layer_norm_eps", "rms_norm_eps")])?;
    let rope = Rope::share(&c, 0.25)?;
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    Ok(Box::new(Decoder::stack_under(w, &c, |w| norm(w, "norm"), |_, w| {
        let attention = attention(&w.at("self_attn"), &c, &e, rope.clone())?;
        let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?;
        let pre = norm(w, "input_layernorm")?;
        if e.use_parallel_residual {
            return Ok(Block::new(Residual::pre(pre, Parallel(attention, mlp))));
        }
        let post = norm(w, "post_attention_layernorm")?;
        Ok(Block::new((Residual::pre(pre, attention), Residual::pre(post, mlp))))
    })?))
}

fn attention(w: &Scope, c: &Text, e: &Config, rope: Rope) -> Result<Attention> {
    let read = if e.use_qkv_bias { Scope::linear_with_bias } else { Scope::linear };
    let (width, heads, kv_heads) = (c.hidden_size, c.num_attention_heads, c.kv_heads());
    let projections = [
        read(w, "q_proj", width, heads * c.head_dim())?,
        read(w, "k_proj", width, kv_heads * c.head_dim())?,
        read(w, "v_proj", width, kv_heads * c.head_dim())?,
        w.linear("o_proj", heads * c.head_dim(), width)?,
    ];
    let attention = Attention::new(projections, c, rope).precision(|_| Dtype::Float32);
    if !e.qk_layernorm {
        return Ok(attention);
    }
    let norm = |name, heads| -> Result<Norm> {
        let norms = w.at(name).at("norms");
        let each = (0..heads).map(|head| norms.at(head).take("weight", &[c.head_dim()]));
        let weight = ops::stack(&each.collect::<Result<Vec<_>>>()?, 0)?.expand_dims(1)?;
        Ok(Norm::Heads { weight: w.keep(weight), eps: c.rms_norm_eps })
    };
    let (q_norm, k_norm) = (norm("q_layernorm", heads)?, norm("k_layernorm", kv_heads)?);
    Ok(attention.qk_norm(QkNorm::BeforeRope(q_norm, k_norm)))
}
