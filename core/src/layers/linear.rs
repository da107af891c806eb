//! Matrices of a checkpoint, dense or quantized, and what is done with them: projections, token
//! tables, stacks of experts.

use crate::{
    checkpoint::scope::Scope,
    error::{Error, Result},
    layers::lora::LoraDelta,
    mlx::{
        matrix::{Matrix, cut},
        quantized::Quantized,
    },
};
use mlx_rs::{Array, Dtype, ops};

/// `x · weightᵀ + bias`, and what an adapter adds to that.
pub struct Linear {
    weight: Matrix,
    bias: Option<Array>,
    added: Option<LoraDelta>,
}

impl Linear {
    /// Dense weights are turned once, not at every call.
    pub(crate) fn new(weight: Matrix, bias: Option<Array>) -> Self {
        let weight = match weight {
            Matrix::Dense(weight) => Matrix::Dense(weight.t()),
            quantized => quantized,
        };
        Linear { weight, bias, added: None }
    }

    pub(crate) fn with_lora(self, added: Option<LoraDelta>) -> Self {
        Linear { added, ..self }
    }

    /// `[…, input]` to `[…, output]`.
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        match (&self.added, &self.bias) {
            (None, bias) => self.multiply(x, bias.as_ref()),
            // Lengths are those of the rows alone.
            (Some(added), Some(bias)) if added.magnitude.is_some() => {
                Ok(added.add(x, &self.multiply(x, None)?)?.add(bias)?)
            }
            (Some(added), bias) => added.add(x, &self.multiply(x, bias.as_ref())?),
        }
    }

    fn multiply(&self, x: &Array, bias: Option<&Array>) -> Result<Array> {
        Ok(match (&self.weight, bias) {
            (Matrix::Dense(weight), None) => ops::matmul(x, weight)?,
            (Matrix::Dense(weight), Some(bias)) => ops::addmm(bias, x, weight, None, None)?,
            (Matrix::Quantized(weight), None) => weight.matmul(x)?,
            (Matrix::Quantized(weight), Some(bias)) => weight.matmul(x)?.add(bias)?,
        })
    }
}

/// A table `[vocabulary, width]` that can also be read backwards, as a tied output head.
pub struct Embedding {
    table: Matrix,
    head: Linear,
    added: Option<LoraDelta>,
}

impl Embedding {
    pub(crate) fn new(table: Matrix) -> Self {
        let head = Linear::new(
            match &table {
                Matrix::Dense(table) => Matrix::Dense(table.clone()),
                Matrix::Quantized(table) => Matrix::Quantized(table.clone()),
            },
            None,
        );
        Embedding { table, head, added: None }
    }

    /// With what an adapter adds to the table, and to that as a head.
    pub(crate) fn with_lora(self, [added, to_head]: [Option<LoraDelta>; 2]) -> Self {
        Embedding { table: self.table, head: self.head.with_lora(to_head), added }
    }

    pub(crate) fn vocabulary(&self) -> u32 {
        match &self.table {
            Matrix::Dense(table) => table.dim(0) as u32,
            Matrix::Quantized(table) => table.weight.dim(0) as u32,
        }
    }

    /// Token ids `[…]` to rows `[…, width]`.
    pub(crate) fn lookup(&self, ids: &Array) -> Result<Array> {
        let rows = self.rows(ids)?;
        match &self.added {
            Some(added) => added.add_to_rows(ids, &rows),
            None => Ok(rows),
        }
    }

    fn rows(&self, ids: &Array) -> Result<Array> {
        let rows = |table: &Array| table.take_axis(ids, 0);
        match &self.table {
            Matrix::Dense(table) => Ok(rows(table)?),
            Matrix::Quantized(table) => {
                // Affine scales carry the precision of the model; the others are bytes.
                let dtype = match table.scales.dtype() {
                    Dtype::Uint8 => None,
                    dtype => Some(dtype),
                };
                let rows = Quantized {
                    weight: rows(&table.weight)?,
                    scales: rows(&table.scales)?,
                    biases: table.biases.as_ref().map(rows).transpose()?,
                    global_scale: table.global_scale.clone(),
                    format: table.format,
                };
                rows.dequantize(dtype)
            }
        }
    }

    /// `[…, width]` to logits `[…, vocabulary]`.
    pub(crate) fn logits(&self, h: &Array) -> Result<Array> {
        self.head.forward(h)
    }
}

/// The same projection of every expert, `[experts, output, input]`.
pub struct Experts {
    weight: Matrix,
    bias: Option<Array>,
    added: Option<LoraDelta>,
}

impl Experts {
    pub(crate) fn new(weight: Matrix, bias: Option<Array>) -> Self {
        let weight = match weight {
            Matrix::Dense(weight) => Matrix::Dense(weight.swap_axes(-1, -2).unwrap_or(weight)),
            quantized => quantized,
        };
        Experts { weight, bias, added: None }
    }

