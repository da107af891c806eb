//! Llama-Nemotron Super and Ultra: Llama from which an architecture search has taken parts. Each
//! layer's attention and network is of its own width, a single matrix, or nothing. Follows
//! `nemotron-nas` of mlx-lm.

use crate::{mlx, prelude::*};

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
    #[serde(deserialize_with = "config::optional_size")]
    n_heads_in_group: Option<i32>,
    window_length: Option<i32>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FfnConfig {
    no_op: bool,
    replace_with_linear: bool,
    #[serde(deserialize_with = "config::optional_positive")]
    ffn_mult: Option<f64>,
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
    let gate = gate(&e.hidden_act)?;
    let rope = Rope::of(&c)?;
    let decoder = Decoder::stack(w, &c, |i, w| {
        let at = |field: &str| format!("block_configs[{i}].{field}");
        let BlockConfig { attention, ffn } = &e.block_configs[i as usize];
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        let matrix = |w: Scope, names: [&str; 2]| {
            let name = names.into_iter().find(|name| w.has_below(name)).unwrap_or(names[0]);
            w.linear(name, c.hidden_size, c.hidden_size).map(Single)
        };
        let ffn: Ffn = if ffn.no_op {
            Box::new(Nothing)
        } else {
            let norm = norm("post_attention_layernorm")?;
            if ffn.replace_with_linear {
                Box::new(Residual::pre(norm, matrix(w.at("mlp"), ["linear", "linear_mlp"])?))
            } else {
                let multiplier = ffn.ffn_mult.ok_or_else(|| Error::config(at("ffn.ffn_mult"), "missing"))?;
                let mut sizes = c.clone();
                sizes.intermediate_size = width(multiplier, c.hidden_size)?;
                Box::new(Residual::pre(norm, Mlp::read(&w.at("mlp"), GATE_UP_DOWN, &sizes, gate)?))
            }
        };
        if attention.no_op {
            return Ok(Block::new(ffn));
        }
        let (norm, a) = (norm("input_layernorm")?, w.at("self_attn"));
        if attention.replace_with_linear {
            let single = matrix(a, ["linear", "linear_attn"])?;
            return Ok(Block::new((Residual::pre(norm, single), ffn)));
        }
        if attention.window_length.is_some() {
            return Err(Error::config(at("attention.window_length"), "windows are not supported"));
        }
        let group = attention.n_heads_in_group.filter(|group| c.num_attention_heads % group == 0);
        let Some(group) = group else {
            let reason = format!("missing, or does not divide the {} heads", c.num_attention_heads);
            return Err(Error::config(at("attention.n_heads_in_group"), reason));
        };
        let mut sizes = c.clone();
        sizes.num_key_value_heads = Some(c.num_attention_heads / group);
        let attention = Attention::read(&a, QKVO, &sizes, rope.clone())?;
        Ok(Block::new((Residual::pre(norm, attention), ffn)))
    })?;
    Ok(Box::new(decoder))
}

/// Two thirds of the multiple, rounded up to a multiple of 256.
fn width(multiplier: f64, hidden: i32) -> Result<i32> {
    let rounded = (multiplier * 1e6).round() / 1e6;
    // A cast of what is too large gives the largest number, which the product refuses.
    let width = (2.0 * rounded * f64::from(hidden) / 3.0) as i32;
    let blocks = width / 256 + i32::from(width % 256 > 0);
    config::product("ffn_mult", [blocks, 256])
}

fn gate(activation: &str) -> Result<fn(&Array, &Array) -> Result<Array>> {
    Ok(match activation {
        "silu" => swiglu,
        "relu" => |gate, up| Ok(ops::maximum(gate, mlx::scalar(0.0, gate.dtype())?)?.multiply(up)?),
        "gelu" => geglu,
        "gelu_new" | "gelu_fast" => geglu_tanh,
        _ => return Err(Error::config("hidden_act", format!("`{activation}` is not known"))),
    })
}

/// A matrix in place of attention or a network.
struct Single(Linear);

impl Layer for Single {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        self.0.forward(x)
    }
}

/// The place of a network that is gone.
struct Nothing;

impl Layer for Nothing {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        Ok(x.clone())
    }
}
