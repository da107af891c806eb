//! Convolutions over time and their transposes, with the kernels of torch or MLX, with or without
//! weight norm ([Salimans and Kingma 2016](https://arxiv.org/abs/1602.07868)).

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
};
use mlx_rs::{Array, Dtype, ops};

/// The order of the axes of a stored kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[output, input, size]`, transposed convolutions `[input, output, size]`.
    Torch,
    /// `[output, size, input]`.
    Mlx,
}

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Channels of the input.
    pub input: i32,
    /// Channels of the output.
    pub output: i32,
    /// Taps.
    pub size: i32,
    /// Steps from one output to the next; of a transposed convolution, outputs for each input.
    pub stride: i32,
    /// Steps from one tap to the next.
    pub dilation: i32,
    /// Groups of channels that are convolved apart.
    pub groups: i32,
    /// The layout of kernels whose shape fits both.
    pub layout: Layout,
}

impl Kernel {
    /// A kernel of stride 1, without dilation or groups.
    pub fn new(input: i32, output: i32, size: i32) -> Self {
        Kernel { input, output, size, stride: 1, dilation: 1, groups: 1, layout: Layout::Torch }
    }

    /// With another stride.
    pub fn stride(self, stride: i32) -> Self {
        Kernel { stride, ..self }
    }

    /// With gaps between the taps.
    pub fn dilation(self, dilation: i32) -> Self {
        Kernel { dilation, ..self }
    }

    /// With groups of channels that are convolved apart.
    pub fn groups(self, groups: i32) -> Self {
        Kernel { groups, ..self }
    }

    /// With the layout that holds where a shape fits both.
    pub fn layout(self, layout: Layout) -> Self {
        Kernel { layout, ..self }
    }

    /// Steps from the first tap to the last, both included.
    pub fn span(&self) -> i32 {
        (self.size - 1) * self.dilation + 1
    }

    /// The padding on both sides that keeps the length at stride 1.
    pub fn same(&self) -> i32 {
        (self.span() - 1) / 2
    }

    /// The layout in which the checkpoint stores this kernel here; torch's where it has none or
    /// fits both.
    pub fn layout_of(&self, w: &Scope) -> Layout {
        let shape = w.kernel_tensors().and_then(|tensors| w.shape(tensors.kernel));
        let is_mlx = shape.is_some_and(|shape| shape == self.mlx() && shape != self.torch(false));
        if is_mlx { Layout::Mlx } else { Layout::Torch }
    }

    fn torch(&self, is_transposed: bool) -> [i32; 3] {
        match is_transposed {
            false => [self.output, self.input / self.groups, self.size],
            true => [self.input, self.output / self.groups, self.size],
        }
    }

    fn mlx(&self) -> [i32; 3] {
        [self.output, self.size, self.input / self.groups]
    }

    /// A stored kernel in the layout of torch.
    fn to_torch(self, stored: Array, is_transposed: bool) -> Result<Array> {
        let (torch, mlx) = (self.torch(is_transposed), self.mlx());
        let fits_mlx = stored.shape() == mlx;
        // In MLX's layout, a transposed kernel of torch's shape is `[input, size, output]`.
        let is_mlx = self.layout == Layout::Mlx && (fits_mlx || is_transposed);
        if stored.shape() == torch && !is_mlx {
            return Ok(stored);
        }
        if !is_transposed || !fits_mlx {
            // Also `[input, size, output]`, as one conversion stores transposed convolutions.
            return Ok(stored.swap_axes(1, 2)?);
        }
        let [groups, output, input] = [self.groups, self.output, self.input];
        let by_group = [groups, output / groups, self.size, input / groups];
        Ok(stored.reshape(&by_group)?.transpose_axes(&[0, 3, 1, 2])?.reshape(&torch)?)
    }

    /// A kernel in the layout of torch as MLX convolves with it.
    fn to_mlx(self, kernel: &Array, is_transposed: bool) -> Result<Array> {
        if !is_transposed {
            return Ok(kernel.swap_axes(1, 2)?);
        }
        let by_group =
            [self.groups, self.input / self.groups, self.output / self.groups, self.size];
        let swapped = kernel.reshape(&by_group)?.transpose_axes(&[0, 2, 3, 1])?;
        Ok(swapped.reshape(&self.mlx())?)
    }
}

