//! The transducers of Parakeet: an LSTM over the tokens so far, joined with each position of the encoder.

use crate::{
    families::prelude::*,
    layers::audio::{ctc::CtcToken, lstm::Lstm},
};
use mlx_rs::ops::indexing::argmax_axis;

/// Positions that one token skips at most.
const LONGEST: i64 = 1 << 16;

/// The sizes of a transducer, and how it decodes.
pub struct TransducerSizes {
    /// The width of the recurrent network.
    pub tokens: i32,
    /// The width in which tokens and audio meet.
    pub joint: i32,
    /// Recurrent layers.
    pub layers: i32,
    pub activation: activation::Activation,
    /// How many positions each duration skips; none in a plain transducer.
    pub durations: Vec<i64>,
    pub limit: Limit,
    /// The token that stands before the text; without one, zeros do.
    pub first: Option<u32>,
}

/// What ends a text that would go on without reading the audio.
#[derive(Clone, Copy)]
pub enum Limit {
    /// The most tokens of a position.
    OfPosition(usize),
    /// The most tokens of a text, per position.
    OfText(usize),
}

/// A recurrent network over the tokens so far, and what joins it with the encoder.
pub struct Transducer {
    embedding: Embedding,
    layers: Vec<Lstm>,
    from_tokens: Linear,
    from_audio: Linear,
    joint: Linear,
    sizes: TransducerSizes,
}

impl Transducer {
    /// Reads a transducer over an encoder of this width, with a vocabulary that includes the blank.
    pub fn read(w: &Scope, sizes: TransducerSizes, width: i32, vocabulary: i32) -> Result<Self> {
        let TransducerSizes { tokens, joint, .. } = sizes;
        let (p, j) = (w.at("decoder.prediction"), w.at("joint"));
        let rnn = p.at("dec_rnn.lstm");
        let outputs = vocabulary + sizes.durations.len() as i32;
        Ok(Transducer {
            embedding: p.embedding("embed", vocabulary, tokens)?,
            layers: (0..sizes.layers)
                .map(|i| rnn.lstm_layer(i, tokens, tokens))
                .collect::<Result<_>>()?,
            from_tokens: j.linear_with_bias("pred", tokens, joint)?,
            from_audio: j.linear_with_bias("enc", width, joint)?,
            joint: j.linear_with_bias("joint_net.2", joint, outputs)?,
            sizes,
        })
    }

    /// A step of the recurrent network after a token.
    fn step(&self, token: Option<u32>, states: &mut [Recurrent]) -> Result<Array> {
        let mut x = self.embedding.lookup(&Array::from_slice(&[token.unwrap_or(0)], &[1, 1]))?;
        if token.is_none() {
            x = ops::zeros_like(&x)?;
        }
        for (layer, state) in self.layers.iter().zip(states) {
            x = layer.run(&x, state)?;
        }
        Ok(self.from_tokens.forward(&x)?.squeeze_axes(&[0])?)
    }

    /// The tokens of the output of an encoder `[1, positions, width]`, without blanks.
    pub fn decode(&self, encoded: &Array, blank: u32) -> Result<Vec<CtcToken>> {
        let audio = self.from_audio.forward(encoded)?.squeeze_axes(&[0])?;
        let positions = audio.dim(0) as usize;
        let (most_here, most_steps) = match self.sizes.limit {
            Limit::OfPosition(most) => (most, usize::MAX),
            Limit::OfText(most) => (usize::MAX, most.saturating_mul(positions) - 1),
        };
        let mut states: Vec<Recurrent> = self.layers.iter().map(|_| Recurrent::default()).collect();
        let mut output = self.step(self.sizes.first, &mut states)?;
        let (mut tokens, mut at, mut symbols, mut steps) = (Vec::new(), 0, 0, 0);
        while at < positions && steps < most_steps {
            let x = mlx::slice(&audio, 0, at as i32, at as i32 + 1)?.add(&output)?;
            let (id, logprob, skipped) = self.choose(&x, at)?;
            if id != blank {
                tokens.push(CtcToken { id, logprob, start: at, end: at + skipped.unwrap_or(1) });
                output = self.step(Some(id), &mut states)?;
            }
            // A blank goes on in any case.
            let skipped = skipped.unwrap_or(0).max(usize::from(id == blank));
            at += skipped;
            steps += 1;
            symbols = if skipped == 0 { symbols + 1 } else { 0 };
            if symbols >= most_here {
                (at, symbols) = (at + 1, 0);
            }
        }
        Ok(tokens)
    }

    /// The most probable token after a joint state `[1, joint]`, its log-probability, and how many
    /// positions it skips, where the model has durations.
    fn choose(&self, x: &Array, at: usize) -> Result<(u32, f32, Option<usize>)> {
        let logits = self.joint.forward(&(self.sizes.activation)(x)?)?.as_dtype(Dtype::Float32)?;
        let durations = &self.sizes.durations;
        let size = logits.dim(1) - durations.len() as i32;
        let own = mlx::slice(&logits, 1, 0, size)?;
        let logprobs = own.subtract(own.logsumexp_axis(-1, true)?)?;
        let best = argmax_axis(&logprobs, -1, true)?;
        let logprob: f32 = take_along_axis(&logprobs, &best, -1)?.try_item_cast()?;
        let id: u32 = best.try_item_cast()?;
        if logprob.is_nan() {
            return Err(Error::NotANumber { position: at });
        }
        if durations.is_empty() {
            return Ok((id, logprob, None));
        }
        let choice: u32 =
            argmax_axis(mlx::slice(&logits, 1, size, logits.dim(1))?, -1, true)?.try_item_cast()?;
        let skipped = durations[choice as usize].clamp(0, LONGEST) as usize;
        Ok((id, logprob, Some(skipped)))
    }
}
