//! Mamba 2 and Codestral Mamba: no attention, one mixer a block. Follows `mamba2` of mlx-lm, whose
//! block norms keep the epsilon 1e-5 whatever the config says.

use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["mamba2"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "config::size")]
    hidden_size: i32,
    #[serde(deserialize_with = "config::size")]
    num_hidden_layers: i32,
    #[serde(deserialize_with = "config::size")]
    vocab_size: i32,
    #[serde(deserialize_with = "config::size")]
    num_heads: i32,
    #[serde(deserialize_with = "config::size")]
    head_dim: i32,
    #[serde(deserialize_with = "config::size")]
    state_size: i32,
    #[serde(default, deserialize_with = "config::optional_size")]
    ssm_state_size: Option<i32>,
    #[serde(deserialize_with = "config::size")]
    n_groups: i32,
    #[serde(deserialize_with = "config::size")]
    conv_kernel: i32,
    #[serde(deserialize_with = "config::epsilon")]
    layer_norm_epsilon: f32,
    use_bias: bool,
    use_conv_bias: bool,
    tie_word_embeddings: Option<bool>,
    time_step_limit: (config::Float, config::Float),
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c: Config = config::read(config)?;
    if c.num_heads % c.n_groups != 0 {
        let reason = format!("does not divide the {} heads", c.num_heads);
        return Err(Error::config("n_groups", reason));
    }
    let state = c.ssm_state_size.unwrap_or(c.state_size);
    config::product("head_dim", [c.num_heads, c.head_dim])?;
    config::product("state_size", [c.n_groups, state])?;
    let sizes = Mamba2Sizes {
        hidden: c.hidden_size,
        heads: c.num_heads,
        head_dim: c.head_dim,
        state,
        groups: c.n_groups,
        taps: c.conv_kernel,
    };
    let (width, eps) = (c.hidden_size, c.layer_norm_epsilon);
    let (config::Float(shortest), config::Float(longest)) = c.time_step_limit;
    if shortest.is_nan() || longest.is_nan() || shortest > longest {
        let reason = format!("{shortest} to {longest} is no range");
        return Err(Error::config("time_step_limit", reason));
    }
    let biases = (c.use_bias, c.use_conv_bias);
    let body = w.at("backbone");
    let block = |i| {
        let w = body.at("layers").at(i);
        let mixer = Mamba2::read(&w.at("mixer"), sizes, eps, (shortest, longest), biases)?;
        Ok(Block::new(Residual::pre(w.rms_norm("norm", width, 1e-5)?, mixer)))
    };
    Ok(Box::new(Decoder {
        embedding: body.embedding("embeddings", c.vocab_size, width)?,
        embedding_scale: None,
        blocks: (0..c.num_hidden_layers).map(block).collect::<Result<_>>()?,
        norm: body.rms_norm("norm_f", width, eps)?,
        head: Head::read(w, c.tie_word_embeddings, width, c.vocab_size)?,
    }))
}
