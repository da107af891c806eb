//! Gear: Gemma 3 in which some layers replace attention by the product of queries and convolved keys,
//! a gate on convolved values; optional softcapping. Follows `gear` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::{gemma, gemma2, gemma3_text};

pub const FAMILY: Family =
    Family { model_types: &["gear"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    hidden_activation: String,
    query_pre_attn_scalar: Option<Positive>,
    attn_logit_softcapping: Option<Positive>,
    #[serde(rename = "conv_L_cache")]
    taps: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    config::only(config, json!({"use_bidirectional_attention": false}))?;
    let config = &config::with_defaults(
        config,
        json!({
            "tie_word_embeddings": true, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 512,
            "conv_L_cache": 3,
        }),
    );
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let (local, global) = gemma3_text::ropes(&c, config)?;
    let activation = activation::named("hidden_activation", &e.hidden_activation)?;
    let scale = e.query_pre_attn_scalar.map_or(c.head_dim() as f32, f32::from).powf(-0.5);
    w.at("model").ignore("embed_scale");
    let decoder = Decoder::stack(w, &c, |i, w| {
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps)?.plus_one();
        let mlp = Mlp::read(&w.at("mlp"), GATE_UP_DOWN, &c, gated(activation))?;
        if c.layer_types.as_ref().is_some_and(|kinds| kinds[i as usize] == "conv_mixer") {
            let mixer = ConvMixer::read(&w.at("local_mixer"), &c, *e.taps)?;
            return Ok(Block::new(sandwich(norm, FOUR_NORMS, mixer, mlp)?));
        }
        let (a, window) = (w.at("self_attn"), c.window(i)?);
        let rope = if window.is_some() { &local } else { &global };
        let attention = Attention::read(&a, QKVO, &c, rope.clone())?.window(window).scale(scale);
        let attention = attention.qk_norm(head_norms(&a, &c)?);
        let Some(Positive(softcap)) = e.attn_logit_softcapping else {
            return Ok(Block::new(sandwich(norm, FOUR_NORMS, attention, mlp)?));
        };
        let attention = gemma2::softcapped(attention, scale, Some(softcap));
        Ok(Block::new(sandwich(norm, FOUR_NORMS, attention, mlp)?))
    })?;
    let decoder = gemma::scaled(decoder, &c)?;
    let head = decoder.head.softcap(*c.final_logit_softcapping);
    Ok(Box::new(Decoder { head, ..decoder }))
}

fn head_norms(w: &Scope, c: &Text) -> Result<QkNorm> {
    let norm = |name| w.rms_norm(name, c.head_dim(), c.rms_norm_eps)?.plus_one();
    Ok(QkNorm::BeforeRope(norm("q_norm")?, norm("k_norm")?))
}

/// `sigmoid(q · conv(k)) · conv(v)`, element by element; query heads share keys and values.
struct ConvMixer {
    attention: Attention,
    convs: [CausalConv; 2],
}

impl ConvMixer {
    fn read(w: &Scope, c: &Text, taps: i32) -> Result<Self> {
        let [_, keys] = c.qk_widths();
        let conv = |name| CausalConv::read(w, name, keys, taps, *c.attention_bias);
        Ok(ConvMixer {
            attention: Attention::read(w, QKVO, c, Rope::None)?.qk_norm(head_norms(w, c)?),
            convs: [conv("key_conv")?, conv("value_conv")?],
        })
    }
}

impl Layer for ConvMixer {
    /// Of the convolutions of keys and of values.
    type State = (Recurrent, Recurrent);

    fn state(&self, _: &CachePlan) -> Self::State {
        Self::State::default()
    }

    fn forward(&self, x: &Array, state: &mut Self::State, step: &Step) -> Result<Array> {
        let [q, k, v] = self.attention.heads(x, step)?;
        let ([k_conv, v_conv], (k_last, v_last)) = (&self.convs, state);
        let k = split_heads(&k_conv.forward(&join_heads(&k)?, k_last, step)?, k.dim(1))?;
        let v = split_heads(&v_conv.forward(&join_heads(&v)?, v_last, step)?, v.dim(1))?;
        let grouped = ops::unflatten(&q, 1, &[k.dim(1), -1])?;
        let gates = ops::sigmoid(grouped.multiply(k.expand_dims(2)?)?)?;
        let y = gates.multiply(v.expand_dims(2)?)?.reshape(q.shape())?;
        self.attention.project(&join_heads(&y)?)
    }
}
