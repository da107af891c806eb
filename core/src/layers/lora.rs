//! Adapters in the forward pass: a product of two matrices of low rank, the LoRA delta
//! ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)), which is added to the output of a matrix,
//! and the DoRA magnitude of its rows ([Liu et al. 2024](https://arxiv.org/abs/2402.09353)). The
//! matrix itself stays as it is, so it may be quantized. The arrays of a delta are parameters: they
//! can be replaced, and have gradients.

use crate::{
    checkpoint::{adapter::Adapter, scope::Scope},
    error::Result,
    mlx::{
        self,
        matrix::{Matrix, MatrixSizes, StackSizes, cut},
        parameter::Parameter,
    },
};
use mlx_rs::{Array, Dtype, ops};

/// The LoRA delta of a matrix `[…, output, input]`.
#[derive(Clone)]
pub(crate) struct LoraDelta {
    /// `[…, input, rank]`.
    a: Parameter,
    /// `[…, rank, output]`.
    b: Parameter,
    /// `[]`, float32.
    scale: Parameter,
    /// What multiplies each output of the sum, `[output]`, for DoRA.
    magnitude: Option<Parameter>,
}

impl LoraDelta {
    /// Whether the adapter is a DoRA.
    pub fn has_magnitude(&self) -> bool {
        self.magnitude.is_some()
    }

    /// Adds the delta to `y`, the product of the matrix and `x`.
    pub fn add(&self, x: &Array, y: &Array) -> Result<Array> {
        let z = x.matmul(self.a.value())?.matmul(self.b.value())?;
        let sum = y.add(self.scaled(&z)?.as_dtype(x.dtype())?)?;
        let Some(magnitude) = &self.magnitude else { return Ok(sum) };
        Ok(magnitude.value().as_dtype(x.dtype())?.multiply(sum)?)
    }

    /// Adds the delta to `y`, the rows `ids` of the matrix.
    pub fn add_to_rows(&self, ids: &Array, y: &Array) -> Result<Array> {
        let rows = self.b.value().t().take_axis(ids, 0)?;
        let z = rows.matmul(self.a.value().t())?;
        let sum = y.add(self.scaled(&z)?.as_dtype(y.dtype())?)?;
        let Some(magnitude) = &self.magnitude else { return Ok(sum) };
        let magnitude = magnitude.value().take_axis(ids, 0)?.expand_dims(-1)?;
        Ok(magnitude.as_dtype(y.dtype())?.multiply(sum)?)
    }

    /// Adds the delta to `y`, the products of the matrices `ids` of a stack and `x`.
    pub fn add_by_expert(&self, x: &Array, y: &Array, ids: &Array, sorted: bool) -> Result<Array> {
        let multiply = |x: &Array, w: &Array| ops::gather_mm(x, w, None::<&Array>, ids, sorted);
        let z = multiply(&multiply(x, &self.a.value())?, &self.b.value())?;
        Ok(y.add(self.scaled(&z)?.as_dtype(x.dtype())?)?)
    }

    fn scaled(&self, z: &Array) -> Result<Array> {
        let scale = self.scale.value();
        let scale = if z.dtype() == scale.dtype() { scale } else { scale.as_dtype(z.dtype())? };
        Ok(z.multiply(scale)?)
    }
}

/// The deltas of a table of token embeddings.
pub(crate) struct TableDeltas {
    pub table: Option<LoraDelta>,
    /// That of the output head that is tied to the table.
    pub head: Option<LoraDelta>,
}

/// The arrays of a delta while it is read, in the shapes of [`LoraDelta`].
struct Factors {
    a: Array,
    b: Array,
    magnitude: Option<Array>,
}

impl Factors {
    /// The factors of the matrices of a stack.
    fn stack(parts: &[Factors]) -> Result<Self> {
        let stack = |factor: fn(&Factors) -> &Array| {
            ops::stack(&parts.iter().map(factor).collect::<Vec<_>>(), 0)
        };
        Ok(Factors { a: stack(|part| &part.a)?, b: stack(|part| &part.b)?, magnitude: None })
    }

