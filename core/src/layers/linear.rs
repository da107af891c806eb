//! Layers around one matrix of a checkpoint, dense or quantized: projections, token embeddings, and
//! stacks of experts.

use crate::{
    checkpoint::scope::Scope,
    error::{Error, Result},
    layers::{
        lora::{LoraDelta, TableDeltas},
        rotation::Rotation,
    },
    mlx::{
        matrix::{Matrix, MatrixSizes, StackSizes, cut},
        product::{matmul, matmul_add},
        quantized::Quantized,
    },
};
use mlx_rs::{Array, Dtype, ops};

/// `x · weightᵀ + bias`, and the LoRA delta of an adapter.
pub struct Linear {
    weight: Matrix,
    bias: Option<Array>,
    lora: Option<LoraDelta>,
    rotation: Option<Rotation>,
}

impl Linear {
    /// Dense weights are transposed once, not at every call.
    pub(crate) fn new(weight: Matrix, bias: Option<Array>) -> Self {
        let weight = match weight {
            Matrix::Dense(weight) => Matrix::Dense(weight.t()),
            quantized => quantized,
        };
        Linear { weight, bias, lora: None, rotation: None }
    }

    /// With the rotation of the inputs that the matrix expects.
    fn rotated(self, rotation: Option<Rotation>) -> Self {
        Linear { rotation, ..self }
    }

    pub(crate) fn with_lora(self, lora: Option<LoraDelta>) -> Self {
        Linear { lora, ..self }
    }

    /// `[…, input]` to `[…, output]`.
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        match (&self.lora, &self.bias) {
            (None, bias) => self.multiply(x, bias.as_ref()),
            // A magnitude multiplies the rows of the matrix, not the bias.
            (Some(lora), Some(bias)) if lora.has_magnitude() => {
                Ok(lora.add(x, &self.multiply(x, None)?)?.add(bias)?)
            }
            (Some(lora), bias) => lora.add(x, &self.multiply(x, bias.as_ref())?),
        }
    }

    fn multiply(&self, x: &Array, bias: Option<&Array>) -> Result<Array> {
        let x = match &self.rotation {
            Some(rotation) => &rotation.forward(x)?,
            None => x,
        };
        match (&self.weight, bias) {
            (Matrix::Dense(weight), None) => matmul(x, weight),
            (Matrix::Dense(weight), Some(bias)) => matmul_add(x, weight, bias),
            (Matrix::Quantized(weight), None) => weight.matmul(x),
            (Matrix::Quantized(weight), Some(bias)) => Ok(weight.matmul(x)?.add(bias)?),
        }
    }
}

