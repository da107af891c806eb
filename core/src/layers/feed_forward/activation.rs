//! Elementwise activation functions.

use crate::{
    checkpoint::config::Text,
    error::{Error, Result},
    mlx,
};
use mlx_rs::{Array, ops};

/// The activation between the projections of a feed-forward network.
pub type Activation = fn(&Array) -> Result<Array>;

/// The activation named `name`, in the names of transformers; `field` is the config field, for
/// errors.
///
/// # Errors
/// [`Error::Config`] for an unknown name.
pub fn named(field: &str, name: &str) -> Result<Activation> {
    Ok(match name {
        "gelu" | "gelu_python" => gelu,
        "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh" | "gelu_python_tanh" => {
            gelu_tanh
        }
        "gelu_10" => |x| clip(&gelu(x)?, -10.0, 10.0),
        "hardswish" => |x| {
            let gate = clip(&x.add(constant(3.0, x)?)?, 0.0, 6.0)?;
            Ok(x.multiply(gate.divide(constant(6.0, x)?)?)?)
        },
        "laplace" => |x| {
            let deviation = constant(0.282_095 * std::f32::consts::SQRT_2, x)?;
            let erf = ops::erf(
                x.subtract(constant(std::f32::consts::FRAC_1_SQRT_2, x)?)?.divide(deviation)?,
            )?;
            Ok(erf.add(constant(1.0, x)?)?.multiply(constant(0.5, x)?)?)
        },
        "leaky_relu" => |x| Ok(ops::maximum(x, x.multiply(constant(0.01, x)?)?)?),
        "linear" => |x| Ok(x.clone()),
        "mish" => |x| Ok(x.multiply(ops::tanh(&softplus(x)?)?)?),
        "quick_gelu" => |x| Ok(x.multiply(ops::sigmoid(x.multiply(constant(1.702, x)?)?)?)?),
        "relu" => relu,
        "relu2" => relu_squared,
        "relu6" => |x| clip(x, 0.0, 6.0),
        "sigmoid" => |x| Ok(ops::sigmoid(x)?),
        "silu" | "swish" => silu,
        "sqrtsoftplus" => |x| Ok(softplus(x)?.sqrt()?),
        "tanh" => |x| Ok(ops::tanh(x)?),
        _ => return Err(Error::unsupported(field, format!("`{name}` is not supported"))),
    })
}

/// The activation of a config; SiLU where it names none.
///
/// # Errors
/// As [`named`].
pub fn of(c: &Text) -> Result<Activation> {
    named("hidden_act", c.hidden_act.as_deref().unwrap_or("silu"))
}

fn constant(value: f32, like: &Array) -> Result<Array> {
    mlx::scalar(value, like.dtype())
}

fn clip(x: &Array, least: f32, largest: f32) -> Result<Array> {
    Ok(ops::clip(x, (constant(least, x)?, constant(largest, x)?))?)
}

/// GELU ([Hendrycks and Gimpel 2016](https://arxiv.org/abs/1606.08415)): `x · Φ(x)`.
pub fn gelu(x: &Array) -> Result<Array> {
    let erf = ops::erf(x.divide(constant(std::f32::consts::SQRT_2, x)?)?)?;
    Ok(x.multiply(erf.add(constant(1.0, x)?)?)?.divide(constant(2.0, x)?)?)
}

/// GELU with the tanh approximation.
pub fn gelu_tanh(x: &Array) -> Result<Array> {
    let cube = x.power(constant(3.0, x)?)?;
    let inner = x.add(cube.multiply(constant(0.044_715, x)?)?)?;
    let tanh = ops::tanh(&inner.multiply(constant((2.0 / std::f32::consts::PI).sqrt(), x)?)?)?;
    let half = x.multiply(constant(0.5, x)?)?;
    Ok(half.multiply(tanh.add(constant(1.0, x)?)?)?)
}

/// ReLU: `max(x, 0)`.
pub fn relu(x: &Array) -> Result<Array> {
    Ok(ops::maximum(x, constant(0.0, x)?)?)
}

/// Squared ReLU ([So et al. 2021](https://arxiv.org/abs/2109.08668)).
pub fn relu_squared(x: &Array) -> Result<Array> {
    Ok(relu(x)?.square()?)
}

