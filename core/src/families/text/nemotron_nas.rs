//! Llama-Nemotron Super and Ultra: Llama from which an architecture search has taken parts. Each
//! layer's attention and network is of its own width, a single matrix, or nothing. Follows
//! `nemotron-nas` of mlx-lm, and NVIDIA's own code where attention has windows.

use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["nemotron_nas", "nemotron-nas"], build };

#[derive(Deserialize)]
struct Config {
    block_configs: Vec<BlockConfig>,
    hidden_act: String,
}

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
    // Configs write null for what each layer has its own of.
    let own = json!({"intermediate_size": 1, "num_key_value_heads": null, "head_dim": null});
    let defaults = json!({
        "hidden_act": "silu", "rope_theta": 500_000.0, "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
    let config = &config::with_defaults(&own, config::with_defaults(config, defaults));
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    if e.block_configs.len() != c.num_hidden_layers as usize {
        let reason = format!("{} entries for {} layers", e.block_configs.len(), c.num_hidden_layers);
        return Err(Error::config("block_configs", reason));
    }
    let (act, rope) = (activation::named("hidden_act", &e.hidden_act)?, Rope::of(&c)?);
    let (body, head) = body(w);
    let mut blocks = Vec::new();
    for (i, BlockConfig { attention, ffn }) in e.block_configs.iter().enumerate() {
        let w = body.at("layers").at(i);
        let at = |field: &str| format!("block_configs[{i}].{field}");
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        if !attention.no_op {
            let (norm, a) = (norm("input_layernorm")?, w.at("self_attn"));
            blocks.push(if attention.replace_with_linear {
                Block::new(Residual::pre(norm, matrix(&a, &c, "linear_attn")?))
            } else {
                let sizes = attention.sizes(&c, at)?;
                let layer = Attention::read(&a, QKVO, &sizes, rope.clone())?;
                Block::new(Residual::pre(norm, layer.window(attention.window_length.map(i32::from))))
            });
        }
        if !ffn.no_op {
            let (norm, m) = (norm("post_attention_layernorm")?, w.at("mlp"));
            blocks.push(if ffn.replace_with_linear {
                Block::new(Residual::pre(norm, matrix(&m, &c, "linear_mlp")?))
            } else {
                let multiplier =
                    ffn.ffn_mult.ok_or_else(|| Error::config(at("ffn.ffn_mult"), "missing"))?;
                let inner = width(*multiplier, c.hidden_size)?;
                Block::new(Residual::pre(norm, Mlp::sized(&m, &c, inner, gated(act))?))
            });
        }
    }
    Ok(Box::new(Decoder {
        embedding: body.embedding("embed_tokens", c.vocab_size, c.hidden_size)?,
        embedding_scale: None,
        blocks,
        norm: body.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?,
        head: Head::of(&head, &c)?,
    }))
}

impl AttentionConfig {
    /// The sizes of a layer with heads.
    fn sizes(&self, c: &Text, at: impl Fn(&str) -> String) -> Result<Text> {
        if self.num_sink_tokens.is_some() {
            let reason = "windows that keep the first tokens are not supported";
            return Err(Error::config(at("attention.num_sink_tokens"), reason));
        }
        let group = self.n_heads_in_group.filter(|group| c.num_attention_heads % **group == 0);
        let Some(Size(group)) = group else {
            let reason = format!("missing, or does not divide the {} heads", c.num_attention_heads);
            return Err(Error::config(at("attention.n_heads_in_group"), reason));
        };
        let mut sizes = c.clone();
        sizes.num_key_value_heads = Some(c.num_attention_heads / group);
        Ok(sizes)
    }
}

/// Two thirds of the multiple, rounded up to a multiple of 256.
fn width(multiplier: f64, hidden: i32) -> Result<i32> {
    let rounded = (multiplier * 1e6).round() / 1e6;
    // A cast of what is too large gives the largest number, which the product refuses.
    let width = (2.0 * rounded * f64::from(hidden) / 3.0) as i32;
    let blocks = width / 256 + i32::from(width % 256 > 0);
    config::product("ffn_mult", [blocks, 256])
}

/// A matrix in place of attention or a network. Published files have names of their own for it,
/// mlx-lm calls all `linear`.
fn matrix(w: &Scope, c: &Text, published: &str) -> Result<impl Layer + 'static> {
    let name = if w.has_below(published) { published } else { "linear" };
    let linear = w.linear(name, c.hidden_size, c.hidden_size)?;
    Ok(Map(move |x: &Array| linear.forward(x)))
}
