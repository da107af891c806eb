//! Qwen 1: Llama with GPT-2's tensor names and a fused QKV projection with a bias; the config gives
//! the width of gate and up projections together. Follows `qwen` of mlx-lm, and Qwen's own code for
//! `use_logn_attn`, but not for `use_dynamic_ntk`, which scales by the length of the whole prompt.

use crate::families::prelude::*;

pub const FAMILY: Family = Family { model_types: &["qwen"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended = Recommended {
    end_tokens: &["<|im_end|>"],
    chat_template: Some(include_str!("qwen.jinja")),
    ..Recommended::NOTHING
};

#[derive(Deserialize)]
struct Config {
    no_bias: bool,
    use_logn_attn: bool,
    seq_length: Size,
    rotary_emb_base: Positive,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 24,
            "intermediate_size": 11008, "vocab_size": 151936, "no_bias": true,
            "layer_norm_epsilon": 1e-6, "kv_channels": 128, "rotary_emb_base": 10000.0,
            "use_logn_attn": false, "seq_length": 8192,
        }),
    );
    let names = [("layer_norm_epsilon", "rms_norm_eps"), ("kv_channels", "head_dim")];
    let (mut c, e): (_, Config) = (Text::read_renamed(config, &names)?, config::read(config)?);
    if c.intermediate_size < 2 {
        return Err(Error::config("intermediate_size", "is less than one gate and one value"));
    }
    if e.use_logn_attn && *e.seq_length < 2 {
        return Err(Error::config("seq_length", "has no logarithm to divide by"));
    }
    c.intermediate_size /= 2;
    c.num_key_value_heads = None;
    c.mlp_bias = (!e.no_bias).into();
    let rope = Rope::base(c.head_dim(), *e.rotary_emb_base)?;
    let require = |w: &Scope| if e.no_bias { Ok(()) } else { w.require("bias") };
    require(&w.at("lm_head"))?;
    let names = Names { embedding: "wte", layers: "h", norm: "ln_f" };
    let head = Head::read(w, Some(false), c.hidden_size, c.vocab_size)?;
    Ok(Box::new(Decoder::named(&w.at("transformer"), names, &c, head, |_, w| {
        let a = w.at("attn");
        a.at("c_attn").require("bias")?;
        require(&a.at("c_proj"))?;
        let mut attention = Attention::fused(&a, ["c_attn", "c_proj"], &c, rope.clone())?;
        if e.use_logn_attn {
            attention = attention.queries(move |q, step| grow(q, step, *e.seq_length));
        }
        let mlp =
            Mlp::of(&w.at("mlp"), MlpNames { gate: "w2", up: "w1", down: "c_proj" }, &c)?;
        pre_norm_named(w, TwoNorms { before_mixer: "ln_1", before_ffn: "ln_2" }, &c, attention, mlp)
    })?))
}

/// Scales queries beyond the original context length with the logarithm of their position.
fn grow(q: Array, step: &Step, context: i32) -> Result<Array> {
    let number = step.positions_of_heads()?.add(Array::from_f32(1.0))?;
    let context = Array::from_f32(context as f32);
    let factor = ops::maximum(number, &context)?.log()?.divide(context.log()?)?.expand_dims(-1)?;
    Ok(q.multiply(factor.as_dtype(q.dtype())?)?)
}
