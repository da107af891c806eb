//! Pictures in their own shape, made smaller only when a side is too long, with a token at the end of
//! each row of patches: `PixtralImageProcessor` and `PixtralProcessor`.

use crate::{
    error::Result,
    media::{
        image::{Extent, Pixels},
        resize::Filter,
    },
    processors::{
        Fields, Marker, NamedTensor, Normalization, Piece, Prepared, Processor, Settings,
        SizeField, resized,
    },
};
use serde::Deserialize;
use serde_json::json;

struct Rows {
    /// The longest width and height.
    longest: Extent,
    /// The side of what becomes one feature vector: both sides are multiples of it.
    block: usize,
    filter: Filter,
    normalization: Normalization,
    marker: Marker,
    image: u32,
    row_end: u32,
    end: u32,
}

impl Rows {
    fn fit(&self, size: Extent) -> Extent {
        let (width, height) = (size.width as f64, size.height as f64);
        let ratio = (height / self.longest.height as f64).max(width / self.longest.width as f64);
        let shrink = ratio.max(1.0);
        let side = |side: f64| ((side / shrink).floor() as usize).next_multiple_of(self.block);
        // A side of which nothing is left stays one block.
        Extent { width: side(width).max(self.block), height: side(height).max(self.block) }
    }
}

impl Processor for Rows {
    fn markers(&self) -> &[Marker] {
        std::slice::from_ref(&self.marker)
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let picture = resized(picture, self.fit(picture.extent()), self.filter)?;
        let Extent { width, height } = picture.extent();
        let mut values = Vec::with_capacity(3 * width * height);
        self.normalization.planes(&picture, &mut values);
        let (columns, rows) = (width / self.block, height / self.block);
        let row = |row: usize| {
            let last = if row + 1 == rows { self.end } else { self.row_end };
            [Piece::tokens(self.image, columns), Piece::token(last)]
        };
        Ok(Prepared {
            tensors: vec![
                NamedTensor::floats("pixel_values", &[1, 3, height, width], values),
                NamedTensor::integers("image_sizes", &[1, 2], [height, width]),
            ],
            placeholders: (0..rows).flat_map(row).collect(),
            soft_tokens: rows * columns,
            channel_run: width * height,
        })
    }
}

/// A side, or a height and a width that are equal.
#[derive(Deserialize)]
#[serde(untagged)]
enum Patch {
    Side(usize),
    Sides { height: usize },
}

/// The side of a block: the patch of the tower, of the processor or of its pictures, times the merge.
fn block(settings: &Settings, fields: &Fields) -> Result<usize> {
    let processor = settings.processor()?;
    let patch = match settings.config("vision_config.patch_size")? {
        Some(patch) => Some(patch),
        None => processor.optional_count("patch_size")?,
    };
    let patch = match patch {
        Some(patch) => patch,
        None => match fields.get("patch_size")? {
            Patch::Side(side) | Patch::Sides { height: side } => side,
        },
    };
    let merge = match settings.config("spatial_merge_size")? {
        Some(merge) => merge,
        None => processor.optional_count("spatial_merge_size")?.unwrap_or(1),
    };
    match patch * merge {
        block @ 1..=4096 => Ok(block),
        block => {
            Err(fields.wrong("patch_size", format!("{block} is no side of a block of pixels")))
        }
    }
}

/// With the sizes, the mean and the deviation of CLIP where the file says nothing.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub fn read(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({
        "size": {"longest_edge": 1024}, "patch_size": 16, "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }))?;
    let size: SizeField = fields.get("size")?;
    let longest = size.longest_edge().map(Extent::square).or(size.extent());
    let image = settings.token(&["image_token_index", "image_token_id"], "image_token", "[IMG]")?;
    Ok(Box::new(Rows {
        longest: longest.ok_or_else(|| fields.wrong("size", "has no longest_edge"))?,
        block: block(settings, &fields)?,
        filter: fields.filter()?,
        normalization: Normalization::read(&fields)?,
        marker: Marker::token(image, settings.tokenizer),
        image,
        row_end: settings.token(&[], "image_break_token", "[IMG_BREAK]")?,
        end: settings.token(&[], "image_end_token", "[IMG_END]")?,
    }))
}
