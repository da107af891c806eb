//! Mamba 2, also Codestral Mamba: no attention and no MLP, one state space model a block. Follows
//! `mamba2` of transformers; that of mlx-lm normalises all groups as one, and its block norms have the
//! epsilon 1e-5 whatever the config says.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["mamba2"], build, recommended: Recommended::NOTHING };

const NAMES: &[(&str, &str)] = &[
    ("num_heads", "mamba_n_heads"),
    ("head_dim", "mamba_d_head"),
    ("n_groups", "mamba_n_groups"),
    ("conv_kernel", "mamba_d_conv"),
    ("use_bias", "mamba_proj_bias"),
    ("use_conv_bias", "mamba_conv_bias"),
];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    config::only(config, json!({"hidden_act": "silu"}))?;
    let is_given = config.get("ssm_state_size").is_some_and(|size| !size.is_null());
    let state = if is_given { "ssm_state_size" } else { "state_size" };
    let mixer = Mamba2Config::read(config, &[NAMES, &[(state, "mamba_d_state")]].concat())?;
    let c = recurrent(config)?;
    let norm = GatedNorm { eps: c.rms_norm_eps, is_before_gate: false };
    decoder(w, &c, |w| Mamba2::read(w, c.hidden_size, &mixer, Some(norm)))
}

/// The fields of a model that has neither attention nor MLPs, whatever the config says of them.
pub fn recurrent(config: &Json) -> Result<Text> {
    let absent =
        ["num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "layer_types"];
    let own = config::without(config, &[&absent[..], &["intermediate_size"]].concat());
    let none = json!({"num_attention_heads": 1, "intermediate_size": 1});
    Text::read_renamed(
        &config::with_defaults(&own, none),
        &[("layer_norm_epsilon", "rms_norm_eps")],
    )
}

/// The model whose blocks are one mixer each.
pub fn decoder<L: Layer + 'static>(
    w: &Scope,
    c: &Text,
    mixer: impl Fn(&Scope) -> Result<L>,
) -> Result<Box<dyn LanguageModel>> {
    let head = Head::of(w, c)?;
    let names = Names { embedding: "embeddings", norm: "norm_f", ..Names::default() };
    Ok(Box::new(Decoder::named(&w.at("backbone"), names, c, head, |_, w| {
        let norm = w.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?;
        Ok(Block::new(Residual::pre(norm, mixer(&w.at("mixer"))?)))
    })?))
}
