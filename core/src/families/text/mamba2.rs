//! Mamba 2 and Codestral Mamba: no attention and no MLP, one recurrent mixer a block. Follows
//! `mamba2` of mlx-lm, whose block norms have the epsilon 1e-5 whatever the config says.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["mamba2"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    head_dim: Size,
    state_size: Size,
    ssm_state_size: Option<Size>,
    n_groups: Size,
    conv_kernel: Size,
    use_bias: bool,
    use_conv_bias: bool,
    time_step_limit: (config::Float, config::Float),
}

const NAMES: &[(&str, &str)] =
    &[("num_heads", "num_attention_heads"), ("layer_norm_epsilon", "rms_norm_eps")];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let e: Config = config::read(config)?;
    // The model has no attention and no MLP, whatever the config says of them.
    let absent = ["num_attention_heads", "num_key_value_heads", "rms_norm_eps"];
    let own = config::without(config, &absent);
    let own = config::with_defaults(&json!({"intermediate_size": 1}).into(), own);
    let c = Text::read_renamed(&own, NAMES)?;
    let (heads, width) = (c.num_attention_heads, c.hidden_size);
    if heads % *e.n_groups != 0 {
        return Err(Error::config("n_groups", format!("does not divide the {heads} heads")));
    }
    let Size(state) = e.ssm_state_size.unwrap_or(e.state_size);
    config::product("state_size", [*e.n_groups, state])?;
    let sizes = Mamba2Sizes {
        hidden: width,
        heads,
        head_dim: *e.head_dim,
        state,
        groups: *e.n_groups,
        taps: *e.conv_kernel,
    };
    let (config::Float(shortest), config::Float(longest)) = e.time_step_limit;
    if shortest.is_nan() || longest.is_nan() || shortest > longest {
        let reason = format!("{shortest} to {longest} is no range");
        return Err(Error::config("time_step_limit", reason));
    }
    let (range, biases) = ((shortest, longest), (e.use_bias, e.use_conv_bias));
    let head = Head::of(w, &c)?;
    let names = Names { embedding: "embeddings", norm: "norm_f", ..Names::default() };
    Ok(Box::new(Decoder::named(&w.at("backbone"), names, &c, head, |_, w| {
        let mixer = Mamba2::read(&w.at("mixer"), sizes, c.rms_norm_eps, range, biases)?;
        Ok(Block::new(Residual::pre(w.rms_norm("norm", width, 1e-5)?, mixer)))
    })?))
}
