//! Gemma 3n (text): Gemma 4's shared KV caches and layer inputs, with several residual streams
//! (AltUp), a low-rank branch beside attention (Laurel), and MLPs with sparse activations. Follows
//! `gemma3n` of mlx-lm.

mod altup;

use crate::families::text::{
    gemma,
    gemma3_text::{ropes, text_config},
};
use crate::{
    families::{
        prelude::*,
        text::gemma3n::altup::{AltUp, AltUpSizes, Streams},
    },
    layers::{
        attention::{
            kv_cache::KvCache,
            shared_keys::{Place, SharedKeys, lender},
        },
        feed_forward::mlp::Gate,
        layer_inputs::{InputGate, LayerInputs},
    },
};
use std::{
    f32::consts::{FRAC_1_SQRT_2, SQRT_2},
    iter::once,
};

pub const FAMILY: Family =
    Family { model_types: &["gemma3n", "gemma3n_text"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended = Recommended {
    end_tokens: &["<end_of_turn>"],
    sampling: Sampling { top_k: 64, ..Sampling::nucleus(1.0, 0.95) },
    ..Recommended::NOTHING
};

#[derive(Deserialize)]
struct Config {
    intermediate_size: PerLayer,
    num_kv_shared_layers: Count,
    vocab_size_per_layer_input: Size,
    hidden_size_per_layer_input: Size,
    activation_sparsity_pattern: Option<Vec<f32>>,
    altup_correct_scale: bool,
    laurel_rank: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let vocabulary = config.pointer("/text_config/vocab_size").cloned();
    let defaults = json!({
        "hidden_size": 2048, "num_hidden_layers": 35, "intermediate_size": 16384,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "rms_norm_eps": 1e-6,
        "vocab_size": 262_400, "vocab_size_per_layer_input": 262_144,
        "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 15, "sliding_window": 512,
        "max_position_embeddings": 32768, "final_logit_softcapping": 30.0, "altup_num_inputs": 4,
        "altup_coef_clip": 120.0, "altup_correct_scale": true, "altup_active_idx": 0,
        "laurel_rank": 64,
    });
    let config =
        text_config(config, defaults, json!({"vocab_size": vocabulary.unwrap_or(262_400.into())}))?;
    let (e, altup): (Config, AltUpSizes) = (config::read(&config)?, config::read(&config)?);
    // Each layer may have its own MLP width.
    let sizes = config::without(&config, &["intermediate_size", "rope_parameters"]);
    let mut c = gemma::read(&config::with_defaults(&sizes, json!({"intermediate_size": 1})))?;
    c.tie_word_embeddings.get_or_insert(true);
    let own = c.num_hidden_layers - *e.num_kv_shared_layers;
    if own < 1 {
        return Err(Error::config("num_kv_shared_layers", "as many as layers, or more"));
    }
    ignore_parts(w, &["vision_tower", "audio_tower", "embed_audio", "embed_vision"]);
    let ((body, _), (local, global)) = (body(w), ropes(&c, &config)?);
    let window = |layer| c.window_where(layer, |layer| layer % 5 != 4);
    let decoder = Decoder::stack(w, &c, |layer, w| {
        let (lender, window) = (lender(own, layer, window)?, window(layer)?);
        let rope = if window.is_some() { &local } else { &global }.clone();
        let place = Place { layer, lender, window, rope, keys_are_values: false };
        let attention = SharedKeys::read(&w.at("self_attn"), &c, place)?;
        let altup = AltUp::read(&w.at("altup"), &c, &altup)?;
        Ok(Block::new(AlternatingBlock::read(w, &c, &e, layer, Mechanisms { altup, attention })?))
    })?;
    let spread = Streams::read(&body, "altup_projections", &c, &altup)?;
    let gather = Streams::read(&body, "altup_unembed_projections", &c, &altup)?;
    let first = Block::new(Map(move |x: &Array| spread.spread(x)));
    let last = Block::new(Map(move |streams: &Array| gather.gather(streams)));
    let (vocabulary, width) = (*e.vocab_size_per_layer_input, *e.hidden_size_per_layer_input);
    Ok(Box::new(Gemma3n {
        inputs: LayerInputs::read(&body, &c, vocabulary, width)?,
        vocabulary,
        decoder: Decoder {
            embedding_scale: Some((c.hidden_size as f32).sqrt()),
            blocks: once(first).chain(decoder.blocks).chain(once(last)).collect(),
            head: decoder.head.softcap(*c.final_logit_softcapping),
            ..decoder
        },
    }))
}

/// A decoder with an extra input for each layer.
struct Gemma3n {
    decoder: Decoder,
    inputs: LayerInputs,
    vocabulary: i32,
}

impl Wrapper for Gemma3n {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        // Tokens of other modalities have no layer inputs.
        let known = x.ids.lt(Array::from_int(self.vocabulary))?;
        let ids = x.ids.multiply(known.as_dtype(x.ids.dtype())?)?;
        self.inputs.leave(&Embedded { ids, ..x.clone() }, step)?;
        self.decoder.forward(x, cache, step)
    }
}

/// A block over streams `[streams, batch, length, width]`.
struct AlternatingBlock {
    altup: AltUp,
    before: Norm,
    attention: SharedKeys,
    laurel: Residual<Ffn>,
    after: Norm,
    mlp: Residual<Mlp>,
    output_scale: Option<Array>,
    input: InputGate,
}

/// What a block reads that depends on its place among the others.
struct Mechanisms {
    altup: AltUp,
    attention: SharedKeys,
}

impl AlternatingBlock {
    fn read(w: &Scope, c: &Text, e: &Config, layer: i32, mechanisms: Mechanisms) -> Result<Self> {
        let hidden = c.hidden_size;
        let norm = |name| w.rms_norm(name, hidden, c.rms_norm_eps);
        let FourNorms { before_mixer, after_mixer, before_ffn, after_ffn } = FOUR_NORMS;
        let left = w.linear("laurel.linear_left", hidden, *e.laurel_rank)?;
        let right = w.linear("laurel.linear_right", *e.laurel_rank, hidden)?;
        let laurel: Ffn = Box::new(Map(move |x: &Array| right.forward(&left.forward(x)?)));
        if !e.altup_correct_scale {
            w.ignore("altup.correct_output_scale");
        }
        let scale = || w.tensor("altup.correct_output_scale", &[hidden]);
        let inner = *e.intermediate_size.of("intermediate_size", layer)?;
        let gate = sparse(gate_of(c)?, e.sparsity(c, layer)?)?;
        let mlp = Mlp::sized_with(&w.at("mlp"), c, inner, gate)?;
        Ok(AlternatingBlock {
            altup: mechanisms.altup,
            before: norm(before_mixer)?,
            attention: mechanisms.attention,
            laurel: Residual::post(laurel, norm("laurel.post_laurel_norm")?),
            after: norm(after_mixer)?,
            mlp: Residual::sandwich(norm(before_ffn)?, mlp, norm(after_ffn)?),
            output_scale: e.altup_correct_scale.then(scale).transpose()?,
            input: InputGate::read(w, c, *e.hidden_size_per_layer_input, layer)?,
        })
    }
}

impl Layer for AlternatingBlock {
    type State = Option<KvCache>;

    fn state(&self, plan: &CachePlan) -> Option<KvCache> {
        self.attention.state(plan)
    }

    fn forward(&self, streams: &Array, kv: &mut Option<KvCache>, step: &Step) -> Result<Array> {
        let predictions = self.altup.predict(streams)?;
        let active = self.altup.active(&predictions)?;
        let x = self.before.forward(&active)?;
        let laurel = self.laurel.forward(&x, &mut (), step)?;
        let h = active.add(self.after.forward(&self.attention.forward(&x, kv, step)?)?)?;
        let h = h.add(laurel)?.multiply(mlx::scalar(FRAC_1_SQRT_2, h.dtype())?)?;
        let h = self.mlp.forward(&h, &mut (), step)?;
        let corrected = self.altup.correct(&predictions, &h)?;
        let mut y = self.altup.active(&corrected)?;
        if let Some(scale) = &self.output_scale {
            y = y.multiply(scale)?;
        }
        let y = self.input.forward(&y, step)?.expand_dims(0)?;
        let others = mlx::slice(&corrected, 0, 1, corrected.dim(0))?.add(y)?;
        Ok(ops::concatenate(&[mlx::slice(&corrected, 0, 0, 1)?, others], 0)?)
    }
}

impl Config {
    /// The share of inactive gates of an MLP.
    fn sparsity(&self, c: &Text, layer: i32) -> Result<f32> {
        let field = "activation_sparsity_pattern";
        let sparsity = match &self.activation_sparsity_pattern {
            Some(pattern) => *config::entry(field, pattern, layer)?,
            None if c.num_hidden_layers > 10 && layer < 10 => 0.95,
            None => 0.0,
        };
        if (0.0..1.0).contains(&sparsity) {
            return Ok(sparsity);
        }
        Err(Error::config(field, format!("{sparsity} is no share")))
    }
}

/// A gate function in which only gates far above the mean are active.
fn sparse(gated: impl Gate, sparsity: f32) -> Result<impl Gate> {
    // The threshold, in standard deviations above the mean.
    let normal = ops::erfinv(Array::from_f32(2.0 * sparsity - 1.0))?;
    let cutoff = SQRT_2 * normal.try_item_cast::<f32>()?;
    Ok(move |gate: &Array, up: &Array| {
        if sparsity == 0.0 {
            return gated(gate, up);
        }
        let constant = |value| mlx::scalar(value, gate.dtype());
        let spread = ops::std_axis(gate, -1, true, None)?.multiply(constant(cutoff)?)?;
        let least = gate.mean_axis(-1, true)?.add(spread)?;
        gated(&ops::maximum(gate.subtract(least)?, constant(0.0)?)?, up)
    })
}