/// The names of the tensors of one kernel.
struct KernelTensors {
    kernel: &'static str,
    /// The lengths of the rows, where there is weight norm.
    lengths: Option<&'static str>,
}

impl Scope {
    fn kernel_tensors(&self) -> Option<KernelTensors> {
        const NAMES: [(&str, Option<&str>); 3] = [
            ("weight", None),
            ("weight_v", Some("weight_g")),
            ("parametrizations.weight.original1", Some("parametrizations.weight.original0")),
        ];
        let (kernel, lengths) = NAMES.into_iter().find(|(kernel, _)| self.has(kernel))?;
        Some(KernelTensors { kernel, lengths })
    }

    /// Reads a kernel as MLX convolves with it, `[output, size, input / groups]`. Weight norm is
    /// applied once, here: its rows belong to the first axis in the layout of torch.
    fn kernel(&self, kernel: Kernel, is_transposed: bool) -> Result<Array> {
        let torch = kernel.torch(is_transposed);
        let names = self.kernel_tensors();
        let names = names.unwrap_or(KernelTensors { kernel: "weight", lengths: None });
        let [first, second, size] = torch;
        let known = [torch, kernel.mlx(), [first, size, second]];
        let found = self.shape(names.kernel).filter(|shape| known.iter().any(|k| shape == k));
        let stored = self.take(names.kernel, &found.unwrap_or(torch.into()))?;
        let mut weight = kernel.to_torch(stored, is_transposed)?;
        if let Some(name) = names.lengths {
            let shape = self.shape(name).filter(|shape| shape.iter().product::<i32>() == first);
            let lengths = self.take(name, &shape.unwrap_or(vec![first, 1, 1]))?;
            let norm = weight.square()?.sum_axes(&[1, 2], true)?.sqrt()?;
            weight = weight.multiply(lengths.reshape(&[first, 1, 1])?.divide(norm)?)?;
        }
        Ok(self.keep(kernel.to_mlx(&weight, is_transposed)?.contiguous()?))
    }

    /// Reads the convolution here with its bias, if it has one, and `padding` zeros on both sides.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn convolution(&self, kernel: Kernel, padding: i32) -> Result<Convolution> {
        let weight = self.kernel(kernel, false)?;
        Ok(Convolution { weight, bias: self.optional("bias", &[kernel.output])?, kernel, padding })
    }

    /// Reads the transposed convolution here with its bias, if it has one, whose output loses `padding` steps
    /// on both sides and gains `output_padding` on the right.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn transposed_convolution(
        &self,
        kernel: Kernel,
        padding: i32,
        output_padding: i32,
    ) -> Result<TransposedConvolution> {
        let weight = self.kernel(kernel, true)?;
        let bias = self.optional("bias", &[kernel.output])?;
        Ok(TransposedConvolution { weight, bias, kernel, padding, output_padding })
    }
}

/// A convolution of `[batch, length, channels]`.
pub struct Convolution {
    weight: Array,
    bias: Option<Array>,
    /// Its sizes.
    pub kernel: Kernel,
    padding: i32,
}

impl Convolution {
    /// The precision of the kernel.
    pub(crate) fn dtype(&self) -> Dtype {
        self.weight.dtype()
    }

    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let Kernel { stride, dilation, groups, .. } = self.kernel;
        let y = ops::conv1d(x, &self.weight, stride, self.padding, dilation, groups)?;
        add(y, self.bias.as_ref())
    }
}

/// A transposed convolution of `[batch, length, channels]`.
pub struct TransposedConvolution {
    weight: Array,
    bias: Option<Array>,
    /// Its sizes.
    pub kernel: Kernel,
    padding: i32,
    output_padding: i32,
}

impl TransposedConvolution {
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        add(self.without_bias(x)?, self.bias.as_ref())
    }

    /// The sum that streams add up where their parts overlap.
    pub(crate) fn without_bias(&self, x: &Array) -> Result<Array> {
        let Kernel { stride, dilation, groups, .. } = self.kernel;
        let (padding, extra) = (self.padding, self.output_padding);
        Ok(ops::conv_transpose1d(x, &self.weight, stride, padding, dilation, extra, groups)?)
    }

    pub(crate) fn add_bias(&self, y: Array) -> Result<Array> {
        add(y, self.bias.as_ref())
    }
}

