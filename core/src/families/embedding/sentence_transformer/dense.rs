//! A dense layer before or after the pooling.

use super::modules::{Change, Module, check_place};
use crate::{
    families::{
        Checkpoint,
        prelude::*,
        text_encoders::{damaged, unsupported},
    },
    layers::feed_forward::activation::Activation,
};

#[derive(Deserialize)]
pub struct DenseConfig {
    in_features: Size,
    out_features: Size,
    bias: Option<bool>,
    activation_function: Option<String>,
    module_input_name: Option<String>,
    module_output_name: Option<String>,
    use_residual: Option<bool>,
}

impl DenseConfig {
    /// How many elements its output has.
    pub fn width(&self) -> i32 {
        *self.out_features
    }

    /// An error unless it fits vectors of this width.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::Unsupported`] about a field.
    pub fn check(&self, module: &Module, width: i32, is_pooled: bool) -> Result<()> {
        if *self.in_features != width {
            let reason = format!("{} of vectors of {width} elements", *self.in_features);
            return Err(damaged(&module.config(), "in_features", reason));
        }
        check_place(module, self.module_input_name.as_deref(), is_pooled)?;
        let input = self.module_input_name.as_deref().unwrap_or("sentence_embedding");
        if self.module_output_name.as_deref().is_some_and(|output| output != input) {
            let reason = "another place than the input's is not supported";
            return Err(unsupported(&module.config(), "module_output_name", reason));
        }
        Ok(())
    }

    /// The layer; conversions put the one number `index` beside the encoder.
    pub fn layer(&self, module: &Module, index: i32, checkpoint: &Checkpoint) -> Result<Change> {
        let (input, output) = (*self.in_features, *self.out_features);
        let activation = self.activation(module)?;
        let (w, name) = match checkpoint.weights.at("dense") {
            converted if converted.has_below(&index.to_string()) => (converted, index.to_string()),
            _ => (module.weights(checkpoint)?, "linear".into()),
        };
        let read = if self.bias.unwrap_or(true) { Scope::linear_with_bias } else { Scope::linear };
        let linear = read(&w, &name, input, output)?;
        let is_residual = self.use_residual == Some(true);
        let shortcut = (is_residual && input != output)
            .then(|| w.linear("residual", input, output))
            .transpose()?;
        Ok(Box::new(move |x: &Array| {
            let y = activation(&linear.forward(x)?)?;
            Ok(match &shortcut {
                Some(shortcut) => y.add(shortcut.forward(x)?)?,
                None if is_residual => y.add(x)?,
                None => y,
            })
        }))
    }

    /// The activation, which the config names by its class in PyTorch; tanh where it names none.
    fn activation(&self, module: &Module) -> Result<Activation> {
        let class = self.activation_function.as_deref().unwrap_or("Tanh");
        let name = match class.rsplit('.').next().unwrap_or(class) {
            "Identity" => "linear",
            "Tanh" => "tanh",
            "GELU" => "gelu",
            "ReLU" => "relu",
            "ReLU6" => "relu6",
            "SiLU" => "silu",
            "Sigmoid" => "sigmoid",
            "Mish" => "mish",
            "LeakyReLU" => "leaky_relu",
            _ => {
                let reason = format!("`{class}` is not supported");
                return Err(unsupported(&module.config(), "activation_function", reason));
            }
        };
        activation::named("activation_function", name)
    }
}
