//! What fine-tuning adds to a matrix: a product of two of low rank
//! ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)), and with it other lengths of its rows
//! ([Liu et al. 2024](https://arxiv.org/abs/2402.09353)). The matrix itself stays as it is, so it may
//! be quantized.

use crate::{
    checkpoint::{adapter::Adapter, scope::Scope},
    error::Result,
    mlx::{
        self,
        matrix::{Matrix, cut},
    },
};
use mlx_rs::{Array, Dtype, ops};

/// An addition to a matrix `[…, output, input]`.
#[derive(Clone)]
pub(crate) struct LoraDelta {
    /// `[…, input, rank]`.
    pub a: Array,
    /// `[…, rank, output]`.
    pub b: Array,
    pub scale: f32,
    /// By what the rows of the sum are multiplied, `[output]`.
    pub magnitude: Option<Array>,
}

impl LoraDelta {
    /// The additions to the matrices of a stack.
    pub fn stack(parts: &[LoraDelta]) -> Result<Self> {
        let stack = |factor: fn(&LoraDelta) -> &Array| {
            ops::stack(&parts.iter().map(factor).collect::<Vec<_>>(), 0)
        };
        let scale = parts.first().map_or(1.0, |part| part.scale);
        Ok(LoraDelta {
            a: stack(|part| &part.a)?,
            b: stack(|part| &part.b)?,
            scale,
            magnitude: None,
        })
    }

    /// With rows of these lengths, `[output]`, in what is added to `matrix`.
    pub fn with_magnitude(self, matrix: &Matrix, lengths: &Array) -> Result<Self> {
        let dense = match matrix {
            Matrix::Dense(weight) => weight.clone(),
            Matrix::Quantized(weight) => weight.dequantize(None)?,
        };
        let sum = dense.add(self.scaled(&self.b)?.t().matmul(self.a.t())?)?;
        let magnitude = lengths.divide(sum.square()?.sum_axis(-1, false)?.sqrt()?)?;
        Ok(LoraDelta { magnitude: Some(magnitude), ..self })
    }

    /// What is added to the rows from `start` to `stop` of each of `groups`.
    pub fn rows(&self, groups: i32, start: i32, stop: i32) -> Result<Self> {
        let magnitude =
            self.magnitude.as_ref().map(|magnitude| cut(magnitude, 0, groups, start, stop));
        let b = cut(&self.b, self.b.ndim() - 1, groups, start, stop)?;
        Ok(LoraDelta { b, magnitude: magnitude.transpose()?, ..self.clone() })
    }

    /// As [`Matrix::for_experts`].
    pub fn for_experts(self) -> Result<Self> {
        if !mlx::is_cpu()? {
            return Ok(self);
        }
        let (a, b) = (self.a.as_dtype(Dtype::Float32)?, self.b.as_dtype(Dtype::Float32)?);
        Ok(LoraDelta { a, b, ..self })
    }

    /// To `y`, which the matrix makes of `x`.
    pub fn add(&self, x: &Array, y: &Array) -> Result<Array> {
        let z = x.matmul(&self.a)?.matmul(&self.b)?;
        let sum = y.add(self.scaled(&z)?.as_dtype(x.dtype())?)?;
        let Some(magnitude) = &self.magnitude else { return Ok(sum) };
        Ok(magnitude.as_dtype(x.dtype())?.multiply(sum)?)
    }

    /// To `y`, which are the rows `ids` of the matrix.
    pub fn add_to_rows(&self, ids: &Array, y: &Array) -> Result<Array> {
        let rows = self.b.t().take_axis(ids, 0)?;
        let z = rows.matmul(self.a.t())?;
        let sum = y.add(self.scaled(&z)?.as_dtype(y.dtype())?)?;
        let Some(magnitude) = &self.magnitude else { return Ok(sum) };
        let magnitude = magnitude.take_axis(ids, 0)?.expand_dims(-1)?;
        Ok(magnitude.as_dtype(y.dtype())?.multiply(sum)?)
    }

    /// To `y`, which the matrices `ids` of a stack make of `x`.
    pub fn add_by_expert(&self, x: &Array, y: &Array, ids: &Array, sorted: bool) -> Result<Array> {
        let through = |x: &Array, w: &Array| ops::gather_mm(x, w, None::<&Array>, ids, sorted);
        let z = through(&through(x, &self.a)?, &self.b)?;
        Ok(y.add(self.scaled(&z)?.as_dtype(x.dtype())?)?)
    }

    fn scaled(&self, z: &Array) -> Result<Array> {
        Ok(z.multiply(mlx::scalar(self.scale, z.dtype())?)?)
    }
}

/// The shapes of the two factors, by their rank.
type Shapes = dyn Fn(i32) -> [Vec<i32>; 2];

fn projection([output, input]: [i32; 2]) -> impl Fn(i32) -> [Vec<i32>; 2] {
    move |rank| [vec![input, rank], vec![rank, output]]
}

impl Scope {
    /// What the adapter adds to the matrix `[output, input]` here.
    pub(crate) fn lora(&self, matrix: &Matrix, sizes: [i32; 2]) -> Result<Option<LoraDelta>> {
        let Some(added) = self.product("", &projection(sizes))? else { return Ok(None) };
        Ok(Some(self.keep_lora(self.with_dora(added, matrix, sizes[0])?)))
    }

