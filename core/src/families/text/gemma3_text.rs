//! Gemma 3: Gemma 2 with normalised queries and keys instead of softcapping, and five
//! sliding-window layers for each full layer, each kind with its own rotary base. Follows
//! `gemma3_text` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::gemma;

pub const FAMILY: Family =
    Family { model_types: &["gemma3_text"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended = Recommended {
    end_tokens: &["<end_of_turn>"],
    sampling: Sampling { top_k: 64, ..Sampling::nucleus(1.0, 0.95) },
    context_is_scaled: true,
    ..Recommended::NOTHING
};

/// The fields of this family.
#[derive(Deserialize)]
pub struct Config {
    pub query_pre_attn_scalar: Positive,
    sliding_window_pattern: Option<Size>,
    use_bidirectional_attention: bool,
}

impl Config {
    /// The window of a layer.
    ///
    /// # Errors
    /// As [`Text::window_where`].
    pub fn window(&self, c: &Text, layer: i32) -> Result<Option<i32>> {
        let pattern = self.sliding_window_pattern.map_or(6, i32::from);
        c.window_where(layer, |i| (i + 1) % pattern != 0)
    }
}

/// The config of the language model, with its defaults.
///
/// # Errors
/// As [`text_config`].
pub fn own_config(config: &Json) -> Result<Json> {
    text_config(
        config,
        json!({
            "hidden_size": 1152, "num_hidden_layers": 26, "intermediate_size": 6912,
            "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
            "rms_norm_eps": 1e-6, "vocab_size": 262144, "query_pre_attn_scalar": 256.0,
            "sliding_window": 512, "max_position_embeddings": 32768, "use_bidirectional_attention": false,
        }),
        json!({"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4}),
    )
}

/// The fields that models share, and those of this family.
///
/// # Errors
/// [`Error::Config`] with the field at fault.
pub fn read(config: &Json) -> Result<(Text, Config)> {
    Ok((gemma::read(config)?, config::read(config)?))
}

pub fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &own_config(config)?;
    let (mut c, e) = read(config)?;
    if e.use_bidirectional_attention {
        let reason = "the model embeds texts, and its modules.json is missing, which says how";
        return Err(Error::unsupported("use_bidirectional_attention", reason));
    }
    // Published checkpoints tie the output head to the embedding without saying so in the config.
    c.tie_word_embeddings = None;
    let (local, global) = ropes(&c, config)?;
    let decoder = Decoder::stack(w, &c, |i, w| {
        let norm = |w: &Scope, name, width| w.rms_norm(name, width, c.rms_norm_eps)?.plus_one();
        let (a, window) = (w.at("self_attn"), e.window(&c, i)?);
        let head_norm = |name| norm(&a, name, c.head_dim());
        let rope = if window.is_some() { &local } else { &global };
        let attention = Attention::read(&a, QKVO, &c, rope.clone())?
            .qk_norm(QkNorm::BeforeRope(head_norm("q_norm")?, head_norm("k_norm")?))
            .scale(e.query_pre_attn_scalar.powf(-0.5))
            .window(window);
        let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?;
        let norm = |name| norm(w, name, c.hidden_size);
        let (attention, mlp) = sandwich(norm, FOUR_NORMS, attention, mlp)?;
        Ok(Block::new((attention.joined_by(saturating_sum), mlp.joined_by(saturating_sum))))
    })?;
    Ok(Box::new(Decoder {
        embedding_scale: Some(bfloat16((c.hidden_size as f32).sqrt())?),
        norm: decoder.norm.plus_one()?,
        head: decoder.head.softcap(*c.final_logit_softcapping),
        ..decoder
    }))
}

/// The config of the language model. Exports of the multimodal model nest it and omit fields with
/// other defaults.
pub fn text_config(config: &Json, defaults: Value, nested_defaults: Value) -> Result<Json> {
    if config.get("text_config").is_none_or(Json::is_null) {
        return Ok(config::with_defaults(config, defaults));
    }
    let text = &config::text(config)?;
    let outer = json!({"vocab_size": config.get("vocab_size")});
    let defaults = config::with_defaults(&nested_defaults.into(), defaults);
    Ok(config::with_defaults(&config::with_defaults(text, outer), defaults))
}

/// The rotary embeddings of sliding-window and of full layers.
pub fn ropes(c: &Text, config: &Json) -> Result<(Rope, Rope)> {
    let scaling: Option<RopeScaling> = config::field(config, "rope_scaling")?;
    let nested: Option<RopeScaling> = config::field(config, "rope_parameters")?;
    let RopeScaling { sliding_attention, full_attention, .. } = nested.unwrap_or_default();
    let rope = |field, own: &Option<Box<RopeScaling>>, scaling: Option<RopeScaling>, base| {
        let given: Option<Positive> = config::field(config, field)?;
        let nested = own.as_ref().and_then(|own| own.rope_theta);
        let base = nested.or(given.map(f32::from)).unwrap_or(base);
        let scaling = scaling.as_ref().or(own.as_deref());
        Rope::scaled(c.head_dim(), base, false, scaling, c.max_position_embeddings)
    };
    Ok((
        rope("rope_local_base_freq", &sliding_attention, None, 10_000.0)?,
        rope("rope_theta", &full_attention, scaling, 1_000_000.0)?,
    ))
}

/// The models were trained in bfloat16 and expect this factor in its rounding.
fn bfloat16(value: f32) -> Result<f32> {
    Ok(mlx::scalar(value, Dtype::Bfloat16)?.as_dtype(Dtype::Float32)?.try_item_cast()?)
}

/// `x + y`, clamped to the range of float16, which weights trained in bfloat16 can exceed.
pub fn saturating_sum(x: &Array, y: &Array) -> Result<Array> {
    if x.dtype() != Dtype::Float16 {
        return Ok(x.add(y)?);
    }
    let sum = x.as_dtype(Dtype::Float32)?.add(y.as_dtype(Dtype::Float32)?)?;
    let largest = 65504.0;
    let cut = ops::clip(&sum, (Array::from_f32(-largest), Array::from_f32(largest)))?;
    Ok(cut.as_dtype(Dtype::Float16)?)
}
