//! GPT-OSS: Mixtral with biases on every projection, an attention sink for every head, a sliding
//! window in every second layer, and clamped experts that are published in MXFP4. Follows `gpt_oss`
//! of mlx-lm, and OpenAI's own code, as in transformers, for `truncate` of YaRN.

use crate::families::prelude::*;
use crate::families::text::mixtral::Config;

pub const FAMILY: Family = Family { model_types: &["gpt_oss"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended =
    Recommended { sampling: Sampling::nucleus(1.0, 1.0), ..Recommended::NOTHING };

#[derive(Clone, Copy, Deserialize)]
struct GateConfig {
    swiglu_alpha: Positive,
    swiglu_limit: Positive,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "hidden_size": 2880, "num_hidden_layers": 36, "intermediate_size": 2880,
            "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
            "rms_norm_eps": 1e-5, "vocab_size": 201088, "sliding_window": 128, "rope_theta": 150000.0,
            "num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0, "attention_bias": true, "tie_word_embeddings": false,
        }),
    );
    // Its experts have an activation of their own.
    config.get("hidden_act");
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let gate: GateConfig = config::read(config)?;
    let window = |i| c.window_where(i, |i| i % 2 == 0);
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let a = w.at("self_attn");
        let sinks = Some(a.tensor("sinks", &[c.num_attention_heads])?);
        let attention = Attention::read(&a, QKVO, &c, rope.clone())?.sinks(sinks);
        pre_norm(w, &c, attention.window(window(i)?), moe(&w.at("mlp"), &c, &e, gate)?)
    })?))
}

fn moe(w: &Scope, c: &Text, e: &Config, g: GateConfig) -> Result<Moe> {
    let (count, width, inner) = (*e.num_local_experts, c.hidden_size, c.intermediate_size);
    let router = w.linear_with_bias("router", width, count)?;
    let experts = if w.has_below("experts.gate_proj") {
        let read = |name, input, output| {
            w.at("experts").at(name).require("bias")?;
            w.experts("experts", name, StackSizes { experts: count, input, output })
        };
        [
            read("gate_proj", width, inner)?,
            read("up_proj", width, inner)?,
            read("down_proj", inner, width)?,
        ]
    } else {
        let w = w.at("experts");
        let both = published(&w, "gate_up_proj", count, width, 2 * inner)?;
        let bias = w.take("gate_up_proj_bias", &[count, 2 * inner])?.reshape(&[count, inner, 2])?;
        let half = |i| -> Result<Experts> {
            let matrix = both.map(|a| every_other_row(a, i))?;
            let bias = mlx::slice(&bias, 2, i, i + 1)?.reshape(&[count, inner])?.contiguous()?;
            Ok(Experts::new(w.keep_matrix(matrix), Some(w.keep(bias))))
        };
        let down = w.keep_matrix(published(&w, "down_proj", count, inner, width)?);
        let down_bias = w.tensor("down_proj_bias", &[count, width])?;
        let down = Experts::new(down, Some(down_bias));
        let gate_up = StackSizes { experts: count, input: width, output: inner };
        [
            w.with_expert_lora(half(0)?, "gate_proj", gate_up)?,
            w.with_expert_lora(half(1)?, "up_proj", gate_up)?,
            w.with_expert_lora(
                down,
                "down_proj",
                StackSizes { experts: count, input: inner, output: width },
            )?,
        ]
    };
    let router = LinearRouter::new(router, top_k_then_softmax, count, *e.num_experts_per_tok)?;
    let [gate, up, down] = experts;
    Ok(Moe::new(router, GatedExperts::new(gate, up, down, clamped_swiglu(*g.swiglu_alpha, *g.swiglu_limit))))
}

/// The experts of one projection as published: MXFP4 in blocks of 16 bytes, or dense.
fn published(w: &Scope, name: &str, count: i32, input: i32, output: i32) -> Result<Matrix> {
    // transformers stores transposed weights.
    let is_transposed = w.shape(name).is_some_and(|shape| shape == [count, input, output]);
    let w = if is_transposed && input != output { &w.transposed() } else { w };
    w.parameter(name).matrix(&[count, output, input])?.for_experts()
}

fn every_other_row(a: &Array, first: i32) -> Result<Array> {
    let pairs = a.reshape(&[a.dim(0), a.dim(1) / 2, 2, a.dim(2)])?;
    Ok(mlx::slice(&pairs, 2, first, first + 1)?.squeeze_axes(&[2])?.contiguous()?)
}

/// `(up + 1) · gate · sigmoid(alpha · gate)`; the gate is clamped from above and `up` on both
/// sides.
pub fn clamped_swiglu(alpha: f32, limit: f32) -> impl Gate {
    move |gate: &Array, up: &Array| {
        let constant = |value| mlx::scalar(value, gate.dtype());
        let gate = &ops::minimum(gate, constant(limit)?)?;
        let up = ops::clip(up, (constant(-limit)?, constant(limit)?))?;
        let swish = gate.multiply(ops::sigmoid(gate.multiply(constant(alpha)?)?)?)?;
        Ok(up.add(constant(1.0)?)?.multiply(swish)?)
    }
}