    /// `b` and magnitude of the rows from `start` to `stop` of each of `groups`.
    fn rows(&self, groups: i32, start: i32, stop: i32) -> Result<[Option<Array>; 2]> {
        let magnitude =
            self.magnitude.as_ref().map(|magnitude| cut(magnitude, 0, groups, start, stop));
        let b = cut(&self.b, self.b.ndim() - 1, groups, start, stop)?;
        Ok([Some(b), magnitude.transpose()?])
    }

    /// As [`Matrix::for_experts`].
    fn for_experts(self) -> Result<Self> {
        if !mlx::is_cpu()? {
            return Ok(self);
        }
        let (a, b) = (self.a.as_dtype(Dtype::Float32)?, self.b.as_dtype(Dtype::Float32)?);
        Ok(Factors { a, b, ..self })
    }
}

/// The shapes of the two factors in the file, by their rank.
type Shapes = dyn Fn(i32) -> [Vec<i32>; 2];

fn projection(sizes: MatrixSizes) -> impl Fn(i32) -> [Vec<i32>; 2] {
    move |rank| [vec![sizes.input, rank], vec![rank, sizes.output]]
}

impl Scope {
    /// The LoRA delta of the matrix here.
    pub(crate) fn lora(&self, matrix: &Matrix, sizes: MatrixSizes) -> Result<Option<LoraDelta>> {
        let Some(factors) = self.factors("", &projection(sizes))? else { return Ok(None) };
        Ok(Some(self.keep_lora(self.with_magnitude(factors, matrix, sizes.output)?)))
    }

    /// The LoRA deltas of the matrices that [`Scope::fused_by_group`] reads from one. The adapter may
    /// have factors for the fused matrix, or for each part.
    pub(crate) fn lora_of_parts<const N: usize>(
        &self,
        matrix: &Matrix,
        input: i32,
        groups: i32,
        outputs: [i32; N],
    ) -> Result<Vec<Option<LoraDelta>>> {
        let output = groups * outputs.iter().sum::<i32>();
        let Some(all) = self.factors("", &projection(MatrixSizes { output, input }))? else {
            let part = |(i, output)| {
                let (suffix, sizes) = (format!(".{i}"), MatrixSizes { output, input });
                let factors = self.factors(&suffix, &projection(sizes))?;
                Ok(factors.map(|factors| self.keep_lora_named(&suffix, factors)))
            };
            return outputs.into_iter().enumerate().map(part).collect();
        };
        let all = self.with_magnitude(all, matrix, output)?;
        let a = self.keep_parameter("lora_a", all.a.clone());
        let mut start = 0;
        let part = |(i, output)| {
            let from = start;
            start += output;
            let [b, magnitude] = all.rows(groups, from, start)?;
            let keep = |name: &str, array| self.keep_parameter(&format!("{name}.{i}"), array);
            Ok(b.map(|b| LoraDelta {
                a: a.clone(),
                b: keep("lora_b", b),
                scale: self.adapter_scale(),
                magnitude: magnitude.map(|magnitude| keep("m", magnitude)),
            }))
        };
        outputs.into_iter().enumerate().map(part).collect()
    }

    /// The LoRA deltas of the table `[output, input]` of token embeddings here, and of a head that is
    /// tied to it.
    pub(crate) fn lora_of_table(&self, table: &Matrix, sizes: MatrixSizes) -> Result<TableDeltas> {
        let MatrixSizes { output: vocabulary, input: width } = sizes;
        let shapes = move |rank| [vec![vocabulary, rank], vec![rank, width]];
        let Some(Factors { a, b, magnitude }) = self.factors("", &shapes)? else {
            return Ok(TableDeltas { table: None, head: None });
        };
        let factors = Factors { a: b.t(), b: a.t(), magnitude };
        let delta = self.keep_lora(self.with_magnitude(factors, table, vocabulary)?);
        let is_for_head = self.adapter().is_some_and(Adapter::adapts_tied_head);
        Ok(TableDeltas { head: is_for_head.then(|| delta.clone()), table: Some(delta) })
    }

