//! Interpolation without antialiasing, as `torch.nn.functional.interpolate` does it with
//! `mode="bilinear"` and `align_corners=False`.

use crate::media::image::{Extent, Pixels};

/// The two inputs of one output, and the weight of the second one.
struct Between {
    places: [usize; 2],
    share: f32,
}

impl Between {
    /// The inputs of all outputs of an axis.
    fn axis(from: usize, to: usize) -> Vec<Self> {
        let scale = from as f32 / to as f32;
        let between = |output: usize| {
            let place = (scale * (output as f32 + 0.5) - 0.5).max(0.0);
            let first = (place as usize).min(from - 1);
            Between { places: [first, (first + 1).min(from - 1)], share: place - first as f32 }
        };
        (0..to).map(between).collect()
    }

    fn value(&self, of: impl Fn(usize) -> f32) -> f32 {
        of(self.places[0]) * (1.0 - self.share) + of(self.places[1]) * self.share
    }
}

impl Pixels {
    /// The picture in another size, interpolated and rounded to 8 bits.
    pub fn interpolated(&self, size: Extent) -> Pixels {
        let columns = Between::axis(self.width, size.width);
        let rows = Between::axis(self.height, size.height);
        let mut rgb = Vec::with_capacity(3 * size.area());
        for row in &rows {
            for column in &columns {
                let level = |x: usize, y: usize, channel: usize| {
                    f32::from(self.rgb[3 * (y * self.width + x) + channel])
                };
                rgb.extend([0, 1, 2].map(|channel| {
                    let value = row.value(|y| column.value(|x| level(x, y, channel)));
                    value.round_ties_even().clamp(0.0, 255.0) as u8
                }));
            }
        }
        Pixels { width: size.width, height: size.height, rgb }
    }
}
