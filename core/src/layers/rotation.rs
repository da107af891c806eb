//! Hadamard rotations of the inputs of matrices, which spread outliers before quantization ([Tseng
//! et al. 2024](https://arxiv.org/abs/2402.04396)).

use crate::{
    checkpoint::scope::Scope,
    error::{Error, Result},
    mlx,
};
use mlx_rs::{Array, Dtype};

/// The largest block that MLX can rotate.
const LARGEST: i32 = 8192;

/// A change of signs, and a normalized Walsh-Hadamard transform of each block of elements; in
/// float32.
#[derive(Clone)]
pub(crate) struct Rotation {
    /// `[input]`, -1 or 1.
    signs: Array,
    block: i32,
}

impl Rotation {
    /// Rotates `[…, input]`, as the matrix expects it.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let y = x.as_dtype(Dtype::Float32)?.multiply(&self.signs)?;
        Ok(self.transform(&y)?.as_dtype(x.dtype())?)
    }

    /// Takes the rotation of `[…, input]` back.
    pub fn backward(&self, x: &Array) -> Result<Array> {
        let y = self.transform(&x.as_dtype(Dtype::Float32)?)?;
        Ok(y.multiply(&self.signs)?.as_dtype(x.dtype())?)
    }

    fn transform(&self, x: &Array) -> Result<Array> {
        let blocks = x.reshape(&[-1, self.block])?;
        let scale = (self.block as f32).powf(-0.5);
        Ok(blocks.hadamard_transform(scale)?.reshape(x.shape())?)
    }
}

impl Scope {
    /// The rotation of the inputs of the matrix here, where the config says that it has one.
    pub(crate) fn rotation(&self, input: i32) -> Result<Option<Rotation>> {
        let Some(block) = self.rotated_block() else { return Ok(None) };
        let block = i32::try_from(block).unwrap_or(0);
        if !(1..=LARGEST).contains(&block) || block.count_ones() != 1 || input % block != 0 {
            let reason = format!("{block} is no size of a rotated block of {input} inputs");
            return Err(Error::config("modules", reason));
        }
        let signs = self.take("signs", &[input])?.as_dtype(Dtype::Float32)?;
        let (checked, name) = (signs.clone(), self.full_name("signs"));
        self.check_later(move || {
            if mlx::to_vec::<f32>(&checked)?.iter().all(|sign| sign.abs() == 1.0) {
                return Ok(());
            }
            Err(Error::Quantization { path: name, reason: "not all are 1 or -1".into() })
        });
        Ok(Some(Rotation { signs: self.keep(signs), block }))
    }
}
