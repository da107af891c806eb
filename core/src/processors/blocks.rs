//! Pictures in their own shape as patches row by row, of which blocks become feature vectors: either made
//! smaller only when they have too many patches and padded with black (`image_processing_kimi_vl.py` of the
//! published models), or resized within limits (`PaddleOCRVLImageProcessor`).

use crate::{
    error::{Error, Result},
    media::{
        image::{Extent, Pixels},
        resize::Filter,
    },
    processors::{
        Marker, NamedTensor, Normalization, Piece, Prepared, Processor, Settings, resized,
        smart_resize::{Area, limits},
    },
};
use serde_json::json;

/// The most patches of a side, for which the tower has positions.
const LONGEST_SIDE: usize = 512;

struct Blocks {
    patch: usize,
    /// The patches that become one feature vector, columns and rows.
    merge: Extent,
    /// The most patches.
    most: usize,
    is_padded: bool,
    normalization: Normalization,
    marker: Marker,
    image: u32,
}

impl Blocks {
    fn fit(&self, picture: &Pixels) -> Result<Pixels> {
        let patches = (picture.width / self.patch) * (picture.height / self.patch);
        let picture = match patches > self.most {
            false => picture.clone(),
            true => {
                let scale = (self.most as f64 / patches as f64).sqrt();
                let side = |side: usize| (side as f64 * scale) as usize;
                let size = Extent { width: side(picture.width), height: side(picture.height) };
                resized(picture, size, Filter::Bicubic)?
            }
        };
        let Extent { width, height } = picture.extent();
        if self.is_padded {
            let size = Extent {
                width: width.next_multiple_of(self.merge.width * self.patch),
                height: height.next_multiple_of(self.merge.height * self.patch),
            };
            return Ok(picture.window(0, 0, size, [0; 3]));
        }
        let size =
            Extent { width: width - width % self.patch, height: height - height % self.patch };
        super::check(&picture, size)?;
        let start = |whole: usize, part: usize| {
            super::round_half_even((whole - part) as f64 / 2.0) as isize
        };
        let (x, y) = (start(width, size.width), start(height, size.height));
        Ok(picture.window(x, y, size, [0; 3]))
    }
}

impl Processor for Blocks {
    fn markers(&self) -> &[Marker] {
        std::slice::from_ref(&self.marker)
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let picture = self.fit(picture)?;
        let grid =
            Extent { width: picture.width / self.patch, height: picture.height / self.patch };
        if grid.longest() >= LONGEST_SIDE {
            let reason = format!(
                "a picture of {} x {} patches is longer than the {LONGEST_SIDE} that the model reads; \
                 crop it",
                grid.width, grid.height
            );
            return Err(Error::Image { reason });
        }
        let values = rows(&picture, self.patch, &self.normalization);
        let count = (grid.width / self.merge.width) * (grid.height / self.merge.height);
        let shape = [grid.area(), 3, self.patch, self.patch];
        Ok(Prepared {
            tensors: vec![
                NamedTensor::floats("pixel_values", &shape, values),
                NamedTensor::integers("image_grid_hws", &[1, 2], [grid.height, grid.width]),
            ],
            placeholders: vec![Piece::tokens(self.image, count)],
            soft_tokens: count,
            channel_run: self.patch * self.patch,
        })
    }
}

/// The patches of a picture, row by row, each `[3, patch, patch]`.
fn rows(picture: &Pixels, patch: usize, normalization: &Normalization) -> Vec<f32> {
    let mut values = Vec::with_capacity(3 * picture.extent().area());
    let (columns, rows) = (picture.width / patch, picture.height / patch);
    for index in 0..columns * rows {
        let (x, y) = (index % columns * patch, index / columns * patch);
        let patch = picture.window(x as isize, y as isize, Extent::square(patch), [0; 3]);
        normalization.planes(&patch, &mut values);
    }
    values
}

/// A picture within limits.
struct Limited {
    area: Area,
    patch: usize,
    merge: usize,
    filter: Filter,
    normalization: Normalization,
    marker: Marker,
    image: u32,
}

impl Processor for Limited {
    fn markers(&self) -> &[Marker] {
        std::slice::from_ref(&self.marker)
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let block = self.area.block;
        let Extent { mut width, mut height } = picture.extent();
        let scaled = |side: usize, by: usize| {
            super::round_half_even((side * block) as f64 / by as f64) as usize
        };
        if height < block {
            (width, height) = (scaled(width, height), block);
        }
        if width < block {
            (width, height) = (block, scaled(height, width));
        }
        let size = self.area.fit(Extent { width, height })?;
        let picture = resized(picture, size, self.filter)?;
        let grid = Extent { width: size.width / self.patch, height: size.height / self.patch };
        let count = grid.area() / self.merge.pow(2);
        let shape = [grid.area(), 3, self.patch, self.patch];
        let values = rows(&picture, self.patch, &self.normalization);
        Ok(Prepared {
            tensors: vec![
                NamedTensor::floats("pixel_values", &shape, values),
                NamedTensor::integers("image_grid_thw", &[1, 3], [1, grid.height, grid.width]),
            ],
            placeholders: vec![Piece::tokens(self.image, count)],
            soft_tokens: count,
            channel_run: self.patch * self.patch,
        })
    }
}

/// Pictures within limits; `PaddleOCRVLProcessor`.
///
/// # Errors
/// [`Error::Config`].
pub fn limited(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({
        "size": {"shortest_edge": 147_456, "longest_edge": 2_359_296}, "resample": 3,
        "patch_size": 14, "temporal_patch_size": 1, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }))?;
    let (patch, merge) = (fields.count("patch_size")?, fields.count("merge_size")?);
    if fields.count("temporal_patch_size")? != 1 {
        return Err(fields.wrong("temporal_patch_size", "only 1 is supported"));
    }
    let image = settings.token(&["image_token_id"], "image_token", "<|IMAGE_PLACEHOLDER|>")?;
    Ok(Box::new(Limited {
        area: limits(&fields, patch * merge)?,
        patch,
        merge,
        filter: fields.filter()?,
        normalization: Normalization::read(&fields)?,
        marker: Marker::token(image, settings.tokenizer),
        image,
    }))
}

/// Whole blocks of patches.
///
/// # Errors
/// [`Error::Config`].
pub fn read(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({
        "patch_size": 14, "pad_input": false, "in_token_limit": 4096, "merge_kernel_size": [2, 2],
        "image_mean": 0.5, "image_std": 0.5,
    }))?;
    let [rows, columns]: [usize; 2] = fields.get("merge_kernel_size")?;
    if !(1..=16).contains(&rows) || !(1..=16).contains(&columns) {
        return Err(fields.wrong("merge_kernel_size", format!("{rows} x {columns} is no block")));
    }
    let image = settings.token(
        &["media_placeholder_token_id", "image_token_index", "image_token_id"],
        "image_token",
        "<|media_pad|>",
    )?;
    Ok(Box::new(Blocks {
        patch: fields.count("patch_size")?,
        merge: Extent { width: columns, height: rows },
        most: fields.count("in_token_limit")?,
        is_padded: fields.is_on("pad_input")?,
        normalization: Normalization::read(&fields)?,
        marker: Marker::token(image, settings.tokenizer),
        image,
    }))
}