    /// The LoRA delta of the matrices of experts here. The adapter has factors for the stack, or for
    /// each expert at the place that `each` gives.
    pub(crate) fn lora_of_experts(
        &self,
        each: impl Fn(i32) -> Scope,
        sizes: StackSizes,
    ) -> Result<Option<LoraDelta>> {
        let Some(adapter) = self.adapter() else { return Ok(None) };
        let StackSizes { experts, input, output } = sizes;
        let shapes = move |rank| [vec![experts, rank, input], vec![experts, output, rank]];
        let factors = match self.factors("", &shapes)? {
            Some(Factors { a, b, magnitude }) => {
                Factors { a: a.swap_axes(-1, -2)?, b: b.swap_axes(-1, -2)?, magnitude }
            }
            None => {
                let shapes = projection(MatrixSizes { output, input });
                let factors = (0..experts).map(|i| each(i).factors("", &shapes));
                let factors = factors.collect::<Result<Vec<_>>>()?;
                if factors.iter().all(Option::is_none) {
                    return Ok(None);
                }
                let missing = |i| adapter.missing(&each(i).full_name("lora_a"));
                let factors = (0..).zip(factors).map(|(i, one)| one.ok_or_else(|| missing(i)));
                Factors::stack(&factors.collect::<Result<Vec<_>>>()?)?
            }
        };
        if adapter.has_magnitude() {
            let name = self.full_name("lora_a");
            return Err(adapter.wrong(format!("`{name}`: DoRA of experts is not supported")));
        }
        Ok(Some(self.keep_lora(factors.for_experts()?)))
    }

    /// The factors of the adapter for the matrix here, as the file has them.
    fn factors(&self, suffix: &str, shapes: &Shapes) -> Result<Option<Factors>> {
        let Some(adapter) = self.adapter() else { return Ok(None) };
        let Some(lora) = adapter.lora else { return Ok(None) };
        let names = ["lora_a", "lora_b"].map(|factor| self.full_name(&format!("{factor}{suffix}")));
        let [a, b] = shapes(lora.rank);
        match (adapter.take(&names[0], &a)?, adapter.take(&names[1], &b)?) {
            (None, None) => Ok(None),
            (Some(a), Some(b)) => Ok(Some(Factors { a, b, magnitude: None })),
            (a, _) => Err(adapter.missing(&names[usize::from(a.is_some())])),
        }
    }

    /// With the DoRA magnitude of the matrix here, if the adapter is a DoRA: the length that each row
    /// of the adapted matrix gets, divided by the length that it has.
    fn with_magnitude(&self, factors: Factors, matrix: &Matrix, output: i32) -> Result<Factors> {
        let Some(adapter) = self.adapter().filter(|adapter| adapter.has_magnitude()) else {
            return Ok(factors);
        };
        let name = self.full_name("m");
        let lengths = adapter.take(&name, &[output])?.ok_or_else(|| adapter.missing(&name))?;
        let dense = match matrix {
            Matrix::Dense(weight) => weight.clone(),
            Matrix::Quantized(weight) => weight.dequantize(None)?,
        };
        let scale = mlx::scalar(adapter.scale(), factors.b.dtype())?;
        let delta = factors.b.multiply(scale)?.t().matmul(factors.a.t())?;
        let sum = dense.add(delta)?;
        let magnitude = lengths.divide(sum.square()?.sum_axis(-1, false)?.sqrt()?)?;
        Ok(Factors { magnitude: Some(magnitude), ..factors })
    }

    fn keep_lora(&self, factors: Factors) -> LoraDelta {
        self.keep_lora_named("", factors)
    }

    fn keep_lora_named(&self, suffix: &str, factors: Factors) -> LoraDelta {
        let keep = |name: &str, array| self.keep_parameter(&format!("{name}{suffix}"), array);
        LoraDelta {
            a: keep("lora_a", factors.a),
            b: keep("lora_b", factors.b),
            scale: self.adapter_scale(),
            magnitude: factors.magnitude.map(|magnitude| keep("m", magnitude)),
        }
    }
}
