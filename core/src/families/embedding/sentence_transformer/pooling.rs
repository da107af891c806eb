//! The pooling of tokens to one vector.

use super::modules::Module;
use crate::{
    families::{
        prelude::*,
        text_encoders::{at, damaged, first, last},
    },
    models::text_batch::TextBatch,
};

/// How the tokens of a text become one vector. Several ways are concatenated.
pub struct Pooling {
    modes: Vec<Mode>,
    include_prompt: bool,
}

#[derive(Clone, Copy, Deserialize)]
enum Mode {
    #[serde(rename = "cls")]
    First,
    #[serde(rename = "max")]
    Max,
    #[serde(rename = "mean")]
    Mean,
    #[serde(rename = "mean_sqrt_len_tokens")]
    MeanSqrtLength,
    #[serde(rename = "weightedmean")]
    WeightedMean,
    #[serde(rename = "lasttoken")]
    Last,
}

/// One way or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Modes {
    One(Mode),
    Several(Vec<Mode>),
}

#[derive(Deserialize)]
pub struct PoolingConfig {
    #[serde(alias = "word_embedding_dimension")]
    embedding_dimension: Size,
    pooling_mode: Option<Modes>,
    include_prompt: Option<bool>,
    // Earlier versions have a switch for each way, which are concatenated in this order.
    pooling_mode_cls_token: Option<bool>,
    pooling_mode_max_tokens: Option<bool>,
    pooling_mode_mean_tokens: Option<bool>,
    pooling_mode_mean_sqrt_len_tokens: Option<bool>,
    pooling_mode_weightedmean_tokens: Option<bool>,
    pooling_mode_lasttoken: Option<bool>,
}

impl PoolingConfig {
    /// The pooling of vectors of this width.
    ///
    /// # Errors
    /// [`Error::Config`] for another width.
    pub fn pooling(self, module: &Module, width: i32) -> Result<Pooling> {
        if *self.embedding_dimension != width {
            let reason = format!("{} of vectors of {width} elements", *self.embedding_dimension);
            return Err(damaged(&module.config(), "embedding_dimension", reason));
        }
        let modes = match self.pooling_mode {
            Some(Modes::One(mode)) => vec![mode],
            Some(Modes::Several(modes)) => modes,
            None => {
                let switches = [
                    (self.pooling_mode_cls_token, Mode::First),
                    (self.pooling_mode_max_tokens, Mode::Max),
                    (self.pooling_mode_mean_tokens, Mode::Mean),
                    (self.pooling_mode_mean_sqrt_len_tokens, Mode::MeanSqrtLength),
                    (self.pooling_mode_weightedmean_tokens, Mode::WeightedMean),
                    (self.pooling_mode_lasttoken, Mode::Last),
                ];
                let on = switches.iter().filter(|(is_on, _)| *is_on == Some(true));
                on.map(|(_, mode)| *mode).collect()
            }
        };
        let modes = if modes.is_empty() { vec![Mode::Mean] } else { modes };
        Ok(Pooling { modes, include_prompt: self.include_prompt.unwrap_or(true) })
    }
}

impl Pooling {
    /// How many vectors of a token's width it concatenates.
    pub fn ways(&self) -> i32 {
        self.modes.len() as i32
    }

    /// `[batch, length, width]` to `[batch, ways · width]`.
    pub fn forward(&self, hidden: &Array, batch: &TextBatch) -> Result<Array> {
        let tokens = batch.tokens(self.include_prompt)?;
        let pooled = self.modes.iter().map(|mode| self.pool(*mode, hidden, &tokens, batch));
        let pooled = pooled.collect::<Result<Vec<_>>>()?;
        Ok(ops::concatenate(&pooled, 1)?)
    }

    fn pool(&self, mode: Mode, x: &Array, tokens: &Array, batch: &TextBatch) -> Result<Array> {
        let visible = tokens.expand_dims(2)?;
        let zero = Array::from_f32(0.0);
        // Padding may be anything, so it is replaced and not multiplied by zero.
        let kept = || ops::select(&visible, x, &zero);
        let counted = || visible.as_dtype(Dtype::Float32);
        let least = Array::from_f32(1e-9);
        Ok(match mode {
            Mode::First if self.include_prompt => first(x)?,
            Mode::First => {
                at(x, &ops::indexing::argmax_axis(tokens.as_dtype(Dtype::Int32)?, 1, true)?)?
            }
            Mode::Last => last(x, batch)?,
            Mode::Max => {
                let hidden = Array::from_f32(f32::NEG_INFINITY);
                ops::select(&visible, x, hidden)?.max_axis(1, false)?
            }
            Mode::Mean | Mode::MeanSqrtLength => {
                let count = ops::maximum(counted()?.sum_axis(1, false)?, least)?;
                let is_mean = matches!(mode, Mode::Mean);
                let divisor = if is_mean { count } else { count.sqrt()? };
                kept()?.sum_axis(1, false)?.divide(divisor)?
            }
            Mode::WeightedMean => {
                let places = ops::arange::<_, f32>(1, batch.length() + 1, None)?;
                let weights = counted()?.multiply(places.expand_dims_axes(&[0, 2])?)?;
                let divisor = ops::maximum(weights.sum_axis(1, false)?, least)?;
                kept()?.multiply(weights)?.sum_axis(1, false)?.divide(divisor)?
            }
        })
    }
}
