//! The transducers of Parakeet: an LSTM over the tokens so far, joined with each position of the encoder.

use crate::{families::prelude::*, models::speech::Label};
use mlx_rs::ops::indexing::argmax_axis;

/// Positions that one token skips at most.
const LONGEST: u64 = 1 << 16;

/// A recurrent network over the tokens so far, and what joins it with the encoder.
pub struct Transducer {
    embedding: Embedding,
    layers: Vec<Lstm>,
    from_tokens: Linear,
    from_audio: Linear,
    joint: Linear,
    activation: activation::Activation,
    /// How many positions each duration skips; none in a plain transducer.
    durations: Vec<usize>,
    /// The most tokens of a position.
    max_symbols: usize,
}

/// A recurrent layer ([Hochreiter and Schmidhuber 1997](https://doi.org/10.1162/neco.1997.9.8.1735)).
struct Lstm {
    input: Array,
    hidden: Array,
    bias: Array,
}

/// The output of a recurrent layer and its cell, `[1, width]`.
type Memory = [Array; 2];

impl Transducer {
    /// Reads a transducer over an encoder of this width, with `blank` tokens before the blank.
    pub fn read(w: &Scope, config: &Json, width: i32, blank: i32) -> Result<Self> {
        let number = |path: &str| {
            let value = config.pointer(path).and_then(Json::as_i64);
            value.and_then(|value| i32::try_from(value).ok()).filter(|value| *value > 0)
        };
        let missing = |path: &str| Error::config(path[1..].replace('/', "."), "missing");
        let size = |path: &str| number(path).ok_or_else(|| missing(path));
        let (tokens, joint) =
            (size("/decoder/prednet/pred_hidden")?, size("/joint/jointnet/joint_hidden")?);
        let durations = config.pointer("/model_defaults/tdt_durations").and_then(Json::as_array);
        let durations: Vec<usize> = durations
            .map(|list| {
                list.iter().filter_map(|n| Some(n.as_u64()?.min(LONGEST) as usize)).collect()
            })
            .unwrap_or_default();
        let name = config.pointer("/joint/jointnet/activation").and_then(Json::as_str);
        let p = w.at("decoder.prediction");
        let rnn = p.at("dec_rnn.lstm");
        let layers = 0..number("/decoder/prednet/pred_rnn_layers").unwrap_or(1);
        let j = w.at("joint");
        Ok(Transducer {
            embedding: p.embedding("embed", blank + 1, tokens)?,
            layers: layers.map(|i| Lstm::read(&rnn, i, tokens)).collect::<Result<_>>()?,
            from_tokens: j.linear_with_bias("pred", tokens, joint)?,
            from_audio: j.linear_with_bias("enc", width, joint)?,
            joint: j.linear_with_bias("joint_net.2", joint, blank + 1 + durations.len() as i32)?,
            activation: activation::named("activation", name.unwrap_or("relu"))?,
            durations,
            max_symbols: number("/decoding/greedy/max_symbols").unwrap_or(10) as usize,
        })
    }

    /// A step of the recurrent network after a token; nothing stands before the first one.
    fn step(&self, token: Option<u32>, memory: &[Memory]) -> Result<(Array, Vec<Memory>)> {
        let mut x = self.embedding.lookup(&Array::from_slice(&[token.unwrap_or(0)], &[1]))?;
        if token.is_none() {
            x = ops::zeros_like(&x)?;
        }
        let mut next = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let state = layer.step(&x, memory.get(i))?;
            x = state[0].clone();
            next.push(state);
        }
        Ok((self.from_tokens.forward(&x)?, next))
    }

    /// The tokens of the output of an encoder `[1, positions, width]`, with the positions where they
    /// begin and end.
    pub fn decode(&self, encoded: &Array, blank: u32) -> Result<Vec<(Label, usize, usize)>> {
        let audio = self.from_audio.forward(encoded)?.squeeze_axes(&[0])?;
        let (positions, size) = (audio.dim(0) as usize, blank as i32 + 1);
        let mut labels = Vec::new();
        let (mut output, mut memory) = self.step(None, &[])?;
        let (mut at, mut symbols) = (0, 0);
        while at < positions {
            let x = mlx::slice(&audio, 0, at as i32, at as i32 + 1)?.add(&output)?;
            let logits = self.joint.forward(&(self.activation)(&x)?)?.as_dtype(Dtype::Float32)?;
            let own = mlx::slice(&logits, 1, 0, size)?;
            let logprobs = own.subtract(own.logsumexp_axis(-1, true)?)?;
            let best = argmax_axis(&logprobs, -1, true)?;
            let logprob = take_along_axis(&logprobs, &best, -1)?;
            let id: u32 = best.try_item_cast()?;
            let logprob: f32 = logprob.try_item_cast()?;
            if logprob.is_nan() {
                return Err(Error::NotANumber { position: at });
            }
            let skipped = if self.durations.is_empty() {
                usize::from(id == blank)
            } else {
                let durations = mlx::slice(&logits, 1, size, logits.dim(1))?;
                let choice: u32 = argmax_axis(&durations, -1, true)?.try_item_cast()?;
                self.durations[choice as usize]
            };
            if id != blank {
                let label = Label { id, logprob, start: 0.0, end: 0.0 };
                let length = if self.durations.is_empty() { 1 } else { skipped };
                labels.push((label, at, at + length));
                (output, memory) = self.step(Some(id), &memory)?;
            }
            at += skipped;
            symbols = if skipped == 0 { symbols + 1 } else { 0 };
            if symbols >= self.max_symbols {
                (at, symbols) = (at + 1, 0);
            }
        }
        Ok(labels)
    }
}

impl Lstm {
    fn read(w: &Scope, layer: i32, width: i32) -> Result<Self> {
        let (gates, own) = (4 * width, w.at(layer));
        if own.has("Wx") {
            return Ok(Lstm {
                input: own.tensor("Wx", &[gates, width])?,
                hidden: own.tensor("Wh", &[gates, width])?,
                bias: own.tensor("bias", &[gates])?,
            });
        }
        let name = |name: &str| format!("{name}_l{layer}");
        let bias = w.take(&name("bias_ih"), &[gates])?;
        let bias = bias.add(w.take(&name("bias_hh"), &[gates])?)?;
        Ok(Lstm {
            input: w.tensor(&name("weight_ih"), &[gates, width])?,
            hidden: w.tensor(&name("weight_hh"), &[gates, width])?,
            bias: w.keep(bias),
        })
    }

    fn step(&self, x: &Array, memory: Option<&Memory>) -> Result<Memory> {
        let mut gates = x.matmul(self.input.t())?.add(&self.bias)?;
        if let Some([hidden, _]) = memory {
            gates = gates.add(hidden.matmul(self.hidden.t())?)?;
        }
        let parts = gates.split_equal(4, -1)?;
        let [input, forget, output] = [&parts[0], &parts[1], &parts[3]].map(ops::sigmoid);
        let mut cell = input?.multiply(ops::tanh(&parts[2])?)?;
        if let Some([_, before]) = memory {
            cell = cell.add(forget?.multiply(before)?)?;
        }
        Ok([output?.multiply(ops::tanh(&cell)?)?, cell])
    }
}
