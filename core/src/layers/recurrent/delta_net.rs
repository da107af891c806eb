//! The mixers around the gated delta rule: queries, keys and values pass a short convolution, the
//! outputs of heads a norm and a gate.

use crate::{
    checkpoint::{config::product, scope::Scope},
    error::{Error, Result},
    layers::{
        algebra::Layer,
        cache_plan::CachePlan,
        feed_forward::activation::{self, Activation},
        linear::Linear,
        norm::Norm,
        recurrent::{
            conv::CausalConv,
            decay::{Decay, Projections, project},
            gated_delta::{DeltaTokens, delta_rule},
        },
        state::Recurrent,
        step::Step,
    },
};
use mlx_rs::{Array, Dtype, fast, ops};

/// Added to the sum of squares of queries and keys.
const EPS: f32 = 1e-6;

/// The sizes of a mixer.
#[derive(Clone, Copy, Debug)]
pub struct DeltaSizes {
    /// Width of the residual stream.
    pub hidden: i32,
    /// Number of heads of queries and keys.
    pub key_heads: i32,
    /// Number of heads of values; consecutive ones share a key head.
    pub value_heads: i32,
    /// Width of a query and of a key.
    pub key_dim: i32,
    /// Width of a value.
    pub value_dim: i32,
    /// Taps of the convolution.
    pub taps: i32,
}

impl DeltaSizes {
    /// Widths of all queries or keys, and of all values.
    pub fn widths(&self) -> [i32; 2] {
        [self.key_heads * self.key_dim, self.value_heads * self.value_dim]
    }

    /// Checks that the sizes fit together; the fields are those of the config.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault.
    pub fn check(self) -> Result<Self> {
        let DeltaSizes { key_heads, value_heads, key_dim, value_dim, .. } = self;
        product("linear_key_head_dim", [key_heads, key_dim])?;
        product("linear_value_head_dim", [value_heads, value_dim])?;
        if value_heads % key_heads != 0 {
            let reason = format!("does not divide the {value_heads} value heads");
            return Err(Error::config("linear_num_key_heads", reason));
        }
        Ok(self)
    }
}

/// A mixer of heads that follow the gated delta rule.
pub struct DeltaNet {
    /// To queries, keys and values, in this order: one projection, or three.
    pub qkv: Vec<Linear>,
    /// The convolution over all of them.
    pub conv: CausalConv,
    /// The decays of heads or of channels.
    pub decay: Decay,
    /// To the logits of how far the state moves.
    pub beta: Linear,
    /// The most that it moves: up to 1, or up to 2, where its eigenvalues may be negative.
    pub longest: f32,
    /// To the gates of the outputs.
    pub gate: Projections,
    /// The activation of the gates.
    pub squash: Activation,
    /// The norm of each head's output.
    pub norm: Norm,
    /// Back to the stream.
    pub output: Linear,
    /// The sizes.
    pub sizes: DeltaSizes,
}

impl DeltaNet {
    /// Queries, keys and values, `[batch, length, heads, width]`.
    fn heads(&self, x: &Array, last: &mut Recurrent, step: &Step) -> Result<[Array; 3]> {
        let DeltaSizes { key_heads, value_heads, key_dim, value_dim, .. } = self.sizes;
        let parts: Vec<Array> =
            self.qkv.iter().map(|part| part.forward(x)).collect::<Result<_>>()?;
        let mixed = if parts.len() == 1 { parts[0].clone() } else { ops::concatenate(&parts, -1)? };
        let mixed = activation::silu(&self.conv.forward(&mixed, last, step)?)?;
        let [keys, _] = self.sizes.widths();
        let parts = ops::split_at_indices(&mixed, &[keys, 2 * keys], -1)?;
        let split = |a: &Array, heads, width| -> Result<Array> {
            Ok(a.reshape(&[x.dim(0), x.dim(1), heads, width])?)
        };
        let unit = |a: &Array| -> Result<Array> {
            let a = split(a, key_heads, key_dim)?.as_dtype(Dtype::Float32)?;
            // This divides by the root of the mean square.
            Ok(fast::rms_norm(&a, None::<&Array>, EPS / key_dim as f32)?)
        };
        let scale = Array::from_f32((key_dim as f32).powf(-0.5));
        Ok([
            unit(&parts[0])?.multiply(scale.square()?)?,
            unit(&parts[1])?.multiply(scale)?,
            split(&parts[2], value_heads, value_dim)?,
        ])
    }
}

impl Layer for DeltaNet {
    /// Of the convolution, and of the delta rule.
    type State = (Recurrent, Recurrent);

    fn state(&self, _: &CachePlan) -> Self::State {
        Self::State::default()
    }

    fn forward(&self, x: &Array, (last, state): &mut Self::State, step: &Step) -> Result<Array> {
        let [q, k, v] = self.heads(x, last, step)?;
        let beta = ops::sigmoid(self.beta.forward(x)?.as_dtype(Dtype::Float32)?)?;
        let beta =
            if self.longest == 1.0 { beta } else { beta.multiply(Array::from_f32(self.longest))? };
        let tokens = DeltaTokens { q, k, v, log_decay: self.decay.forward(x)?, beta };
        let y = self.norm.forward(&delta_rule(&tokens, state, step)?)?;
        let gates = project(&self.gate, x)?.as_dtype(Dtype::Float32)?.reshape(y.shape())?;
        let y = y.multiply((self.squash)(&gates)?)?.as_dtype(x.dtype())?;
        self.output.forward(&y.reshape(&[x.dim(0), x.dim(1), -1])?)
    }
}

/// The names of a mixer's convolutions.
const SHORT_CONVS: [[&str; 3]; 2] =
    [["q_conv1d", "k_conv1d", "v_conv1d"], ["q_conv.conv", "k_conv.conv", "v_conv.conv"]];

/// Reads the convolutions of queries, keys and values: one for each, or one for all.
///
/// # Errors
/// As [`Scope::tensor`].
pub fn short_convs(w: &Scope, sizes: &DeltaSizes) -> Result<CausalConv> {
    let [keys, values] = sizes.widths();
    let whole = ["conv1d", "qkv_conv.conv"].into_iter().find(|name| w.has_below(name));
    if let Some(name) = whole {
        return CausalConv::read(w, name, 2 * keys + values, sizes.taps, false);
    }
    let [usual, other] = SHORT_CONVS;
    let names = if w.has_below(other[0]) { other } else { usual };
    let kernels = names.iter().zip([keys, keys, values]);
    let kernels = kernels.map(|(name, channels)| w.depthwise(name, channels, sizes.taps));
    let kernel = ops::concatenate(&kernels.collect::<Result<Vec<_>>>()?, 0)?;
    Ok(CausalConv::new(w.keep(kernel), None))
}

/// Reads the projections of queries, keys and values: one for each, or one for all.
///
/// # Errors
/// As [`Scope::linear`].
pub fn short_qkv(w: &Scope, sizes: &DeltaSizes) -> Result<Vec<Linear>> {
    let (hidden, [keys, values]) = (sizes.hidden, sizes.widths());
    if w.has_below("qkv_proj") {
        return Ok(vec![w.linear("qkv_proj", hidden, 2 * keys + values)?]);
    }
    let parts = [("q_proj", keys), ("k_proj", keys), ("v_proj", values)];
    parts.into_iter().map(|(name, width)| w.linear(name, hidden, width)).collect()
}
