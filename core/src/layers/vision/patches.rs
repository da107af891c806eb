//! The embedding of patches: a convolution whose stride is its kernel, computed as a matrix product.

use crate::{checkpoint::scope::Scope, error::Result, layers::vision::grid::Grid};
use mlx_rs::{Array, ops};

/// The size of a kernel that reads a patch.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Colour channels.
    pub channels: i32,
    /// Frames; 1 where the kernel has no such axis.
    pub frames: i32,
    /// Rows and columns of pixels.
    pub side: i32,
}

impl Kernel {
    /// A kernel over one frame.
    pub fn square(channels: i32, side: i32) -> Self {
        Kernel { channels, frames: 1, side }
    }

    /// The inputs of a kernel; a product that is no size fits no tensor.
    fn inputs(&self) -> i32 {
        let sides = [self.channels, self.frames, self.side, self.side];
        sides.into_iter().fold(1, i32::saturating_mul)
    }
}

/// A projection of patches.
pub struct PatchEmbedding {
    /// `[inputs, width]`.
    weight: Array,
    bias: Option<Array>,
    kernel: Kernel,
}

impl PatchEmbedding {
    /// As [`PatchEmbedding::read`], with a bias.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn with_bias(w: &Scope, name: &str, kernel: Kernel, width: i32) -> Result<Self> {
        let bias = Some(w.at(name).tensor("bias", &[width])?);
        Ok(PatchEmbedding { bias, ..Self::read(w, name, kernel, width)? })
    }

    /// Reads a convolution, with its channels before or after its sides, or a projection of
    /// flattened patches.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn read(w: &Scope, name: &str, kernel: Kernel, width: i32) -> Result<Self> {
        let (w, Kernel { channels, frames, side }) = (w.at(name), kernel);
        let original = [width, channels, frames, side, side];
        let mlx = [width, frames, side, side, channels];
        let (original, mlx) = match w.shape("weight").map(|shape| shape.len()) {
            Some(5) => (original.to_vec(), mlx.to_vec()),
            Some(2) => (vec![width, kernel.inputs()], Vec::new()),
            _ => (vec![width, channels, side, side], vec![width, side, side, channels]),
        };
        let is_mlx = original != mlx && w.shape("weight").is_some_and(|shape| shape == mlx);
        let weight = if is_mlx {
            let last = mlx.len() as i32 - 1;
            let axes: Vec<i32> = [0, last].into_iter().chain(1..last).collect();
            w.take("weight", &mlx)?.transpose_axes(&axes)?
        } else {
            w.take("weight", &original)?
        };
        let weight = weight.reshape(&[width, kernel.inputs()])?;
        Ok(PatchEmbedding { weight: w.keep(weight.contiguous()?).t(), bias: None, kernel })
    }

    /// Flattened patches `[…, channels · frames · side · side]` to `[…, width]`.
    pub fn flattened(&self, patches: &Array) -> Result<Array> {
        let patches = patches.as_dtype(self.weight.dtype())?;
        Ok(match &self.bias {
            Some(bias) => ops::addmm(bias, patches, &self.weight, None, None)?,
            None => ops::matmul(patches, &self.weight)?,
        })
    }

    /// Pictures `[batch, channels, height, width]` to `[batch, rows · columns, width]`; pixels beyond
    /// the last whole patch are left out.
    pub fn forward(&self, pixels: &Array) -> Result<Array> {
        let (grid, Kernel { channels, side, .. }) = (self.grid(pixels), self.kernel);
        let pixels = crate::mlx::slice(pixels, 2, 0, grid.rows * side)?;
        let pixels = crate::mlx::slice(&pixels, 3, 0, grid.columns * side)?;
        let shape = [pixels.dim(0), channels, grid.rows, side, grid.columns, side];
        let patches = pixels.reshape(&shape)?.transpose_axes(&[0, 2, 4, 1, 3, 5])?;
        self.flattened(&patches.reshape(&[shape[0], grid.area(), self.kernel.inputs()])?)
    }

    /// The grid of pictures `[…, height, width]`.
    pub fn grid(&self, pixels: &Array) -> Grid {
        Grid::picture(pixels.dim(-2) / self.kernel.side, pixels.dim(-1) / self.kernel.side)
    }
}