    pub(crate) fn with_lora(self, added: Option<LoraDelta>) -> Self {
        Experts { added, ..self }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> i32 {
        match &self.weight {
            Matrix::Dense(weight) => weight.dim(0),
            Matrix::Quantized(weight) => weight.weight.dim(0),
        }
    }

    /// `[…, 1, input]` through the experts `ids` `[…]`, to `[…, 1, output]`; `sorted` says that the
    /// ids never decrease.
    pub(crate) fn forward(&self, x: &Array, ids: &Array, sorted: bool) -> Result<Array> {
        let y = match &self.weight {
            Matrix::Dense(weight) => {
                let wide = x.as_dtype(weight.dtype())?;
                ops::gather_mm(wide, weight, None::<&Array>, ids, sorted)?.as_dtype(x.dtype())?
            }
            Matrix::Quantized(weight) => weight.gather_matmul(x, ids, sorted)?,
        };
        let y = match &self.bias {
            Some(bias) => y.add(bias.take_axis(ids, 0)?.expand_dims(-2)?)?,
            None => y,
        };
        match &self.added {
            Some(added) => added.add_by_expert(x, &y, ids, sorted),
            None => Ok(y),
        }
    }
}

impl Scope {
    /// Reads a projection, dense or quantized as the checkpoint has it, with its bias if there is one.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::Quantization`].
    pub fn linear(&self, name: &str, input: i32, output: i32) -> Result<Linear> {
        let w = self.at(name);
        let weight = w.keep_matrix(w.matrix(&[output, input])?);
        let added = w.lora(&weight, [output, input])?;
        Ok(Linear::new(weight, w.optional("bias", &[output])?).with_lora(added))
    }

    /// As [`Scope::linear`], for a projection that cannot do without its bias.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn linear_with_bias(&self, name: &str, input: i32, output: i32) -> Result<Linear> {
        self.at(name).require("bias")?;
        self.linear(name, input, output)
    }

    /// Reads projections of one input that the checkpoint stores as one matrix, in this order.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn fused<const N: usize>(
        &self,
        name: &str,
        input: i32,
        outputs: [i32; N],
    ) -> Result<[Linear; N]> {
        self.fused_by_group(name, input, 1, outputs)
    }

    /// As [`Scope::fused`], where that order repeats for each of `groups` parts of the outputs.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn fused_by_group<const N: usize>(
        &self,
        name: &str,
        input: i32,
        groups: i32,
        outputs: [i32; N],
    ) -> Result<[Linear; N]> {
        let w = self.at(name);
        let total = groups * outputs.iter().sum::<i32>();
        let weight = w.matrix(&[total, input])?;
        let bias = w.has("bias").then(|| w.take("bias", &[total])).transpose()?;
        let added = w.lora_of_parts(&weight, input, groups, outputs)?;
        let mut start = 0;
        let parts = outputs.into_iter().zip(added).map(|(output, added)| -> Result<Linear> {
            let (from, to) = (start, start + output);
            start = to;
            let bias = bias.as_ref().map(|bias| cut(bias, 0, groups, from, to)).transpose()?;
            let weight = w.keep_matrix(weight.rows(groups, from, to)?);
            Ok(Linear::new(weight, bias.map(|bias| w.keep(bias))).with_lora(added))
        });
        let parts: Vec<Linear> = parts.collect::<Result<_>>()?;
        parts.try_into().map_err(|_| Error::Internal("as many parts as outputs".into()))
    }

    /// Reads a table of token embeddings.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn embedding(&self, name: &str, vocabulary: i32, width: i32) -> Result<Embedding> {
        let w = self.at(name);
        let table = w.keep_matrix(w.matrix(&[vocabulary, width])?);
        let added = w.lora_of_table(&table, [vocabulary, width])?;
        Ok(Embedding::new(table).with_lora(added))
    }

    /// Reads the matrices of `count` experts: `{stacked}.{name}` in one tensor, or
    /// `experts.{i}.{name}` in one tensor each.
    ///
    /// # Errors
    /// As [`Scope::linear`]; [`Error::Quantization`] when experts differ in their format.
    pub fn experts(
        &self,
        stacked: &str,
        name: &str,
        count: i32,
        input: i32,
        output: i32,
    ) -> Result<Experts> {
        self.experts_named([stacked, "experts"], name, [count, input, output])
    }

    /// As [`Scope::experts`], where the tensors of expert `i` are below `{split}.{i}`.
    ///
    /// # Errors
    /// As [`Scope::experts`].
    pub fn experts_named(
        &self,
        [stacked, split]: [&str; 2],
        name: &str,
        [count, input, output]: [i32; 3],
    ) -> Result<Experts> {
        let (w, split) = (self.at(stacked).at(name), self.at(split));
        let is_split = ["0", "1"].iter().any(|expert| split.has_below(expert));
        let expert = |i| split.at(i).at(name);
        let added = w.lora_of_experts(expert, [count, input, output])?;
        if !is_split || self.at(stacked).has_below(name) {
            let weight = w.keep_matrix(w.matrix(&[count, output, input])?.for_experts()?);
            let bias = w.optional("bias", &[count, output])?;
            return Ok(Experts::new(weight, bias).with_lora(added));
        }
        let weights =
            (0..count).map(|i| expert(i).matrix(&[output, input])).collect::<Result<_>>()?;
        let weight = self.keep_matrix(self.stack(weights)?.for_experts()?);
        let bias = if expert(0).has("bias") {
            let biases = (0..count).map(|i| expert(i).take("bias", &[output]));
            Some(self.keep(ops::stack(&biases.collect::<Result<Vec<_>>>()?, 0)?))
        } else {
            None
        };
        Ok(Experts::new(weight, bias).with_lora(added))
    }

    /// With what the adapter adds to experts here under the name that they have in a stack, if it
    /// knows them by that.
    pub(crate) fn with_expert_lora(
        &self,
        experts: Experts,
        name: &str,
        sizes: [i32; 3],
    ) -> Result<Experts> {
        let stack = self.at("experts");
        let added = stack.at(name).lora_of_experts(|i| stack.at(i).at(name), sizes)?;
        Ok(if added.is_some() { experts.with_lora(added) } else { experts })
    }
}
