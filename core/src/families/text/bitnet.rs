//! BitNet b1.58: Llama with ternary weights, a squared ReLU as its gate, and norms before the last
//! projection of attention and network. Follows `bitnet` of mlx-lm; the weights, four in a byte,
//! become MLX's 2-bit format, which holds them exactly.

use crate::{
    mlx::{Format, Mode, Quantized},
    parts::kv::Kv,
    prelude::*,
};
use mlx_rs::Dtype;

pub const FAMILY: Family = Family { model_types: &["bitnet"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    if config.pointer("/quantization_config/linear_class") == Some(&json!("bitlinear")) {
        let reason = "weights that are divided by their scale are not supported";
        return Err(Error::config("quantization_config.linear_class", reason));
    }
    let c = Text::read(&config::with_defaults(config, json!({"tie_word_embeddings": true})))?;
    let rope = Rope::of(&c)?;
    let decoder = Decoder::stack(w, &c, |_, w| {
        let (a, f) = (w.at("self_attn"), w.at("mlp"));
        let (width, inner) = (c.hidden_size, c.intermediate_size);
        let (all, keys) = (c.num_attention_heads * c.head_dim(), c.kv_heads() * c.head_dim());
        let projection = |name, input, output| ternary(&a, name, input, output, c.attention_bias);
        let projections = [
            projection("q_proj", width, all)?,
            projection("k_proj", width, keys)?,
            projection("v_proj", width, keys)?,
            projection("o_proj", all, width)?,
        ];
        let attention = NormedAttention {
            attention: Attention::new(projections, &c, rope.clone()),
            norm: a.rms_norm("attn_sub_norm", all, c.rms_norm_eps)?,
        };
        let mlp = NormedMlp {
            gate: ternary(&f, "gate_proj", width, inner, c.mlp_bias)?,
            up: ternary(&f, "up_proj", width, inner, c.mlp_bias)?,
            norm: f.rms_norm("ffn_sub_norm", inner, c.rms_norm_eps)?,
            down: ternary(&f, "down_proj", inner, width, c.mlp_bias)?,
        };
        pre_norm(w, &c, attention, mlp)
    })?;
    Ok(Box::new(decoder))
}

/// A projection with weights -1, 0 and 1 times one scale. Byte `r` of a column holds rows `r`,
/// `r + output / 4` and so on, from its lowest bits up, each plus one.
fn ternary(w: &Scope, name: &str, input: i32, output: i32, bias: bool) -> Result<Linear> {
    let w = w.at(name);
    let Some(group) = [128, 64, 32].into_iter().find(|group| input % group == 0) else {
        let reason = format!("{input} inputs make no groups");
        return Err(Error::Quantization { path: name.into(), reason });
    };
    let bytes = w.take_bytes("weight", &[output / 4, input])?;
    let scale = w.take("weight_scale", &[1])?;
    let constant = |n: u32| Array::from_slice(&[n], &[1]);
    let bytes = bytes.as_dtype(Dtype::Uint32)?;
    let rows = |i| bytes.floor_divide(constant(4_u32.pow(i)))?.remainder(constant(4));
    let rows = (0..4).map(rows).collect::<Result<Vec<_>, _>>()?;
    let codes = ops::concatenate(&rows, 0)?.reshape(&[output, input / 16, 16])?;
    let places: Vec<u32> = (0..16).map(|i| 1 << (2 * i)).collect();
    let weight = codes.multiply(Array::from_slice(&places, &[16]))?.sum_axis(-1, false)?;
    let scales = ops::broadcast_to(&scale, &[output, input / group])?.contiguous()?;
    let matrix = Matrix::Quantized(Quantized {
        weight: weight.as_dtype(Dtype::Uint32)?,
        biases: Some(scales.negative()?),
        scales,
        global_scale: None,
        format: Format { mode: Mode::Affine, bits: 2, group },
    });
    let bias = bias.then(|| w.tensor("bias", &[output])).transpose()?;
    Ok(Linear::new(w.keep_matrix(matrix), bias))
}

struct NormedAttention {
    attention: Attention,
    norm: Norm,
}

impl Layer for NormedAttention {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        self.attention.state(plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        self.attention.project(&self.norm.forward(&self.attention.gather(x, kv, step)?)?)
    }
}

struct NormedMlp {
    gate: Linear,
    up: Linear,
    norm: Norm,
    down: Linear,
}

impl Layer for NormedMlp {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        let y = relu_squared(&self.gate.forward(x)?)?.multiply(self.up.forward(x)?)?;
        self.down.forward(&self.norm.forward(&y)?)
    }
}
