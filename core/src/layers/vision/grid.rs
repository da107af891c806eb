//! The grid of a picture's patches: their order, their positions, and neighbours that become one.

use crate::{
    error::{Error, Result},
    layers::position::rope::Rope,
};
use mlx_rs::Array;

/// Frames, rows and columns of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Frames of a clip; 1 for a picture.
    pub frames: i32,
    /// Patches from top to bottom.
    pub rows: i32,
    /// Patches from left to right.
    pub columns: i32,
}

/// The order of the elements of merged patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeOrder {
    /// Row, column, channel: the patches one after the other.
    PatchFirst,
    /// Channel, row, column, as `unfold` of torch.
    ChannelFirst,
}

impl Grid {
    /// The sizes of a processor: frames, rows and columns.
    ///
    /// # Errors
    /// [`Error::Internal`] when one is less than 1 or their product is no count.
    pub fn of_sizes(sizes: &[i32]) -> Result<Self> {
        let count = |sizes: &[i32]| {
            let product = |a: i32, b: &i32| a.checked_mul(*b).filter(|_| *b > 0);
            sizes.iter().try_fold(1, product)
        };
        match sizes {
            [frames, rows, columns] if count(sizes).is_some() => {
                Ok(Grid { frames: *frames, rows: *rows, columns: *columns })
            }
            _ => Err(Error::Internal(format!("{sizes:?} is no grid of patches"))),
        }
    }

    /// A picture of one frame.
    pub fn picture(rows: i32, columns: i32) -> Self {
        Grid { frames: 1, rows, columns }
    }

    /// Patches of one frame.
    pub fn area(&self) -> i32 {
        self.rows * self.columns
    }

    /// Patches of all frames.
    pub fn count(&self) -> i32 {
        self.frames * self.area()
    }

    /// The grid of squares of `side` patches.
    ///
    /// # Errors
    /// [`Error::Internal`] when a side does not divide: the processor rounds it.
    pub fn merged(&self, side: i32) -> Result<Grid> {
        if side < 1 || self.rows % side != 0 || self.columns % side != 0 {
            return Err(Error::Internal(format!("{self:?} has no squares of {side} patches")));
        }
        Ok(Grid { rows: self.rows / side, columns: self.columns / side, ..*self })
    }

    /// The row and the column of each patch of a frame, square by square of `side` patches.
    fn cells(&self, side: i32) -> impl Iterator<Item = [i32; 2]> {
        let (rows, columns) = (self.rows / side, self.columns / side);
        let inside = move |row, column| {
            (0..side * side).map(move |i| [row * side + i / side, column * side + i % side])
        };
        (0..rows).flat_map(move |row| (0..columns).flat_map(move |column| inside(row, column)))
    }

    /// The place of each patch of a frame in row-major order, square by square of `side` patches:
    /// `[area]`.
    pub fn order(&self, side: i32) -> Array {
        let places: Vec<i32> =
            self.cells(side).map(|[row, column]| row * self.columns + column).collect();
        Array::from_slice(&places, &[self.area()])
    }

    /// Rotary positions of the patches of a frame, rows and columns: `[2, 1, area]`.
    pub fn positions(&self, side: i32) -> Array {
        let axis = |axis: usize| self.cells(side).map(move |cell| cell[axis]);
        let positions: Vec<i32> = axis(0).chain(axis(1)).collect();
        Array::from_slice(&positions, &[2, 1, self.area()])
    }

    /// Joins squares of `side` patches: `[batch, area, width]` in row-major order to
    /// `[batch, area / side², side² · width]`.
    ///
    /// # Errors
    /// As [`Grid::merged`].
    pub fn merge(&self, x: &Array, side: i32, order: MergeOrder) -> Result<Array> {
        let (to, width) = (self.merged(side)?, x.dim(-1));
        let shape = [x.dim(0), to.rows, side, to.columns, side, width];
        let axes = match order {
            MergeOrder::PatchFirst => [0, 1, 3, 2, 4, 5],
            MergeOrder::ChannelFirst => [0, 1, 3, 5, 2, 4],
        };
        let squares = x.reshape(&shape)?.transpose_axes(&axes)?;
        Ok(squares.reshape(&[x.dim(0), to.area(), side * side * width])?)
    }

    /// The mean of squares of `side` patches, `[batch, area, width]` to
    /// `[batch, area / side², width]`.
    ///
    /// # Errors
    /// As [`Grid::merged`].
    pub fn average(&self, x: &Array, side: i32) -> Result<Array> {
        let merged = self.merge(x, side, MergeOrder::PatchFirst)?;
        let squares = merged.reshape(&[x.dim(0), merged.dim(1), side * side, x.dim(-1)])?;
        Ok(squares.mean_axes(&[2], false)?)
    }
}

/// Which wavelengths the rows and the columns of a grid have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wavelengths {
    /// Both the same.
    Same,
    /// The wavelengths of a plain rotation, by turns.
    Alternating,
}

/// The rotation by rows in the first half of the pairs of a head, by columns in the second.
///
/// # Errors
/// [`Error::Config`] when a head has no such halves.
pub fn rope_2d(dims: i32, base: f32, wavelengths: Wavelengths) -> Result<Rope> {
    rope(dims, base, wavelengths, false)
}

/// As [`rope_2d`], with equal wavelengths and pairs that are neighbours instead of halves.
///
/// # Errors
/// As [`rope_2d`].
pub fn rope_2d_of_neighbours(dims: i32, base: f32) -> Result<Rope> {
    rope(dims, base, Wavelengths::Same, true)
}

fn rope(dims: i32, base: f32, wavelengths: Wavelengths, traditional: bool) -> Result<Rope> {
    if dims % 4 != 0 {
        let reason = format!("heads of {dims} elements have no pairs for rows and columns");
        return Err(Error::config("vision_config.num_attention_heads", reason));
    }
    let quarter = dims / 4;
    let exponent = |axis: i32, i: i32| match wavelengths {
        Wavelengths::Same => 4 * i,
        Wavelengths::Alternating => 4 * i + 2 * axis,
    };
    let wavelength = |axis, i| f64::from(base).powf(f64::from(exponent(axis, i)) / f64::from(dims));
    let all: Vec<f32> =
        (0..2).flat_map(|axis| (0..quarter).map(move |i| wavelength(axis, i) as f32)).collect();
    let axes: Vec<i32> = (0..2 * quarter).map(|pair| pair / quarter).collect();
    let wavelengths = Array::from_slice(&all, &[2 * quarter]);
    Rope::Frequencies { dims, traditional, wavelengths, magnitude: 1.0 }.with_sections(&axes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx;

    #[test]
    fn squares_are_read_one_after_the_other() {
        let grid = Grid::picture(2, 4);
        let order: Vec<i32> = mlx::to_vec(&grid.order(2)).unwrap();
        assert_eq!(order, [0, 1, 4, 5, 2, 3, 6, 7]);
        let positions: Vec<i32> = mlx::to_vec(&grid.positions(2)).unwrap();
        assert_eq!(positions, [0, 0, 1, 1, 0, 0, 1, 1, 0, 1, 0, 1, 2, 3, 2, 3]);
        let x = Array::from_slice(&(0..16).collect::<Vec<i32>>(), &[1, 8, 2]);
        let merge = |order| mlx::to_vec::<i32>(&grid.merge(&x, 2, order).unwrap()).unwrap();
        let patches = merge(MergeOrder::PatchFirst);
        assert_eq!(patches, [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]);
        let channels = merge(MergeOrder::ChannelFirst);
        assert_eq!(channels, [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]);
        assert!(matches!(grid.merged(3), Err(Error::Internal(_))));
    }
}