fn add(y: Array, bias: Option<&Array>) -> Result<Array> {
    Ok(match bias {
        Some(bias) => y.add(bias)?,
        None => y,
    })
}

impl Layer for Convolution {
    type State = ();
    fn state(&self, _: &CachePlan) {}
    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        self.forward(x)
    }
}

impl Layer for TransposedConvolution {
    type State = ();
    fn state(&self, _: &CachePlan) {}
    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        self.forward(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx;
    use serde_json::json;

    fn numbers(shape: &[i32]) -> Array {
        let count = shape.iter().product::<i32>();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin()).collect();
        Array::from_slice(&values, shape)
    }

    fn scope(tensors: &[(&str, Array)]) -> Scope {
        let tensors = tensors.iter().map(|(name, array)| (name.to_string(), array.clone()));
        Scope::new(tensors.collect(), &json!({})).unwrap()
    }

    fn values(x: &Array) -> Vec<f32> {
        mlx::to_vec(x).unwrap()
    }

    /// The values of a kernel in both layouts, where each of its shapes fits both.
    #[test]
    fn a_square_kernel_is_read_in_the_layout_of_its_checkpoint() {
        let (kernel, x) = (Kernel::new(3, 2, 3), numbers(&[1, 8, 3]));
        let torch = numbers(&[2, 3, 3]);
        let mlx = torch.swap_axes(1, 2).unwrap().contiguous().unwrap();
        let read = |weight: &Array, layout| {
            let w = scope(&[("weight", weight.clone())]);
            values(&w.convolution(kernel.layout(layout), 1).unwrap().forward(&x).unwrap())
        };
        assert_eq!(read(&torch, Layout::Torch), read(&mlx, Layout::Mlx));
        assert_ne!(read(&torch, Layout::Torch), read(&mlx, Layout::Torch));
    }

    #[test]
    fn a_transposed_kernel_is_the_same_in_every_layout() {
        for groups in [1, 2] {
            let kernel = Kernel::new(4, 6, 5).stride(2).groups(groups);
            let (x, torch) = (numbers(&[1, 5, 4]), numbers(&[4, 6 / groups, 5]));
            let read = |weight: &Array| {
                let w = scope(&[("weight", weight.clone())]);
                values(&w.transposed_convolution(kernel, 1, 0).unwrap().forward(&x).unwrap())
            };
            let expected = read(&torch);
            assert_eq!(expected.len(), (2 * 4 + 5 - 2) * 6);
            let mlx = kernel.to_mlx(&torch, true).unwrap().contiguous().unwrap();
            assert_eq!(read(&mlx), expected);
            let other = torch.swap_axes(1, 2).unwrap().contiguous().unwrap();
            assert_eq!(read(&other), expected);
        }
    }

    /// The rows of weight norm are those of the first axis in torch, also of a transposed kernel.
    #[test]
    fn weight_norm_gives_rows_their_lengths() {
        for (names, is_transposed) in [
            (["weight_g", "weight_v"], false),
            (["parametrizations.weight.original0", "parametrizations.weight.original1"], true),
        ] {
            let kernel = Kernel::new(4, 4, 3);
            let lengths = Array::from_slice(&[1.0_f32, 2.0, 3.0, 4.0], &[4, 1, 1]);
            let w = scope(&[(names[0], lengths), (names[1], numbers(&[4, 4, 3]))]);
            let read = w.kernel(kernel, is_transposed).unwrap();
            let torch = if is_transposed { [2, 0, 1] } else { [0, 2, 1] };
            let rows = read.transpose_axes(&torch).unwrap().square().unwrap();
            let lengths = values(&rows.sum_axes(&[1, 2], false).unwrap().sqrt().unwrap());
            for (length, expected) in lengths.iter().zip([1.0, 2.0, 3.0, 4.0]) {
                assert!((length - expected).abs() < 1e-5, "{lengths:?}");
            }
        }
    }
}
