//! Interpolation without antialiasing, as `torch.nn.functional.interpolate` does it with
//! `align_corners=False`: a value is a weighted sum of the pixels around its place.

use crate::media::image::{Extent, Pixels};

/// How many pixels are weighted, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// 2 pixels of each axis.
    Linear,
    /// 4 pixels of each axis, with `a` = −0.75.
    Cubic,
}

/// The inputs of one output, and their weights.
struct Taps {
    places: [usize; 4],
    weights: [f32; 4],
}

impl Interpolation {
    fn taps(self, from: usize, to: usize) -> Vec<Taps> {
        let scale = from as f32 / to as f32;
        let last = from as isize - 1;
        let taps = |output: usize| {
            let place = scale * (output as f32 + 0.5) - 0.5;
            match self {
                Interpolation::Linear => {
                    let place = place.max(0.0);
                    let first = (place as usize).min(from - 1);
                    let share = place - first as f32;
                    let next = (first + 1).min(from - 1);
                    Taps { places: [first, next, 0, 0], weights: [1.0 - share, share, 0.0, 0.0] }
                }
                Interpolation::Cubic => {
                    let first = place.floor();
                    let share = place - first;
                    let place = |ahead: isize| (first as isize + ahead).clamp(0, last) as usize;
                    Taps {
                        places: [-1, 0, 1, 2].map(place),
                        weights: [1.0 + share, share, 1.0 - share, 2.0 - share].map(cubic),
                    }
                }
            }
        };
        (0..to).map(taps).collect()
    }

    /// A plane of values, row by row, in another size.
    pub fn plane(self, values: &[f32], from: Extent, to: Extent) -> Vec<f32> {
        let (columns, rows) = (self.taps(from.width, to.width), self.taps(from.height, to.height));
        let sum = |taps: &Taps, value: &dyn Fn(usize) -> f32| {
            let terms = taps.places.iter().zip(taps.weights);
            terms
                .filter(|(_, weight)| *weight != 0.0)
                .map(|(place, weight)| value(*place) * weight)
                .sum::<f32>()
        };
        let mut out = Vec::with_capacity(to.area());
        for row in &rows {
            for column in &columns {
                let across = |y: usize| sum(column, &|x| values[y * from.width + x]);
                let value: f32 = sum(row, &across);
                out.push(value);
            }
        }
        out
    }
}

/// Keys' cubic, at a distance up to 2.
fn cubic(x: f32) -> f32 {
    const A: f32 = -0.75;
    match x <= 1.0 {
        true => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        false => ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A,
    }
}

impl Pixels {
    /// The picture in another size, interpolated and rounded to 8 bits.
    pub fn interpolated(&self, size: Extent, interpolation: Interpolation) -> Pixels {
        let mut out = Pixels::filled(size, [0; 3]);
        for channel in 0..3 {
            let levels = self.rgb.iter().skip(channel).step_by(3);
            let plane: Vec<f32> = levels.map(|level| f32::from(*level)).collect();
            let plane = interpolation.plane(&plane, self.extent(), size);
            for (pixel, value) in out.rgb.chunks_exact_mut(3).zip(plane) {
                pixel[channel] = value.round_ties_even().clamp(0.0, 255.0) as u8;
            }
        }
        out
    }

    /// The picture with rows and columns exchanged.
    pub fn transposed(&self) -> Pixels {
        let mut rgb = Vec::with_capacity(self.rgb.len());
        for x in 0..self.width {
            for y in 0..self.height {
                rgb.extend_from_slice(&self.rgb[3 * (y * self.width + x)..][..3]);
            }
        }
        Pixels { width: self.height, height: self.width, rgb }
    }
}
