//! The mixer of Mamba 2 ([Dao and Gu 2024](https://arxiv.org/abs/2405.21060)): one projection, a short
//! convolution, a state space model, and a gate with a norm of each group. Follows transformers,
//! which has the norms of groups.

use crate::{
    checkpoint::{
        config::{self, Json, Size},
        scope::Scope,
    },
    error::{Error, Result},
    layers::{
        algebra::Layer,
        cache_plan::CachePlan,
        feed_forward::{activation::silu, mlp::swiglu},
        linear::Linear,
        recurrent::{
            conv::CausalConv,
            ssd::{Ssd, SsdInputs, SsdSizes, TimeStepLimit},
        },
        state::Recurrent,
        step::Step,
    },
};
use mlx_rs::{Array, fast, ops};
use serde::Deserialize;
use serde_json::json;

/// The sizes and switches of a mixer, under their most common names.
#[derive(Clone, Debug, Deserialize)]
pub struct Mamba2Config {
    /// Number of heads.
    pub mamba_n_heads: Size,
    /// Width of one head.
    pub mamba_d_head: Size,
    /// Number of groups of heads that share `B` and `C`.
    pub mamba_n_groups: Size,
    /// Width of the state for each element of a head.
    pub mamba_d_state: Size,
    /// Taps of the convolution.
    pub mamba_d_conv: Size,
    /// Whether the convolution has a bias; by default it has.
    pub mamba_conv_bias: Option<bool>,
    /// Whether the projections have biases; by default they have none.
    pub mamba_proj_bias: Option<bool>,
    /// Whether the projection of the output has a bias, where that is said of it alone.
    pub projectors_bias: Option<bool>,
    /// The bounds of the time steps; none by default.
    pub time_step_limit: Option<TimeStepLimit>,
}

impl Mamba2Config {
    /// Reads the fields. Some may have other names: `(theirs, ours)`. Heads of the width `auto` share
    /// `mamba_expand` times the width of the stream.
    ///
    /// # Errors
    /// [`Error::Config`] about the field at fault, with its name in the config.
    pub fn read(config: &Json, names: &[(&str, &str)]) -> Result<Self> {
        config::read_renamed(config, names, |config| {
            let is_auto = |size: &&Json| size.is_null() || size.as_str() == Some("auto");
            let given = config.get("mamba_d_head").filter(|size| !is_auto(size)).cloned();
            let head_dim = given.map_or_else(|| own_head_dim(config), Ok)?;
            let own = config::without(config, &["mamba_d_head"]);
            let defaults = json!({"mamba_d_head": head_dim});
            let c: Self = config::read(&config::with_defaults(&own, defaults))?;
            if *c.mamba_n_heads % *c.mamba_n_groups != 0 {
                let reason = format!("does not divide the {} heads", *c.mamba_n_heads);
                return Err(Error::config("mamba_n_groups", reason));
            }
            config::product("mamba_d_state", [*c.mamba_n_groups, *c.mamba_d_state])?;
            config::product("mamba_d_head", [*c.mamba_n_heads, *c.mamba_d_head])?;
            Ok(c)
        })
    }

    fn sizes(&self) -> SsdSizes {
        SsdSizes {
            heads: *self.mamba_n_heads,
            head_dim: *self.mamba_d_head,
            groups: *self.mamba_n_groups,
            state: *self.mamba_d_state,
        }
    }

    /// The widths of the parts of the first projection: the gate, `x`, `B`, `C` and the time steps.
    pub fn widths(&self) -> [i32; 5] {
        let s = self.sizes();
        let (inner, shared) = (s.heads * s.head_dim, s.groups * s.state);
        [inner, inner, shared, shared, s.heads]
    }
}

fn own_head_dim(config: &Json) -> Result<Json> {
    let heads: Size = config::field(config, "mamba_n_heads")?;
    let inner = match config::field::<Option<Size>>(config, "mamba_d_ssm")? {
        Some(inner) => *inner,
        None => {
            let expand: Option<Size> = config::field(config, "mamba_expand")?;
            let width: Size = config::field(config, "hidden_size")?;
            config::product("mamba_expand", [expand.map_or(2, i32::from), *width])?
        }
    };
    Ok((inner / *heads).into())
}

