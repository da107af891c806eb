//! Gemma 3n (text): several streams, of which a block computes one and predicts the others (AltUp),
//! a low-rank branch beside attention (Laurel), networks with few active elements; otherwise the
//! keys and layer inputs of Gemma 4. Follows `gemma3n` of mlx-lm.

use super::gemma3_text::{ropes, text_config, without};
use crate::{
    model::{Cache, Embedded},
    parts::{
        layer_inputs::{InputGate, LayerInputs},
        shared_keys::{BorrowedKeys, OwnKeys, Queries, lender},
    },
    prelude::*,
};
use mlx_rs::Dtype;
use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

pub const FAMILY: Family = Family { model_types: &["gemma3n", "gemma3n_text"], build };

#[derive(Deserialize)]
struct Config {
    intermediate_size: config::PerLayer,
    #[serde(deserialize_with = "config::count")]
    num_kv_shared_layers: i32,
    #[serde(deserialize_with = "config::size")]
    vocab_size_per_layer_input: i32,
    #[serde(deserialize_with = "config::size")]
    hidden_size_per_layer_input: i32,
    activation_sparsity_pattern: Option<Vec<f32>>,
    #[serde(deserialize_with = "config::size")]
    altup_num_inputs: i32,
    #[serde(default, deserialize_with = "config::optional_positive")]
    altup_coef_clip: Option<f32>,
    altup_correct_scale: bool,
    #[serde(deserialize_with = "config::count")]
    altup_active_idx: i32,
    #[serde(deserialize_with = "config::size")]
    laurel_rank: i32,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let vocabulary = json!({"vocab_size": config.pointer("/text_config/vocab_size").unwrap_or(&json!(262_400))});
    let config = text_config(config, json!({
        "hidden_size": 2048, "num_hidden_layers": 35, "intermediate_size": 16384,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "rms_norm_eps": 1e-6,
        "vocab_size": 262_400, "vocab_size_per_layer_input": 262_144,
        "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 15, "sliding_window": 512,
        "max_position_embeddings": 32768, "final_logit_softcapping": 30.0, "altup_num_inputs": 4,
        "altup_coef_clip": 120.0, "altup_correct_scale": true, "altup_active_idx": 0,
        "laurel_rank": 64,
    }), vocabulary)?;
    let e: Config = config::read(&config)?;
    // Each layer may have its own width.
    let sizes = without(&config, &["intermediate_size", "rope_parameters"]);
    let mut c = Text::read(&config::with_defaults(&sizes, json!({"intermediate_size": 1})))?;
    c.layer_types.get_or_insert_with(|| {
        let kind = |i| if i % 5 == 4 { "full_attention" } else { "sliding_attention" };
        (0..c.num_hidden_layers).map(|i| kind(i).into()).collect()
    });
    if e.altup_active_idx >= e.altup_num_inputs {
        return Err(Error::config("altup_active_idx", "not one of the streams"));
    }
    let own = c.num_hidden_layers - e.num_kv_shared_layers;
    if own < 1 {
        return Err(Error::config("num_kv_shared_layers", "as many as layers, or more"));
    }
    ignore_parts(w, &["vision_tower", "audio_tower", "embed_audio", "embed_vision"]);
    let (local, global) = ropes(&c, &config)?;
    let (body, head) = body(w);
    let (mut blocks, mut layers) = (Vec::new(), Vec::new());
    for i in 0..c.num_hidden_layers {
        let w = body.at("layers").at(i);
        let (a, window) = (w.at("self_attn"), c.window(i)?);
        let rope = if window.is_some() { &local } else { &global };
        let queries = Queries::read(&a, &c, c.head_dim(), rope.clone())?;
        blocks.push(match lender(own, i, |layer| c.window(layer))? {
            Some(lender) => Block::new(BorrowedKeys::read(&a, queries, lender)),
            None => {
                Block::new(OwnKeys::read(&a, &c, queries, true)?.place(i, window))
            }
        });
        layers.push(AroundAttention::read(&w, &c, &e, i)?);
    }
    let square = |name: &str| -> Result<Vec<Linear>> {
        let w = body.at(name);
        (1..e.altup_num_inputs)
            .map(|i| w.linear(&(i - 1).to_string(), c.hidden_size, c.hidden_size))
            .collect()
    };
    let (vocabulary, width) = (e.vocab_size_per_layer_input, e.hidden_size_per_layer_input);
    let output = Head::read(&head, Some(true), c.hidden_size, c.vocab_size)?;
    Ok(Box::new(Gemma3n {
        inputs: LayerInputs::read(&body, &c, vocabulary, width)?,
        inputs_vocabulary: vocabulary,
        layers,
        spread: square("altup_projections")?,
        gather: square("altup_unembed_projections")?,
        decoder: Decoder {
            embedding: body.embedding("embed_tokens", c.vocab_size, c.hidden_size)?,
            embedding_scale: Some((c.hidden_size as f32).sqrt()),
            blocks,
            norm: body.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?,
            head: output.softcap(c.final_logit_softcapping),
        },
    }))
}

