//! Resizing that equals Pillow's (`src/libImaging/Resample.c`) bit by bit: a pass for each axis,
//! antialiased, with weights of 22 fractional bits and 8-bit results.

use crate::media::image::{Extent, Pixels};
use std::{f64::consts::PI, thread};

/// How pixels are weighted. The numbers are Pillow's, which configs use for `resample`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// 0: the nearest pixel.
    Nearest,
    /// 1: a windowed sinc function over 6 pixels.
    Lanczos,
    /// 2: a triangle over 2 pixels.
    Bilinear,
    /// 3: a cubic over 4 pixels, with `a` = −0.5.
    Bicubic,
    /// 4: the mean of the covered pixels.
    Box,
    /// 5: a windowed sinc function over 2 pixels.
    Hamming,
}

const PRECISION: u32 = 22;
/// A picture with fewer values than this is resized by one thread.
const VALUES_OF_A_THREAD: usize = 1 << 19;

impl Filter {
    /// The filter with this number in Pillow.
    pub fn of_code(code: i64) -> Option<Self> {
        use Filter::{Bicubic, Bilinear, Box, Hamming, Lanczos, Nearest};
        let filters = [Nearest, Lanczos, Bilinear, Bicubic, Box, Hamming];
        filters.get(usize::try_from(code).ok()?).copied()
    }

    /// How far from the centre a weight may be other than 0, in pixels of the smaller picture.
    fn support(self) -> f64 {
        match self {
            Filter::Nearest | Filter::Box => 0.5,
            Filter::Bilinear | Filter::Hamming => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        let distance = x.abs();
        match self {
            Filter::Nearest | Filter::Box => f64::from(u8::from(-0.5 < x && x <= 0.5)),
            Filter::Bilinear => (1.0 - distance).max(0.0),
            Filter::Hamming if distance < 1.0 => {
                sinc(distance) * (0.54 + 0.46 * (distance * PI).cos())
            }
            Filter::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Filter::Bicubic if distance < 2.0 => {
                -0.5 * (((distance - 5.0) * distance + 8.0) * distance - 4.0)
            }
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

impl Pixels {
    /// The picture in another size of at least one pixel.
    pub fn resized(&self, size: Extent, filter: Filter) -> Pixels {
        if filter == Filter::Nearest {
            return self.nearest(size);
        }
        let (rows, columns) =
            (self.height as i64 - size.height as i64, self.width as i64 - size.width as i64);
        // Pillow 13 begins with the pass that leaves it less work.
        match rows > 0 && rows > 2 * columns {
            true => self.in_rows(size.height, filter).in_columns(size.width, filter),
            false => self.in_columns(size.width, filter).in_rows(size.height, filter),
        }
    }

    /// The picture with another number of columns.
    fn in_columns(&self, width: usize, filter: Filter) -> Pixels {
        if width == self.width {
            return self.clone();
        }
        let taps = Taps::of(self.width, width, filter);
        let mut rgb = vec![0; 3 * width * self.height];
        in_parallel(&mut rgb, 3 * width, |y, out| {
            taps.along(&self.rgb[3 * self.width * y..][..3 * self.width], out);
        });
        Pixels { width, height: self.height, rgb }
    }

    /// The picture with another number of rows.
    fn in_rows(&self, height: usize, filter: Filter) -> Pixels {
        if height == self.height {
            return self.clone();
        }
        let taps = Taps::of(self.height, height, filter);
        let mut rgb = vec![0; 3 * self.width * height];
        in_parallel(&mut rgb, 3 * self.width, |y, out| taps.across(&self.rgb, y, out));
        Pixels { width: self.width, height, rgb }
    }

    fn nearest(&self, size: Extent) -> Pixels {
        let sources = |from: usize, count: usize| {
            let step = from as f64 / count as f64;
            // Pillow adds the steps up, with their rounding errors.
            let places = std::iter::successors(Some(step * 0.5), move |at| Some(at + step));
            places.take(count).map(move |at| (at as usize).min(from - 1))
        };
        let columns: Vec<usize> = sources(self.width, size.width).collect();
        let mut rgb = Vec::with_capacity(3 * size.area());
        for y in sources(self.height, size.height) {
            let row = &self.rgb[3 * self.width * y..];
            columns.iter().for_each(|x| rgb.extend_from_slice(&row[3 * x..][..3]));
        }
        Pixels { width: size.width, height: size.height, rgb }
    }
}

/// The weights of one axis.
struct Taps {
    /// The first input of each output.
    starts: Vec<usize>,
    /// How many inputs each output has.
    counts: Vec<usize>,
    /// The weights, `stride` for each output.
    weights: Vec<i32>,
    stride: usize,
}

impl Taps {
    fn of(from: usize, to: usize, filter: Filter) -> Self {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let stride = support.ceil() as usize * 2 + 1;
        let mut taps = Taps {
            starts: Vec::with_capacity(to),
            counts: Vec::with_capacity(to),
            weights: vec![0; to * stride],
            stride,
        };
        let mut exact = Vec::with_capacity(stride);
        for output in taps.weights.chunks_exact_mut(stride) {
            let center = (taps.starts.len() as f64 + 0.5) * scale;
            // A cast to an unsigned number makes what is negative 0.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            exact.clear();
            exact.extend(
                (start..end).map(|x| filter.weight((x as f64 - center + 0.5) * (1.0 / stretch))),
            );
            let sum: f64 = exact.iter().sum();
            for (weight, exact) in output.iter_mut().zip(&exact) {
                let exact = if sum == 0.0 { *exact } else { exact / sum };
                let fixed = exact * f64::from(1 << PRECISION);
                *weight = (fixed + 0.5_f64.copysign(fixed)) as i32;
            }
            taps.starts.push(start);
            taps.counts.push(end - start);
        }
        taps
    }

    fn weights(&self, output: usize) -> &[i32] {
        &self.weights[output * self.stride..][..self.counts[output]]
    }

    /// One row of RGB pixels to another length.
    fn along(&self, row: &[u8], out: &mut [u8]) {
        for (x, out) in out.chunks_exact_mut(3).enumerate() {
            let mut sums = [1 << (PRECISION - 1); 3];
            let pixels = row[3 * self.starts[x]..].chunks_exact(3);
            for (pixel, weight) in pixels.zip(self.weights(x)) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = rounded(sum);
            }
        }
    }

    /// Row `y` of the output, from rows as long as `out`.
    fn across(&self, rows: &[u8], y: usize, out: &mut [u8]) {
        let mut sums = vec![1 << (PRECISION - 1); out.len()];
        let rows = rows[self.starts[y] * out.len()..].chunks_exact(out.len());
        for (row, weight) in rows.zip(self.weights(y)) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = rounded(sum);
        }
    }
}

fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Computes the rows of `out`, each of `length` values, by several threads where that pays.
fn in_parallel(out: &mut [u8], length: usize, row: impl Fn(usize, &mut [u8]) + Sync) {
    let threads = thread::available_parallelism().map_or(1, |count| count.get().min(8));
    let threads = threads.min(out.len() / VALUES_OF_A_THREAD + 1);
    let rows = (out.len() / length).div_ceil(threads);
    let compute = |part: usize, out: &mut [u8]| {
        for (y, out) in out.chunks_exact_mut(length).enumerate() {
            row(part * rows + y, out);
        }
    };
    if threads == 1 {
        return compute(0, out);
    }
    thread::scope(|scope| {
        for (part, out) in out.chunks_mut(rows * length).enumerate() {
            let compute = &compute;
            scope.spawn(move || compute(part, out));
        }
    });
}
