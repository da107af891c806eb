//! Falcon H1: Mamba 2 and attention side by side in each layer, and a factor (μP) for each projection.
//! Published files have factors beside the weights; conversions of mlx-lm have most of them in the
//! weights. Follows `falcon_h1` of transformers; that of mlx-lm loses the factor of keys, and
//! normalises all groups of Mamba 2 as one.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["falcon_h1"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended =
    Recommended { end_tokens: &["<|im_end|>"], ..Recommended::NOTHING };

#[derive(Clone, Deserialize)]
#[serde(default)]
struct Multipliers {
    embedding_multiplier: Positive,
    lm_head_multiplier: Positive,
    attention_in_multiplier: Positive,
    key_multiplier: Positive,
    attention_out_multiplier: Positive,
    ssm_in_multiplier: Positive,
    /// Of the gate, `x`, `B`, `C` and the time steps.
    ssm_multipliers: Option<[Positive; 5]>,
    ssm_out_multiplier: Positive,
    /// Of the gate, and of the output.
    mlp_multipliers: Option<[Positive; 2]>,
}

const ONE: Positive = Positive(1.0);

impl Default for Multipliers {
    fn default() -> Self {
        Multipliers {
            embedding_multiplier: ONE,
            lm_head_multiplier: ONE,
            attention_in_multiplier: ONE,
            key_multiplier: ONE,
            attention_out_multiplier: ONE,
            ssm_in_multiplier: ONE,
            ssm_multipliers: None,
            ssm_out_multiplier: ONE,
            mlp_multipliers: None,
        }
    }
}

impl Multipliers {
    /// Those that a conversion of mlx-lm leaves out of the weights: that of keys, that of values, and
    /// where the embedding is the head, their quotient.
    fn left_over(&self, is_tied: bool) -> Self {
        let head = *self.lm_head_multiplier / *self.embedding_multiplier;
        Multipliers {
            lm_head_multiplier: if is_tied { Positive(head) } else { ONE },
            key_multiplier: self.key_multiplier,
            attention_out_multiplier: self.attention_in_multiplier,
            ..Self::default()
        }
    }
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    mamba_rms_norm: bool,
    mamba_norm_before_gate: Option<bool>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    config::only(config, json!({"hidden_act": "silu"}))?;
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let (mixer, mut m): (_, Multipliers) = (Mamba2Config::read(config, &[])?, config::read(config)?);
    // A conversion of mlx-lm transposes the convolution too.
    let kernel = w.shape("model.layers.0.mamba.conv1d.weight");
    if kernel.is_some_and(|shape| shape.last() == Some(&1) && *mixer.mamba_d_conv > 1) {
        let is_tied = c.tie_word_embeddings.unwrap_or_else(|| !w.has("lm_head.weight"));
        m = m.left_over(is_tied);
    }
    let norm = GatedNorm {
        eps: c.rms_norm_eps,
        is_before_gate: e.mamba_norm_before_gate.unwrap_or(true),
    };
    let norm = e.mamba_rms_norm.then_some(norm);
    let (rope, width) = (Rope::of(&c)?, c.hidden_size);
    let scale = (c.head_dim() as f32).powf(-0.5) * *m.key_multiplier;
    let [gate, down] = m.mlp_multipliers.unwrap_or([ONE; 2]).map(f32::from);
    let head = Head::of(w, &c)?.scaled(*m.lm_head_multiplier);
    let names = Names { norm: "final_layernorm", ..Names::default() };
    let decoder = Decoder::named(&w.at("model"), names, &c, head, |_, w| {
        let norm_of = |name| w.rms_norm(name, width, c.rms_norm_eps);
        let mut ssm = Mamba2::read(&w.at("mamba"), width, &mixer, norm)?;
        if let Some(each) = m.ssm_multipliers {
            ssm = ssm.multiplied(spread(w, &each, &mixer));
        }
        let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?.scale(scale);
        let ssm = Scaled { input: *m.ssm_in_multiplier, inner: ssm, output: *m.ssm_out_multiplier };
        let attention = Scaled {
            input: *m.attention_in_multiplier,
            inner: attention,
            output: *m.attention_out_multiplier,
        };
        let gated = move |x: &Array, up: &Array| swiglu(&times(x, gate)?, up);
        let mlp = Mlp::read(&w.at("feed_forward"), GATE_UP_DOWN, &c, gated)?;
        Ok(Block::new((
            Residual::pre(norm_of("input_layernorm")?, Parallel(ssm, attention)),
            Residual::pre(norm_of("pre_ff_layernorm")?, mlp).scaled(down),
        )))
    })?;
    Ok(Box::new(Decoder { embedding_scale: Some(*m.embedding_multiplier), ..decoder }))
}

/// One factor for each element that the first projection of Mamba 2 gives.
fn spread(w: &Scope, each: &[Positive], mixer: &Mamba2Config) -> Array {
    let parts = each.iter().zip(mixer.widths());
    let values: Vec<f32> =
        parts.flat_map(|(value, width)| std::iter::repeat_n(**value, width as usize)).collect();
    w.keep(Array::from_slice(&values, &[values.len() as i32]))
}

/// `output · inner(input · x)`.
struct Scaled<L> {
    input: f32,
    inner: L,
    output: f32,
}

impl<L: Layer> Layer for Scaled<L> {
    type State = L::State;

    fn state(&self, plan: &CachePlan) -> L::State {
        self.inner.state(plan)
    }

    fn forward(&self, x: &Array, state: &mut L::State, step: &Step) -> Result<Array> {
        times(&self.inner.forward(&times(x, self.input)?, state, step)?, self.output)
    }
}

fn times(x: &Array, factor: f32) -> Result<Array> {
    if factor == 1.0 {
        return Ok(x.clone());
    }
    Ok(x.multiply(mlx::scalar(factor, x.dtype())?)?)
}
