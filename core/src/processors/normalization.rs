//! From levels of 8 bits to the numbers that a tower reads.

use crate::{error::Result, media::image::Pixels, processors::settings::Fields};

/// What each level becomes in each channel: `(level * rescale_factor − mean) / std`, in the precision
/// and the order of transformers.
pub struct Normalization([[f32; 256]; 3]);

impl Normalization {
    /// Reads `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean` and `image_std`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config).
    pub fn read(fields: &Fields) -> Result<Self> {
        let factor = match fields.get::<Option<bool>>("do_rescale")?.unwrap_or(true) {
            true => fields.get::<Option<f64>>("rescale_factor")?.unwrap_or(1.0 / 255.0),
            false => 1.0,
        };
        let is_normalized = fields.get::<Option<bool>>("do_normalize")?.unwrap_or(true);
        let (mean, std) = match is_normalized {
            true => (channels(fields, "image_mean")?, channels(fields, "image_std")?),
            false => ([0.0; 3], [1.0; 3]),
        };
        let mut table = [[0.0; 256]; 3];
        for (channel, levels) in table.iter_mut().enumerate() {
            for (level, value) in levels.iter_mut().enumerate() {
                let scaled = (level as f64 * factor) as f32;
                *value = (scaled - mean[channel]) / std[channel];
            }
        }
        Ok(Normalization(table))
    }

    /// The levels that come to 0, cut to integers.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config).
    pub fn mean_levels(fields: &Fields) -> Result<[u8; 3]> {
        Ok(channels(fields, "image_mean")?.map(|mean| (f64::from(mean) * 255.0) as u8))
    }

    /// One value of a pixel.
    pub fn value(&self, channel: usize, level: u8) -> f32 {
        self.0[channel][usize::from(level)]
    }

    /// Appends a picture as `[3, height, width]`.
    pub fn planes(&self, picture: &Pixels, out: &mut Vec<f32>) {
        for (channel, table) in self.0.iter().enumerate() {
            let levels = picture.rgb.iter().skip(channel).step_by(3);
            out.extend(levels.map(|level| table[usize::from(*level)]));
        }
    }
}

/// One number for each channel, or one for all.
fn channels(fields: &Fields, name: &str) -> Result<[f32; 3]> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Channels {
        Each([f32; 3]),
        All(f32),
    }
    Ok(match fields.get(name)? {
        Channels::Each(values) => values,
        Channels::All(value) => [value; 3],
    })
}