struct Gemma3n {
    /// Its blocks are attention alone.
    decoder: Decoder,
    layers: Vec<AroundAttention>,
    inputs: LayerInputs,
    inputs_vocabulary: i32,
    /// From the embedding to the streams after the first, and back.
    spread: Vec<Linear>,
    gather: Vec<Linear>,
}

impl Wrapper for Gemma3n {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        // Tokens of other modalities have no inputs of their own.
        let known = x.ids.lt(Array::from_int(self.inputs_vocabulary))?;
        let ids = x.ids.multiply(known.as_dtype(x.ids.dtype())?)?;
        let inputs = self.inputs.forward(&Embedded { ids, hidden: x.hidden.clone() })?;
        let mut streams = vec![x.hidden.clone()];
        for projection in &self.spread {
            streams.push(alike(&projection.forward(&x.hidden)?, &x.hidden)?);
        }
        let mut h = ops::stack(&streams, 0)?;
        let layers = self.decoder.blocks.iter().zip(&self.layers).zip(&mut cache.states);
        for (i, ((attention, layer), state)) in (0..).zip(layers) {
            let input = mlx::slice(&inputs, 2, i, i + 1)?.squeeze_axes(&[2])?;
            h = layer.forward(&h, &input, |x| attention.forward(x, &mut **state, step), step)?;
        }
        let stream = |i: i32| -> Result<Array> { Ok(mlx::slice(&h, 0, i, i + 1)?.squeeze_axes(&[0])?) };
        let first = stream(0)?;
        let mut streams = vec![first.clone()];
        for (i, projection) in (1..).zip(&self.gather) {
            streams.push(alike(&projection.forward(&stream(i)?)?, &first)?);
        }
        self.decoder.norm.forward(&ops::stack(&streams, 0)?.mean_axis(0, false)?)
    }
}

/// `x` with the root mean square of `y`; as in transformers, what is nearly zero stays.
fn alike(x: &Array, y: &Array) -> Result<Array> {
    let square = |x: &Array| -> Result<Array> { Ok(x.square()?.mean_axis(-1, true)?) };
    let own = ops::maximum(square(x)?, mlx::scalar(1e-5, x.dtype())?)?;
    Ok(x.multiply(square(y)?.sqrt()?.divide(own.sqrt()?)?)?)
}

/// A block but for its attention.
struct AroundAttention {
    before: Norm,
    laurel: (Linear, Linear, Norm),
    after: Norm,
    mlp: Residual<Ffn>,
    alternating: AltUp,
    output_scale: Option<Array>,
    input: InputGate,
}

impl AroundAttention {
    fn read(w: &Scope, c: &Text, e: &Config, i: i32) -> Result<Self> {
        let hidden = c.hidden_size;
        let norm = |w: &Scope, name| w.rms_norm(name, hidden, c.rms_norm_eps);
        let (laurel, altup) = (w.at("laurel"), w.at("altup"));
        if !e.altup_correct_scale {
            altup.ignore("correct_output_scale");
        }
        let scale = || altup.tensor("correct_output_scale", &[hidden]);
        Ok(AroundAttention {
            before: norm(w, "input_layernorm")?,
            laurel: (
                laurel.linear("linear_left", hidden, e.laurel_rank)?,
                laurel.linear("linear_right", e.laurel_rank, hidden)?,
                norm(&laurel, "post_laurel_norm")?,
            ),
            after: norm(w, "post_attention_layernorm")?,
            mlp: Residual::sandwich(
                norm(w, "pre_feedforward_layernorm")?,
                sparse_mlp(&w.at("mlp"), c, e, i as usize)?,
                norm(w, "post_feedforward_layernorm")?,
            ),
            alternating: AltUp::read(&altup, c, e)?,
            output_scale: e.altup_correct_scale.then(scale).transpose()?,
            input: InputGate::read(w, c, e.hidden_size_per_layer_input)?,
        })
    }

    /// Streams `[streams, batch, length, width]` to themselves.
    fn forward(
        &self,
        streams: &Array,
        input: &Array,
        attention: impl FnOnce(&Array) -> Result<Array>,
        step: &Step,
    ) -> Result<Array> {
        let predictions = self.alternating.predict(streams)?;
        let active = self.alternating.active(&predictions)?;
        let x = self.before.forward(&active)?;
        let (left, right, norm) = &self.laurel;
        let laurel = x.add(norm.forward(&right.forward(&left.forward(&x)?)?)?)?;
        let h = active.add(self.after.forward(&attention(&x)?)?)?;
        let h = h.add(laurel)?.multiply(mlx::scalar(FRAC_1_SQRT_2, h.dtype())?)?;
        let h = self.mlp.forward(&h, &mut (), step)?;
        let corrected = self.alternating.correct(&predictions, &h)?;
        let mut y = self.alternating.active(&corrected)?;
        if let Some(scale) = &self.output_scale {
            y = y.multiply(scale)?;
        }
        let y = self.input.forward(&y, input)?.expand_dims(0)?;
        let count = corrected.dim(0);
        let others = mlx::slice(&corrected, 0, 1, count)?.add(y)?;
        Ok(ops::concatenate(&[mlx::slice(&corrected, 0, 0, 1)?, others], 0)?)
    }
}