/// A table `[vocabulary, width]` of token embeddings, which is also the output head where that is
/// tied to it.
pub struct Embedding {
    table: Matrix,
    head: Linear,
    lora: Option<LoraDelta>,
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
        Embedding { table, head, lora: None }
    }

    /// With the rotation of the rows that the table is stored with.
    fn rotated(self, rotation: Option<Rotation>) -> Self {
        Embedding { head: self.head.rotated(rotation), ..self }
    }

    pub(crate) fn with_lora(self, deltas: TableDeltas) -> Self {
        let head = self.head.with_lora(deltas.head);
        Embedding { table: self.table, head, lora: deltas.table }
    }

    pub(crate) fn vocabulary(&self) -> u32 {
        match &self.table {
            Matrix::Dense(table) => table.dim(0) as u32,
            Matrix::Quantized(table) => table.weight.dim(0) as u32,
        }
    }

    /// Token ids `[…]` to rows `[…, width]`.
    pub(crate) fn lookup(&self, ids: &Array) -> Result<Array> {
        let rows = match &self.head.rotation {
            Some(rotation) => rotation.backward(&self.rows(ids)?)?,
            None => self.rows(ids)?,
        };
        match &self.lora {
            Some(lora) => lora.add_to_rows(ids, &rows),
            None => Ok(rows),
        }
    }

    fn rows(&self, ids: &Array) -> Result<Array> {
        let rows = |table: &Array| table.take_axis(ids, 0);
        match &self.table {
            Matrix::Dense(table) => Ok(rows(table)?),
            Matrix::Quantized(table) => {
                // Affine scales have the precision of the model; the scales of other modes are bytes.
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
    lora: Option<LoraDelta>,
}

impl Experts {
    pub(crate) fn new(weight: Matrix, bias: Option<Array>) -> Self {
        let weight = match weight {
            Matrix::Dense(weight) => Matrix::Dense(weight.swap_axes(-1, -2).unwrap_or(weight)),
            quantized => quantized,
        };
        Experts { weight, bias, lora: None }
    }

    pub(crate) fn with_lora(self, lora: Option<LoraDelta>) -> Self {
        Experts { lora, ..self }
    }

    /// The number of experts.
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
        match &self.lora {
            Some(lora) => lora.add_by_expert(x, &y, ids, sorted),
            None => Ok(y),
        }
    }
}

impl Scope {
    /// Reads a projection, dense or quantized as the checkpoint stores it, with its bias if it has one.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::Quantization`].
    pub fn linear(&self, name: &str, input: i32, output: i32) -> Result<Linear> {
        let w = self.at(name);
        let weight = w.keep_matrix(w.matrix(&[output, input])?);
        let lora = w.lora(&weight, MatrixSizes { output, input })?;
        let linear = Linear::new(weight, w.optional("bias", &[output])?);
        Ok(linear.with_lora(lora).rotated(w.rotation(input)?))
    }

    /// As [`Scope::linear`], where a missing bias is an error.
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
        let deltas = w.lora_of_parts(&weight, input, groups, outputs)?;
        let rotation = w.rotation(input)?;
        let mut start = 0;
        let parts = outputs.into_iter().zip(deltas).map(|(output, lora)| -> Result<Linear> {
            let (from, to) = (start, start + output);
            start = to;
            let bias = bias.as_ref().map(|bias| cut(bias, 0, groups, from, to)).transpose()?;
            let weight = w.keep_matrix(weight.rows(groups, from, to)?);
            let linear = Linear::new(weight, bias.map(|bias| w.keep(bias))).with_lora(lora);
            Ok(linear.rotated(rotation.clone()))
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
        let sizes = MatrixSizes { output: vocabulary, input: width };
        let deltas = w.lora_of_table(&table, sizes)?;
        Ok(Embedding::new(table).with_lora(deltas).rotated(w.rotation(width)?))
    }

    /// Reads the matrices of experts: `{stacked}.{name}` in one tensor, or `experts.{i}.{name}` in one
    /// tensor each.
    ///
    /// # Errors
    /// As [`Scope::linear`]; [`Error::Quantization`] when experts differ in their format.
    pub fn experts(&self, stacked: &str, name: &str, sizes: StackSizes) -> Result<Experts> {
        self.experts_named(ExpertNames { stacked, split: "experts" }, name, sizes)
    }

    /// As [`Scope::experts`], with other names of the stack and of the single experts.
    ///
    /// # Errors
    /// As [`Scope::experts`].
    pub fn experts_named(
        &self,
        names: ExpertNames,
        name: &str,
        sizes: StackSizes,
    ) -> Result<Experts> {
        let StackSizes { experts, input, output } = sizes;
        let (w, split) = (self.at(names.stacked).at(name), self.at(names.split));
        let is_split = ["0", "1"].iter().any(|expert| split.has_below(expert));
        let expert = |i| split.at(i).at(name);
        let lora = w.lora_of_experts(expert, sizes)?;
        if !is_split || self.at(names.stacked).has_below(name) {
            let weight = w.keep_matrix(w.matrix(&[experts, output, input])?.for_experts()?);
            let bias = w.optional("bias", &[experts, output])?;
            return Ok(Experts::new(weight, bias).with_lora(lora));
        }
        let weights =
            (0..experts).map(|i| expert(i).matrix(&[output, input])).collect::<Result<_>>()?;
        let weight = self.keep_matrix(self.stack(weights)?.for_experts()?);
        let bias = if expert(0).has("bias") {
            let biases = (0..experts).map(|i| expert(i).take("bias", &[output]));
            Some(self.keep(ops::stack(&biases.collect::<Result<Vec<_>>>()?, 0)?))
        } else {
            None
        };
        Ok(Experts::new(weight, bias).with_lora(lora))
    }

    /// Adds the LoRA delta that the adapter has under the usual name of a stack,
    /// `experts.{name}`, if it has one.
    pub(crate) fn with_expert_lora(
        &self,
        experts: Experts,
        name: &str,
        sizes: StackSizes,
    ) -> Result<Experts> {
        let stack = self.at("experts");
        let lora = stack.at(name).lora_of_experts(|i| stack.at(i).at(name), sizes)?;
        Ok(if lora.is_some() { experts.with_lora(lora) } else { experts })
    }
}

/// The places of the matrices of experts in a checkpoint.
pub struct ExpertNames<'a> {
    /// The matrices of all experts, stacked, are below this name.
    pub stacked: &'a str,
    /// The matrices of expert `i` are below `{split}.{i}`.
    pub split: &'a str,
}