    /// As [`Scope::added`], to each of the matrices that are read from one, as [`Scope::fused_by_group`]
    /// does. The adapter, too, may have factors for all of them or for each.
    pub(crate) fn lora_of_parts<const N: usize>(
        &self,
        matrix: &Matrix,
        input: i32,
        groups: i32,
        outputs: [i32; N],
    ) -> Result<Vec<Option<LoraDelta>>> {
        let total = groups * outputs.iter().sum::<i32>();
        let Some(all) = self.product("", &projection([total, input]))? else {
            let part = |(i, output)| {
                let added = self.product(&format!(".{i}"), &projection([output, input]))?;
                Ok(added.map(|added| self.keep_lora(added)))
            };
            return outputs.into_iter().enumerate().map(part).collect();
        };
        let all = self.with_dora(all, matrix, total)?;
        let mut start = 0;
        let part = |output| {
            let from = start;
            start += output;
            Ok(Some(self.keep_rows(all.rows(groups, from, start)?)))
        };
        self.keep(all.a.clone());
        outputs.into_iter().map(part).collect()
    }

    /// What the adapter adds to the table `[vocabulary, width]` here, and to a head that is tied to it.
    pub(crate) fn lora_of_table(
        &self,
        table: &Matrix,
        [vocabulary, width]: [i32; 2],
    ) -> Result<[Option<LoraDelta>; 2]> {
        let shapes = move |rank| [vec![vocabulary, rank], vec![rank, width]];
        let Some(LoraDelta { a, b, scale, magnitude }) = self.product("", &shapes)? else {
            return Ok([None, None]);
        };
        let added = LoraDelta { a: b.t(), b: a.t(), scale, magnitude };
        let added = self.keep_lora(self.with_dora(added, table, vocabulary)?);
        let to_head = self.adapter().is_some_and(Adapter::adds_to_tied_head);
        Ok([Some(added.clone()), to_head.then_some(added)])
    }

    /// What the adapter adds to the matrices `[count, output, input]` of experts here. It has factors
    /// for all of them, or for each under a name of its own.
    pub(crate) fn lora_of_experts(
        &self,
        each: impl Fn(i32) -> Scope,
        [count, input, output]: [i32; 3],
    ) -> Result<Option<LoraDelta>> {
        let Some(adapter) = self.adapter() else { return Ok(None) };
        let shapes = move |rank| [vec![count, rank, input], vec![count, output, rank]];
        let added = match self.product("", &shapes)? {
            Some(added) => {
                let (a, b) = (added.a.swap_axes(-1, -2)?, added.b.swap_axes(-1, -2)?);
                LoraDelta { a, b, ..added }
            }
            None => {
                let factors = |i| each(i).product("", &projection([output, input]));
                let factors = (0..count).map(factors).collect::<Result<Vec<_>>>()?;
                if factors.iter().all(Option::is_none) {
                    return Ok(None);
                }
                let missing = |i| adapter.missing(&each(i).full_name("lora_a"));
                let factors = (0..).zip(factors).map(|(i, one)| one.ok_or_else(|| missing(i)));
                LoraDelta::stack(&factors.collect::<Result<Vec<_>>>()?)?
            }
        };
        if adapter.has_magnitude() {
            let name = self.full_name("lora_a");
            return Err(adapter.wrong(format!("`{name}`: experts with lengths are not supported")));
        }
        Ok(Some(self.keep_lora(added.for_experts()?)))
    }

    /// The factors of a product as the file has them.
    fn product(&self, part: &str, shapes: &Shapes) -> Result<Option<LoraDelta>> {
        let Some(adapter) = self.adapter() else { return Ok(None) };
        let Some(product) = adapter.product else { return Ok(None) };
        let names = ["lora_a", "lora_b"].map(|factor| self.full_name(&format!("{factor}{part}")));
        let [a, b] = shapes(product.rank);
        match (adapter.take(&names[0], &a)?, adapter.take(&names[1], &b)?) {
            (None, None) => Ok(None),
            (Some(a), Some(b)) => {
                Ok(Some(LoraDelta { a, b, scale: product.scale, magnitude: None }))
            }
            (a, _) => Err(adapter.missing(&names[usize::from(a.is_some())])),
        }
    }

    /// With the lengths of rows, where the adapter is one that has them.
    fn with_dora(&self, added: LoraDelta, matrix: &Matrix, output: i32) -> Result<LoraDelta> {
        let Some(adapter) = self.adapter().filter(|adapter| adapter.has_magnitude()) else {
            return Ok(added);
        };
        let name = self.full_name("m");
        let lengths = adapter.take(&name, &[output])?.ok_or_else(|| adapter.missing(&name))?;
        added.with_magnitude(matrix, &lengths)
    }

    fn keep_lora(&self, added: LoraDelta) -> LoraDelta {
        self.keep(added.a.clone());
        self.keep_rows(added)
    }

    fn keep_rows(&self, added: LoraDelta) -> LoraDelta {
        for array in [Some(&added.b), added.magnitude.as_ref()].into_iter().flatten() {
            self.keep(array.clone());
        }
        added
    }
}