/// SiLU ([Elfwing et al. 2017](https://arxiv.org/abs/1702.03118)): `x · sigmoid(x)`.
pub fn silu(x: &Array) -> Result<Array> {
    Ok(x.multiply(ops::sigmoid(x)?)?)
}

/// Softplus: `ln(1 + e^x)`.
pub fn softplus(x: &Array) -> Result<Array> {
    Ok(ops::logaddexp(x, constant(0.0, x)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values were computed by transformers.
    #[test]
    fn names_are_those_of_transformers() {
        const X: [f32; 7] = [-7.0, -2.0, -0.5, 0.0, 0.5, 2.0, 12.0];
        const TABLE: &[(&str, [f32; 7])] = &[
            ("gelu", [0.0, -0.0455003, -0.154269, 0.0, 0.345731, 1.9545, 12.0]),
            ("gelu_python", [0.0, -0.0455003, -0.154269, 0.0, 0.345731, 1.9545, 12.0]),
            ("gelu_new", [0.0, -0.0454023, -0.154286, 0.0, 0.345714, 1.9546, 12.0]),
            ("gelu_fast", [0.0, -0.0454023, -0.154286, 0.0, 0.345714, 1.9546, 12.0]),
            ("gelu_accurate", [0.0, -0.0454023, -0.154286, 0.0, 0.345714, 1.9546, 12.0]),
            ("gelu_pytorch_tanh", [0.0, -0.0454023, -0.154286, 0.0, 0.345714, 1.9546, 12.0]),
            ("gelu_python_tanh", [0.0, -0.0454023, -0.154286, 0.0, 0.345714, 1.9546, 12.0]),
            ("gelu_10", [0.0, -0.0455003, -0.154269, 0.0, 0.345731, 1.9545, 10.0]),
            ("hardswish", [0.0, -0.333333, -0.208333, 0.0, 0.291667, 1.66667, 12.0]),
            ("leaky_relu", [-0.07, -0.02, -0.005, 0.0, 0.5, 2.0, 12.0]),
            ("linear", [-7.0, -2.0, -0.5, 0.0, 0.5, 2.0, 12.0]),
            ("mish", [-0.00638026, -0.252501, -0.220744, 0.0, 0.375245, 1.94396, 12.0]),
            ("quick_gelu", [-4.68717e-05, -0.0643414, -0.149612, 0.0, 0.350388, 1.93566, 12.0]),
            ("relu", [0.0, 0.0, 0.0, 0.0, 0.5, 2.0, 12.0]),
            ("relu2", [0.0, 0.0, 0.0, 0.0, 0.25, 4.0, 144.0]),
            ("relu6", [0.0, 0.0, 0.0, 0.0, 0.5, 2.0, 6.0]),
            ("sigmoid", [0.000911051, 0.119203, 0.377541, 0.5, 0.622459, 0.880797, 0.999994]),
            ("silu", [-0.00637736, -0.238406, -0.18877, 0.0, 0.31123, 1.76159, 11.999_926]),
            ("swish", [-0.00637736, -0.238406, -0.18877, 0.0, 0.31123, 1.76159, 11.999_926]),
            ("sqrtsoftplus", [0.0301905, 0.35627, 0.688532, 0.832555, 0.986953, 1.4584, 3.4641]),
            ("tanh", [-0.999998, -0.964028, -0.462117, 0.0, 0.462117, 0.964028, 1.0]),
            ("laplace", [0.0, 0.0, 9.38338e-06, 0.00609446, 0.231421, 0.999998, 1.0]),
        ];
        let x = Array::from_slice(&X, &[7]);
        for (name, expected) in TABLE {
            let y: Vec<f32> =
                mlx::to_vec(&named("hidden_act", name).unwrap()(&x).unwrap()).unwrap();
            for (y, expected) in y.iter().zip(expected) {
                let distance = (y - expected).abs();
                assert!(distance <= 2e-6 + 2e-6 * expected.abs(), "{name}: {y}, not {expected}");
            }
        }
        let error = named("hidden_act", "xielu").err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("config.json: `hidden_act`: `xielu` is not supported"));
    }
}
