//! Llama-Nemotron Super and Ultra: Llama reduced by an architecture search: attention and MLP of
//! each layer have their own width, are a single matrix, or are absent. Follows `nemotron-nas` of
//! mlx-lm, and NVIDIA's own code for sliding windows.

use crate::families::prelude::*;

pub const FAMILY: Family = Family {
    model_types: &["nemotron_nas", "nemotron-nas"],
    build,
    recommended: Recommended::NOTHING,
};

#[derive(Default, Deserialize)]
#[serde(default)]
struct BlockConfig {
    attention: AttentionConfig,
    ffn: FfnConfig,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AttentionConfig {
    no_op: bool,
    replace_with_linear: bool,
    n_heads_in_group: Option<Size>,
    window_length: Option<Size>,
    num_sink_tokens: Option<i32>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FfnConfig {
    no_op: bool,
    replace_with_linear: bool,
    ffn_mult: Option<Positive<f64>>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    // Configs write null where each layer has its own value.
    let own = json!({"intermediate_size": 1, "num_key_value_heads": null, "head_dim": null});
    let defaults = json!({
        "rope_theta": 500_000.0, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false,
    });
    let config = &config::with_defaults(&own.into(), config::with_defaults(config, defaults));
    let c = Text::read(config)?;
    let configs: Vec<BlockConfig> = config::field(config, "block_configs")?;
    config::check_entries("block_configs", Some(&configs), c.num_hidden_layers)?;
    let ((body, head), rope) = (body(w), Rope::of(&c)?);
    let mut blocks = Vec::new();
    for (i, BlockConfig { attention, ffn }) in configs.iter().enumerate() {
        let w = body.at("layers").at(i);
        let at = |field: &str| format!("block_configs[{i}].{field}");
        let TwoNorms { before_mixer, before_ffn } = TWO_NORMS;
        let (a, m) = (w.at("self_attn"), w.at("mlp"));
        if attention.replace_with_linear && !attention.no_op {
            blocks.push(branch(&w, &c, before_mixer, matrix(&a, &c, "linear_attn")?)?);
        } else if !attention.no_op {
            let layer = Attention::read(&a, QKVO, &attention.sizes(&c, at)?, rope.clone())?;
            let layer = layer.window(attention.window_length.map(i32::from));
            blocks.push(branch(&w, &c, before_mixer, layer)?);
        }
        if ffn.replace_with_linear && !ffn.no_op {
            blocks.push(branch(&w, &c, before_ffn, matrix(&m, &c, "linear_mlp")?)?);
        } else if !ffn.no_op {
            let missing = || Error::config(at("ffn.ffn_mult"), "missing");
            let inner = width(*ffn.ffn_mult.ok_or_else(missing)?, c.hidden_size)?;
            let sizes = Text { intermediate_size: inner, ..c.clone() };
            blocks.push(branch(&w, &c, before_ffn, Mlp::of(&m, GATE_UP_DOWN, &sizes)?)?);
        }
    }
    Ok(Box::new(Decoder {
        embedding: body.embedding("embed_tokens", c.vocab_size, c.hidden_size)?,
        embedding_scale: None,
        blocks,
        norm: body.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?,
        head: Head::of(&head, &c)?,
        original_context: c.original_context(),
    }))
}

fn branch(w: &Scope, c: &Text, norm: &str, inner: impl Layer + 'static) -> Result<Block> {
    Ok(Block::new(Residual::pre(w.rms_norm(norm, c.hidden_size, c.rms_norm_eps)?, inner)))
}

impl AttentionConfig {
    /// The sizes of a layer with attention.
    fn sizes(&self, c: &Text, at: impl Fn(&str) -> String) -> Result<Text> {
        if self.num_sink_tokens.is_some() {
            let reason = "attention sinks are not supported";
            return Err(Error::unsupported(at("attention.num_sink_tokens"), reason));
        }
        let group = self.n_heads_in_group.filter(|group| c.num_attention_heads % **group == 0);
        let Some(Size(group)) = group else {
            let reason = format!("missing, or does not divide the {} heads", c.num_attention_heads);
            return Err(Error::config(at("attention.n_heads_in_group"), reason));
        };
        Ok(Text { num_key_value_heads: Some(c.num_attention_heads / group), ..c.clone() })
    }
}

/// Two thirds of the multiple, rounded up to a multiple of 256.
fn width(multiplier: f64, hidden: i32) -> Result<i32> {
    let rounded = (multiplier * 1e6).round() / 1e6;
    // A cast saturates, and the checked product refuses the result.
    let width = (2.0 * rounded * f64::from(hidden) / 3.0) as i32;
    let blocks = width / 256 + i32::from(width % 256 > 0);
    config::product("ffn_mult", [blocks, 256])
}

/// A single matrix in place of attention or MLP. Published checkpoints name it differently for
/// each; mlx-lm calls both `linear`.
fn matrix(w: &Scope, c: &Text, published: &str) -> Result<impl Layer + 'static> {
    let name = if w.has_below(published) { published } else { "linear" };
    let linear = w.linear(name, c.hidden_size, c.hidden_size)?;
    Ok(Map(move |x: &Array| linear.forward(x)))
}