/// Alternating updates ([Baykal et al. 2023](https://arxiv.org/abs/2301.13310)), in single precision.
struct AltUp {
    router: (Norm, Linear),
    prediction: Linear,
    correction: Linear,
    streams: i32,
    active: i32,
}

impl AltUp {
    fn read(w: &Scope, c: &Text, e: &Config) -> Result<Self> {
        let n = e.altup_num_inputs;
        let coefficients = |name, rows| -> Result<Linear> {
            let w = w.at(name);
            let mut weight = w.take("weight", &[rows, n])?.as_dtype(Dtype::Float32)?;
            if let Some(limit) = e.altup_coef_clip {
                weight = ops::clip(&weight, (Array::from_f32(-limit), Array::from_f32(limit)))?;
            }
            Ok(Linear::new(Matrix::Dense(w.keep(weight)), None))
        };
        Ok(AltUp {
            router: (
                w.rms_norm("router_norm", c.hidden_size, c.rms_norm_eps)?,
                w.linear("modality_router", c.hidden_size, n)?,
            ),
            prediction: coefficients("prediction_coefs", config::product("altup_num_inputs", [n, n])?)?,
            correction: coefficients("correction_coefs", n)?,
            streams: n,
            active: e.altup_active_idx,
        })
    }

    fn active(&self, streams: &Array) -> Result<Array> {
        Ok(mlx::slice(streams, 0, self.active, self.active + 1)?.squeeze_axes(&[0])?)
    }

    /// `[batch, length, streams]`.
    fn modalities(&self, x: &Array) -> Result<Array> {
        let (norm, router) = &self.router;
        let share = mlx::scalar((x.dim(-1) as f32).recip(), x.dtype())?;
        let routed = router.forward(&norm.forward(x)?.multiply(share)?)?;
        Ok(ops::tanh(&routed.as_dtype(Dtype::Float32)?)?)
    }

    fn predict(&self, streams: &Array) -> Result<Array> {
        let mixture = self.prediction.forward(&self.modalities(&self.active(streams)?)?)?;
        let shape = [mixture.dim(0), mixture.dim(1), self.streams, self.streams];
        let mixture = mixture.reshape(&shape)?.swap_axes(2, 3)?;
        let wide = streams.as_dtype(Dtype::Float32)?;
        let mixed = wide.transpose_axes(&[1, 2, 3, 0])?.matmul(mixture)?;
        Ok(mixed.transpose_axes(&[3, 0, 1, 2])?.add(wide)?.as_dtype(streams.dtype())?)
    }

    fn correct(&self, predictions: &Array, activated: &Array) -> Result<Array> {
        let shares = self.correction.forward(&self.modalities(activated)?)?;
        let shares = shares.add(Array::from_f32(1.0))?.transpose_axes(&[2, 0, 1])?;
        let innovation = activated.subtract(self.active(predictions)?)?.expand_dims(0)?;
        let corrected = innovation.multiply(shares.expand_dims(-1)?)?.add(predictions)?;
        Ok(corrected.as_dtype(activated.dtype())?)
    }
}

/// GeGLU in which only gates well above the mean are active.
fn sparse_mlp(w: &Scope, c: &Text, e: &Config, i: usize) -> Result<Ffn> {
    let inner = e.intermediate_size.of(i, "intermediate_size")?;
    let field = "activation_sparsity_pattern";
    let sparsity = match &e.activation_sparsity_pattern {
        Some(pattern) => *pattern
            .get(i)
            .ok_or_else(|| Error::config(field, format!("no entry for layer {i}")))?,
        None if c.num_hidden_layers > 10 && i < 10 => 0.95,
        None => 0.0,
    };
    if !(0.0..1.0).contains(&sparsity) {
        return Err(Error::config(field, format!("{sparsity} is no share")));
    }
    if sparsity == 0.0 {
        return Ok(Box::new(Mlp::sized(w, c, inner, geglu_tanh)?));
    }
    let gate = w.linear("gate_proj", c.hidden_size, inner)?;
    let up = w.linear("up_proj", c.hidden_size, inner)?;
    let down = w.linear("down_proj", inner, c.hidden_size)?;
    // How many deviations above the mean.
    let normal = ops::erfinv(Array::from_f32(2.0 * sparsity - 1.0))?;
    let cutoff = SQRT_2 * normal.try_item_cast::<f32>()?;
    Ok(Box::new(Map(move |x: &Array| {
        let gate = gate.forward(x)?;
        let constant = |value| mlx::scalar(value, gate.dtype());
        let spread = ops::std_axis(&gate, -1, true, None)?.multiply(constant(cutoff)?)?;
        let least = gate.mean_axis(-1, true)?.add(spread)?;
        let active = ops::maximum(gate.subtract(least)?, constant(0.0)?)?;
        down.forward(&geglu_tanh(&active, &up.forward(x)?)?)
    })))
}
