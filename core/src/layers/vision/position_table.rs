//! Learned positions of a square grid, and their interpolation to other grids. Follows
//! `torch.nn.functional.interpolate`.

use crate::{checkpoint::scope::Scope, error::Result, layers::vision::grid::Grid};
use mlx_rs::{Array, Dtype};

/// How a table is sampled at the places of another grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// Linear in both directions; the corners of both grids coincide.
    AlignedBilinear,
    /// Linear in both directions; the borders of both grids coincide.
    Bilinear,
    /// Linear in both directions over the area that a place stands for (antialiased).
    AreaBilinear,
    /// Cubic in both directions with `a = -0.75`.
    Bicubic,
}

/// Learned positions.
pub struct PositionTable {
    /// `[rows · columns, width]`.
    table: Array,
    rows: i32,
    columns: i32,
}

impl PositionTable {
    /// Reads the table `name` of `side · side` positions.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn read(w: &Scope, name: &str, side: i32, width: i32) -> Result<Self> {
        let table = w.at(name).tensor("weight", &[side * side, width])?;
        Ok(PositionTable::square(table, side))
    }

    /// A table `[side · side, width]`.
    pub fn square(table: Array, side: i32) -> Self {
        PositionTable { table, rows: side, columns: side }
    }

    /// Reads a table of rows and columns of positions, which has an axis for each.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn rectangle(w: &Scope, name: &str, grid: Grid, width: i32) -> Result<Self> {
        let Grid { rows, columns, .. } = grid;
        let table = w.at(name).tensor("weight", &[rows, columns, width])?.flatten(0, 1)?;
        Ok(PositionTable { table, rows, columns })
    }

    /// The rows of positions in the table, `[…]` to `[…, width]`.
    pub fn rows(&self, places: &Array) -> Result<Array> {
        Ok(self.table.take_axis(places, 0)?)
    }

    /// The positions of the patches of one frame in row-major order, `[area, width]`.
    pub fn sampled(&self, grid: Grid, interpolation: Interpolation) -> Result<Array> {
        let width = self.table.dim(-1);
        if grid.rows == self.rows && grid.columns == self.columns {
            return Ok(self.table.clone());
        }
        let (across, down) = (self.columns, self.rows);
        let table = self.table.as_dtype(Dtype::Float32)?;
        let table = table.reshape(&[down, across * width])?;
        let rows = interpolation.matrix(down, grid.rows).matmul(table)?;
        let rows = rows.reshape(&[grid.rows, across, width])?;
        let sampled = interpolation
            .matrix(across, grid.columns)
            .matmul(rows)?
            .reshape(&[grid.area(), width])?;
        Ok(sampled.as_dtype(self.table.dtype())?)
    }
}

impl Interpolation {
    /// The weights `[to, from]` of the entries of a line at the places of another one.
    pub fn matrix(self, from: i32, to: i32) -> Array {
        let mut weights = vec![0.0; (from * to) as usize];
        for place in 0..to {
            let row = &mut weights[(place * from) as usize..((place + 1) * from) as usize];
            match self {
                Interpolation::AlignedBilinear => aligned(row, place, to),
                Interpolation::Bilinear => bilinear(row, place, to),
                Interpolation::AreaBilinear => area(row, place, to),
                Interpolation::Bicubic => bicubic(row, place, to),
            }
        }
        Array::from_slice(&weights, &[to, from])
    }
}

fn aligned(row: &mut [f32], place: i32, to: i32) {
    let last = row.len() - 1;
    let at = if to > 1 { place as f32 * last as f32 / (to - 1) as f32 } else { 0.0 };
    let floor = (at as usize).min(last);
    row[floor] += 1.0 - (at - floor as f32);
    row[(floor + 1).min(last)] += at - floor as f32;
}

fn bilinear(row: &mut [f32], place: i32, to: i32) {
    let at = (place as f32 + 0.5) * row.len() as f32 / to as f32 - 0.5;
    let (floor, last) = (at.floor(), row.len() as i32 - 1);
    for (tap, weight) in (0..).zip([1.0 - (at - floor), at - floor]) {
        row[(floor as i32 + tap).clamp(0, last) as usize] += weight;
    }
}

fn area(row: &mut [f32], place: i32, to: i32) {
    let scale = row.len() as f32 / to as f32;
    let support = scale.max(1.0);
    let centre = (place as f32 + 0.5) * scale;
    let (first, end) =
        ((centre - support + 0.5).max(0.0) as usize, (centre + support + 0.5) as usize);
    let end = end.min(row.len());
    for (at, weight) in row.iter_mut().enumerate().take(end).skip(first) {
        *weight = (1.0 - ((at as f32 - centre + 0.5) / support).abs()).max(0.0);
    }
    let total: f32 = row.iter().sum();
    row.iter_mut().for_each(|weight| *weight /= total);
}

fn bicubic(row: &mut [f32], place: i32, to: i32) {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let at = (place as f32 + 0.5) * row.len() as f32 / to as f32 - 0.5;
    let (floor, last) = (at.floor(), row.len() as i32 - 1);
    let t = at - floor;
    let taps = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
    for (tap, weight) in (-1..).zip(taps) {
        row[(floor as i32 + tap).clamp(0, last) as usize] += weight;
    }
}

/// The buckets of the patches of a picture that fills a part of the square of the training, by the
/// share of the side at which they lie: `[area]` places in a table of `side · side`.
pub fn buckets(grid: Grid, side: i32) -> Array {
    let bucket = |place: i32, count: i32| {
        let share = place as f32 * (1.0 / count as f32);
        (1..side).filter(|border| share.min(1.0 - 1e-6) >= *border as f32 / side as f32).count()
    };
    let rows = (0..grid.rows).map(|row| bucket(row, grid.rows) as i32);
    let columns: Vec<i32> =
        (0..grid.columns).map(|column| bucket(column, grid.columns) as i32).collect();
    let places: Vec<i32> =
        rows.flat_map(|row| columns.iter().map(move |column| row * side + column)).collect();
    Array::from_slice(&places, &[grid.area()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx;

    /// The expected values were computed by torch.
    #[test]
    fn lines_are_sampled_as_torch_does() {
        let line = Array::from_slice(&[1.0_f32, 4.0, -2.0, 3.0, 0.5], &[5, 1]);
        for (interpolation, to, expected) in [
            (Interpolation::AlignedBilinear, 3, &[1.0, -2.0, 0.5][..]),
            (Interpolation::Bilinear, 3, &[2.0, -2.0, 1.333_333]),
            (Interpolation::AreaBilinear, 3, &[2.285_714, 0.444_444, 1.571_429]),
            (Interpolation::Bicubic, 3, &[2.277_777, -2.0, 1.564_816]),
            (
                Interpolation::Bicubic,
                7,
                &[0.763_848, 3.370_262, 2.526_238, -2.0, 1.691_692, 2.475_218, 0.303_206],
            ),
        ] {
            let found: Vec<f32> =
                mlx::to_vec(&interpolation.matrix(5, to).matmul(&line).unwrap()).unwrap();
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "{interpolation:?}: {found}, {expected}");
            }
        }
    }
}