/// The norm beside the gate of a mixer.
#[derive(Clone, Copy, Debug)]
pub struct GatedNorm {
    /// Added to the mean square.
    pub eps: f32,
    /// Whether the norm comes before the gate.
    pub is_before_gate: bool,
}

/// A Mamba 2 mixer.
pub struct Mamba2 {
    input: Linear,
    /// Factors of what the first projection gives.
    multipliers: Option<Array>,
    conv: CausalConv,
    ssd: Ssd,
    /// The norm and its weight.
    norm: Option<(GatedNorm, Array)>,
    output: Linear,
    c: Mamba2Config,
}

impl Mamba2 {
    /// Reads a mixer for a stream of this width.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(w: &Scope, width: i32, c: &Mamba2Config, norm: Option<GatedNorm>) -> Result<Self> {
        let biased = |bias: bool| if bias { Scope::linear_with_bias } else { Scope::linear };
        let widths = c.widths();
        let [inner, x, b, c_width, _] = widths;
        let limit = c.time_step_limit.unwrap_or(TimeStepLimit::NONE);
        let taps = *c.mamba_d_conv;
        let conv_bias = c.mamba_conv_bias.unwrap_or(true);
        let conv = CausalConv::read(w, "conv1d", x + b + c_width, taps, conv_bias)?;
        let read = |norm| -> Result<_> { Ok((norm, w.at("norm").tensor("weight", &[inner])?)) };
        let bias = c.mamba_proj_bias.unwrap_or(false);
        let output = biased(c.projectors_bias.unwrap_or(bias));
        Ok(Mamba2 {
            input: biased(bias)(w, "in_proj", width, widths.iter().sum())?,
            multipliers: None,
            conv,
            ssd: Ssd::read(w, c.sizes(), limit)?,
            norm: norm.map(read).transpose()?,
            output: output(w, "out_proj", inner, width)?,
            c: c.clone(),
        })
    }

    /// Multiplies what the first projection gives, element by element.
    pub fn multiplied(self, multipliers: Array) -> Self {
        Mamba2 { multipliers: Some(multipliers), ..self }
    }

    /// The gated output `[batch, length, inner]`, normalised group by group.
    fn gate(&self, gate: &Array, y: &Array) -> Result<Array> {
        let Some((norm, weight)) = &self.norm else { return swiglu(gate, y) };
        let y = if norm.is_before_gate { y } else { &swiglu(gate, y)? };
        let groups = ops::unflatten(y, -1, &[*self.c.mamba_n_groups, -1])?;
        let y = fast::rms_norm(&groups, None, norm.eps)?.reshape(y.shape())?.multiply(weight)?;
        if norm.is_before_gate { swiglu(gate, &y) } else { Ok(y) }
    }
}

impl Layer for Mamba2 {
    /// Of the convolution, and of the state space model.
    type State = (Recurrent, Recurrent);

    fn state(&self, _: &CachePlan) -> Self::State {
        Self::State::default()
    }

    fn forward(&self, x: &Array, (last, ssm): &mut Self::State, step: &Step) -> Result<Array> {
        let (batch, length) = (x.dim(0), x.dim(1));
        let mut projected = self.input.forward(x)?;
        if let Some(multipliers) = &self.multipliers {
            projected = projected.multiply(multipliers.as_dtype(projected.dtype())?)?;
        }
        let [inner, _, shared, _, _] = self.c.widths();
        let channels = inner + 2 * shared;
        let parts = ops::split_at_indices(&projected, &[inner, inner + channels], -1)?;
        let (gate, mixed, dt) = (&parts[0], &parts[1], parts[2].clone());
        let mixed = silu(&self.conv.forward(mixed, last, step)?)?;
        let parts = ops::split_at_indices(&mixed, &[inner, inner + shared], -1)?;
        let split = |part: &Array, count: Size| part.reshape(&[batch, length, *count, -1]);
        let inputs = SsdInputs {
            x: split(&parts[0], self.c.mamba_n_heads)?,
            b: split(&parts[1], self.c.mamba_n_groups)?,
            c: split(&parts[2], self.c.mamba_n_groups)?,
            dt,
        };
        let y = self.ssd.scan(inputs, ssm, step)?.reshape(&[batch, length, inner])?;
        self.output.forward(&self.gate(gate, &y)?)
    }
}
