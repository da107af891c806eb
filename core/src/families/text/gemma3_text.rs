//! Gemma 3: four norms a block that store `w` and mean `1 + w`, normalised queries and keys, five
//! sliding layers for each full one, with their own rotary bases. Follows `gemma3_text` of mlx-lm.

use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["gemma3_text", "gemma3"], build };

#[derive(Deserialize)]
struct Bases {
    rope_theta: Option<Positive>,
    rope_local_base_freq: Option<Positive>,
    rope_scaling: Option<config::RopeScaling>,
    rope_parameters: Option<RopeParameters>,
}

#[derive(Deserialize)]
struct Config {
    query_pre_attn_scalar: Positive,
    sliding_window_pattern: Option<Size>,
    use_bidirectional_attention: bool,
}

/// Transformers 5 nests the rotary bases by kind of layer.
#[derive(Deserialize)]
struct RopeParameters {
    full_attention: Option<config::RopeScaling>,
    sliding_attention: Option<config::RopeScaling>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = text_config(config, json!({
        "hidden_size": 1152, "num_hidden_layers": 26, "intermediate_size": 6912,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
        "rms_norm_eps": 1e-6, "vocab_size": 262144, "query_pre_attn_scalar": 256.0,
        "sliding_window": 512, "max_position_embeddings": 32768, "use_bidirectional_attention": false,
    }), json!({"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4}))?;
    let config = &config;
    let e: Config = config::read(config)?;
    if e.use_bidirectional_attention {
        let reason = "a model of embeddings, which writes no text";
        return Err(Error::config("use_bidirectional_attention", reason));
    }
    let mut c = Text::read(&without(config, &["rope_parameters", "rope_theta", "rope_scaling"]))?;
    ignore_parts(w, &["vision_tower", "multi_modal_projector"]);
    // Published checkpoints leave the head to the embedding without saying so.
    c.tie_word_embeddings = None;
    let kinds = c.layer_types.is_some() && e.sliding_window_pattern.is_none();
    let pattern = e.sliding_window_pattern.map_or(6, i32::from);
    let is_full = |i| -> Result<bool> {
        if kinds { Ok(c.window(i)?.is_none()) } else { Ok((i + 1) % pattern == 0) }
    };
    let (local, global) = ropes(&c, config)?;
    let scores = Scores { scale: e.query_pre_attn_scalar.powf(-0.5), sinks: None };
    let decoder = Decoder::stack(w, &c, |i, w| {
        let norm = |w: &Scope, name, width| w.rms_norm(name, width, c.rms_norm_eps)?.plus_one();
        let block_norm = |name| norm(w, name, c.hidden_size);
        let (rope, window) =
            if is_full(i)? { (&global, None) } else { (&local, c.sliding_window) };
        let a = w.at("self_attn");
        let attention = Attention::read(&a, QKVO, &c, rope.clone())?
            .qk_norm(QkNorm::BeforeRope(
                norm(&a, "q_norm", c.head_dim())?,
                norm(&a, "k_norm", c.head_dim())?,
            ))
            .scores(scores.clone())
            .window(window);
        let mlp = Mlp::read(&w.at("mlp"), GATE_UP_DOWN, &c, geglu_tanh)?;
        let (attention, mlp) = sandwich(block_norm, FOUR_NORMS, attention, mlp)?;
        Ok(Block::new((attention.joined_by(saturating_sum), mlp.joined_by(saturating_sum))))
    })?;
    Ok(Box::new(Decoder {
        embedding_scale: Some(bfloat16((c.hidden_size as f32).sqrt())?),
        norm: decoder.norm.plus_one()?,
        head: decoder.head.softcap(c.final_logit_softcapping),
        ..decoder
    }))
}

/// The config of the language model, which exports of the whole model nest and complete with
/// other defaults.
pub fn text_config(config: &Json, defaults: Json, nested_defaults: Json) -> Result<Json> {
    let Some(text) = config.get("text_config") else {
        return Ok(config::with_defaults(config, defaults));
    };
    if !text.is_object() {
        return Err(Error::config("text_config", "not an object"));
    }
    let outer = json!({"vocab_size": config.get("vocab_size").or(nested_defaults.get("vocab_size"))});
    let text = config::with_defaults(&outer, text.clone());
    Ok(config::with_defaults(&text, config::with_defaults(&nested_defaults, defaults)))
}

pub fn without(config: &Json, fields: &[&str]) -> Json {
    let mut config = config.clone();
    if let Json::Object(map) = &mut config {
        map.retain(|field, _| !fields.contains(&field.as_str()));
    }
    config
}

/// The rotary embeddings of sliding and of full layers.
pub fn ropes(c: &Text, config: &Json) -> Result<(Rope, Rope)> {
    let e: Bases = config::read(config)?;
    let nested = e.rope_parameters.as_ref();
    let (local, global) = (
        nested.and_then(|p| p.sliding_attention.as_ref()),
        nested.and_then(|p| p.full_attention.as_ref()),
    );
    let base = |own: Option<f32>, nested: Option<&config::RopeScaling>, default| {
        own.or(nested.and_then(|scaling| scaling.rope_theta)).unwrap_or(default)
    };
    let (dims, context) = (c.head_dim(), c.max_position_embeddings);
    let scaling = e.rope_scaling.as_ref().or(global);
    let local_base = base(e.rope_local_base_freq.map(f32::from), local, 10_000.0);
    let global_base = base(e.rope_theta.map(f32::from), global, 1_000_000.0);
    let full = Rope::scaled(dims, global_base, false, scaling, context)?;
    Ok((Rope::scaled(dims, local_base, false, local, context)?, full))
}

/// The models were trained in bfloat16 and expect its rounding of this factor.
fn bfloat16(value: f32) -> Result<f32> {
    Ok(mlx::scalar(value, Dtype::Bfloat16)?.as_dtype(Dtype::Float32)?.try_item_cast()?)
}

/// `x + y`; what leaves float16's range, as it can with weights trained in bfloat16, is cut to its
/// largest value.
fn saturating_sum(x: &Array, y: &Array) -> Result<Array> {
    if x.dtype() != Dtype::Float16 {
        return Ok(x.add(y)?);
    }
    let sum = x.as_dtype(Dtype::Float32)?.add(y.as_dtype(Dtype::Float32)?)?;
    let largest = 65504.0;
    let cut = ops::clip(&sum, (Array::from_f32(-largest), Array::from_f32(largest)))?;
    Ok(cut.as_dtype(Dtype::Float16)?)
}
