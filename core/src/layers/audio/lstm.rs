//! Long short-term memory ([Hochreiter and Schmidhuber 1997](https://doi.org/10.1162/neco.1997.9.8.1735)),
//! with gates in the order of torch: input, forget, cell, output.

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{algebra::Layer, cache_plan::CachePlan, state::Recurrent, step::Step},
    mlx,
};
use mlx_rs::{Array, ops};

/// One layer in one direction.
pub struct Lstm {
    /// `[input, 4 * width]`.
    input: Array,
    /// `[width, 4 * width]`.
    recurrent: Array,
    /// `[4 * width]`.
    bias: Array,
    width: i32,
}

impl Scope {
    /// Reads an LSTM in the names of torch, `weight_ih{suffix}`; the suffix is `_l0` for the first layer,
    /// and `_l0_reverse` for its second direction.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn lstm(&self, suffix: &str, input: i32, width: i32) -> Result<Lstm> {
        let name = |part: &str| format!("{part}{suffix}");
        let gates = 4 * width;
        let bias = self.take(&name("bias_ih"), &[gates])?;
        let bias = bias.add(self.take(&name("bias_hh"), &[gates])?)?;
        Ok(Lstm {
            input: self.tensor(&name("weight_ih"), &[gates, input])?.t(),
            recurrent: self.tensor(&name("weight_hh"), &[gates, width])?.t(),
            bias: self.keep(bias),
            width,
        })
    }

    /// Reads an LSTM in the names of MLX, `Wx`, `Wh` and `bias`.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn mlx_lstm(&self, input: i32, width: i32) -> Result<Lstm> {
        let gates = 4 * width;
        Ok(Lstm {
            input: self.tensor("Wx", &[gates, input])?.t(),
            recurrent: self.tensor("Wh", &[gates, width])?.t(),
            bias: self.tensor("bias", &[gates])?,
            width,
        })
    }
}

impl Scope {
    /// Reads a layer of a stack of LSTMs in one direction, in the names of torch or of MLX.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn lstm_layer(&self, layer: i32, input: i32, width: i32) -> Result<Lstm> {
        match self.at(layer).exists() {
            true => self.at(layer).mlx_lstm(input, width),
            false => self.lstm(&format!("_l{layer}"), input, width),
        }
    }
}

/// One layer in both directions.
pub struct BiLstm {
    forward: Lstm,
    backward: Lstm,
}

impl Scope {
    /// Reads the first layer of an LSTM in both directions, in the names of torch.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn bi_lstm(&self, input: i32, width: i32) -> Result<BiLstm> {
        Ok(BiLstm {
            forward: self.lstm("_l0", input, width)?,
            backward: self.lstm("_l0_reverse", input, width)?,
        })
    }
}

impl BiLstm {
    /// A whole sequence `[batch, length, input]` to `[batch, length, 2 * width]`.
    pub(crate) fn run(&self, x: &Array) -> Result<Array> {
        let forward = self.forward.run(x, &mut Recurrent::default())?;
        Ok(ops::concatenate(&[forward, self.backward.run_backwards(x)?], -1)?)
    }
}

impl Lstm {
    /// `[batch, length, input]` to hidden states `[batch, length, width]`, after the state
    /// `[batch, 2 * width]` of hidden and cell.
    pub(crate) fn run(&self, x: &Array, state: &mut Recurrent) -> Result<Array> {
        let (batch, width) = (x.dim(0), self.width);
        let mut past = match state.take() {
            Some(past) => past.split_equal(2, -1)?,
            None => vec![ops::zeros_dtype(&[batch, width], x.dtype())?; 2],
        };
        let inputs = ops::addmm(&self.bias, x, &self.input, None, None)?;
        let mut hidden = Vec::with_capacity(x.dim(1) as usize);
        for t in 0..x.dim(1) {
            let input = mlx::slice(&inputs, 1, t, t + 1)?.squeeze_axes(&[1])?;
            past = self.advance(&input, &past[0], &past[1])?;
            hidden.push(past[0].clone());
        }
        state.set(ops::concatenate(&past, -1)?);
        Ok(ops::stack(&hidden, 1)?)
    }

    /// As [`Lstm::run`], from the last step to the first and without a state.
    pub(crate) fn run_backwards(&self, x: &Array) -> Result<Array> {
        let order = ops::arange::<_, i32>(x.dim(1) - 1, -1, -1)?;
        let y = self.run(&x.take_axis(&order, 1)?, &mut Recurrent::default())?;
        Ok(y.take_axis(&order, 1)?)
    }

    /// One step, from the products of the input `[batch, 4 * width]` to hidden and cell.
    fn advance(&self, input: &Array, hidden: &Array, cell: &Array) -> Result<Vec<Array>> {
        let gates = ops::addmm(input, hidden, &self.recurrent, None, None)?.split_equal(4, -1)?;
        let kept = ops::sigmoid(&gates[1])?.multiply(cell)?;
        let cell = kept.add(ops::sigmoid(&gates[0])?.multiply(ops::tanh(&gates[2])?)?)?;
        let hidden = ops::sigmoid(&gates[3])?.multiply(ops::tanh(&cell)?)?;
        Ok(vec![hidden, cell])
    }
}

impl Layer for Lstm {
    type State = Recurrent;
    fn state(&self, _: &CachePlan) -> Recurrent {
        Recurrent::default()
    }
    fn forward(&self, x: &Array, state: &mut Recurrent, _: &Step) -> Result<Array> {
        self.run(x, state)
    }
}
