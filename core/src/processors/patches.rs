//! Flattened patches `(row, column, channel)` with padding up to a budget of patches:
//! `Siglip2ImageProcessor`, `Lfm2VlImageProcessor` and `Gemma4ImageProcessor`.

use crate::{
    error::{Error, Result},
    media::{
        image::{Extent, Pixels},
        resize::Filter,
    },
    processors::{
        Marker, NamedTensor, Normalization, PLACE, Piece, Prepared, Processor, Settings,
        Surroundings, layouts, resized,
        smart_resize::{Area, Frames},
        tiles::cut,
    },
};
use serde_json::json;

/// Appends the patches of a picture.
pub(super) fn flatten(
    picture: &Pixels,
    patch: usize,
    normalization: &Normalization,
    values: &mut Vec<f32>,
) {
    let grid = Extent { width: picture.width / patch, height: picture.height / patch };
    for index in 0..grid.area() {
        let (y, x) = (index / grid.width * patch, index % grid.width * patch);
        for row in y..y + patch {
            let row = &picture.rgb[3 * (row * picture.width + x)..][..3 * patch];
            let level = |(place, level): (usize, &u8)| normalization.value(place % 3, *level);
            values.extend(row.iter().enumerate().map(level));
        }
    }
}

/// Views in patches, each with a mask and a grid.
struct Masked<'a> {
    patch: usize,
    budget: usize,
    normalization: &'a Normalization,
}

impl Masked<'_> {
    fn tensors(&self, views: &[Pixels]) -> Result<Vec<NamedTensor>> {
        let width = 3 * self.patch * self.patch;
        let (mut values, mut mask, mut grids) = (Vec::new(), Vec::new(), Vec::new());
        for (view, picture) in views.iter().enumerate() {
            flatten(picture, self.patch, self.normalization, &mut values);
            let grid =
                Extent { width: picture.width / self.patch, height: picture.height / self.patch };
            if grid.area() > self.budget {
                let reason = format!("{} patches are more than {}", grid.area(), self.budget);
                return Err(Error::Image { reason });
            }
            values.resize((view + 1) * self.budget * width, 0.0);
            mask.extend((0..self.budget).map(|patch| usize::from(patch < grid.area())));
            grids.extend([grid.height, grid.width]);
        }
        let count = views.len();
        Ok(vec![
            NamedTensor::floats("pixel_values", &[count, self.budget, width], values),
            NamedTensor::integers("pixel_attention_mask", &[count, self.budget], mask),
            NamedTensor::integers("spatial_shapes", &[count, 2], grids),
        ])
    }
}

/// The size, in whole patches, that has at most `budget` of them.
fn within_budget(picture: Extent, patch: usize, budget: usize) -> Extent {
    const PRECISION: f64 = 1e-5;
    let scaled = |side: usize, scale: f64| {
        ((side as f64 * scale / patch as f64).ceil() * patch as f64).max(patch as f64)
    };
    let (mut low, mut high) = (PRECISION / 10.0, 100.0);
    while high - low >= PRECISION {
        let scale = (low + high) / 2.0;
        let patches = (scaled(picture.height, scale) / patch as f64)
            * (scaled(picture.width, scale) / patch as f64);
        if patches <= budget as f64 { low = scale } else { high = scale }
    }
    Extent {
        width: scaled(picture.width, low) as usize,
        height: scaled(picture.height, low) as usize,
    }
}

/// A picture in as many patches as the budget allows.
struct Whole {
    patch: usize,
    budget: usize,
    filter: Filter,
    normalization: Normalization,
    marker: Marker,
    image: u32,
}

impl Processor for Whole {
    fn markers(&self) -> &[Marker] {
        std::slice::from_ref(&self.marker)
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let size = within_budget(picture.extent(), self.patch, self.budget);
        let picture = resized(picture, size, self.filter)?;
        let count = (size.width / self.patch) * (size.height / self.patch);
        let Whole { patch, budget, normalization, .. } = self;
        let masked = Masked { patch: *patch, budget: *budget, normalization };
        Ok(Prepared {
            tensors: masked.tensors(&[picture])?,
            placeholders: vec![Piece::tokens(self.image, count)],
            soft_tokens: count,
            channel_run: 1,
        })
    }
}

/// One placeholder for each patch, where −200 or `<image>` marks the place; `Siglip2ImageProcessor`.
///
/// # Errors
/// [`Error::Config`].
pub fn whole(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({
        "resample": 2, "patch_size": 16, "max_num_patches": 256, "image_mean": 0.5, "image_std": 0.5,
    }))?;
    Ok(Box::new(Whole {
        patch: fields.count("patch_size")?,
        budget: fields.count("max_num_patches")?,
        filter: fields.filter()?,
        normalization: Normalization::read(&fields)?,
        marker: Marker::place(),
        image: PLACE,
    }))
}

/// A picture whole, or in tiles where it is too large.
struct Split {
    area: Area,
    patch: usize,
    /// The side of the patches that become one feature vector, in patches.
    merge: usize,
    budget: usize,
    /// The fewest and the most tiles; none where pictures stay whole.
    tiles: Option<std::ops::RangeInclusive<usize>>,
    tile: usize,
    tolerance: f64,
    has_thumbnail: bool,
    filter: Filter,
    normalization: Normalization,
    marker: Marker,
    image: u32,
    /// The start, the whole picture after tiles, and the end; none without special tokens.
    names: Option<[Piece; 3]>,
}

impl Split {
    fn is_large(&self, size: Extent) -> bool {
        let block = (self.patch * self.merge) as f64;
        let rounded = |side: usize| {
            (super::round_half_even(side as f64 / block) * block).max(self.patch as f64)
        };
        rounded(size.width) * rounded(size.height) > self.area.most as f64 * self.tolerance
    }

    /// The size of the whole picture.
    fn whole(&self, size: Extent) -> Extent {
        // A side has at least one block before the area is compared.
        let rounded = self.area.rounded(size);
        let at_least = |side: usize| side.max(self.area.block);
        let rounded = Extent { width: at_least(rounded.width), height: at_least(rounded.height) };
        self.area.within(size, rounded, Frames::ONE)
    }

    /// The feature vectors of a view.
    fn count(&self, size: Extent) -> usize {
        let side = |side: usize| (side / self.patch).div_ceil(self.merge);
        side(size.width) * side(size.height)
    }
}

impl Processor for Split {
    fn markers(&self) -> &[Marker] {
        std::slice::from_ref(&self.marker)
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings { omits_start: true, ..Surroundings::default() }
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let size = self.whole(picture.extent());
        let tile = Extent::square(self.tile);
        let mut placeholders: Vec<Piece> =
            self.names.iter().map(|names| names[0].clone()).collect();
        let mut views = Vec::new();
        let grid = match &self.tiles {
            Some(tiles) if self.is_large(picture.extent()) => {
                layouts::closest(picture.extent(), tile, *tiles.start(), *tiles.end())
            }
            _ => Extent::square(1),
        };
        if grid.area() > 1 {
            let canvas = Extent { width: self.tile * grid.width, height: self.tile * grid.height };
            views = cut(&resized(picture, canvas, self.filter)?, grid, tile);
            for index in 0..grid.area() {
                let (row, column) = (index / grid.width + 1, index % grid.width + 1);
                let name = || Piece::Text(format!("<|img_row_{row}_col_{column}|>"));
                placeholders.extend(self.names.is_some().then(name));
                placeholders.push(Piece::tokens(self.image, self.count(tile)));
            }
        }
        if grid.area() == 1 || self.has_thumbnail {
            let name = self.names.iter().filter(|_| grid.area() > 1);
            placeholders.extend(name.map(|names| names[1].clone()));
            placeholders.push(Piece::tokens(self.image, self.count(size)));
            views.push(resized(picture, size, self.filter)?);
        }
        placeholders.extend(self.names.iter().map(|names| names[2].clone()));
        let soft = placeholders.iter().map(|piece| match piece {
            Piece::Tokens { id, count } if *id == self.image => *count,
            _ => 0,
        });
        let Split { patch, budget, normalization, .. } = self;
        let masked = Masked { patch: *patch, budget: *budget, normalization };
        Ok(Prepared {
            soft_tokens: soft.sum(),
            tensors: masked.tensors(&views)?,
            placeholders,
            channel_run: 1,
        })
    }
}

/// Tiles with names where a picture is too large, then the whole picture; `Lfm2VlProcessor`.
///
/// # Errors
/// [`Error::Config`].
pub fn split(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({
        "downsample_factor": 2, "do_image_splitting": true, "min_tiles": 2, "max_tiles": 10,
        "use_thumbnail": true, "min_image_tokens": 64, "max_image_tokens": 256,
        "encoder_patch_size": 16, "tile_size": 512, "max_pixels_tolerance": 2.0, "resample": 2,
        "image_mean": 0.5, "image_std": 0.5,
    }))?;
    let (patch, merge) = (fields.count("encoder_patch_size")?, fields.count("downsample_factor")?);
    let (least, most) = (fields.count("min_image_tokens")?, fields.count("max_image_tokens")?);
    let (block, tile) = (patch * merge, fields.count("tile_size")?);
    let tiles = fields.count("min_tiles")?..=fields.count("max_tiles")?.min(256);
    let is_split = fields.is_on("do_image_splitting")? && tiles != (1..=1);
    let named = settings.processor()?.get::<Option<bool>>("use_image_special_tokens")?;
    let token = |role: &str, text: &str| settings.token(&[], role, text).map(Piece::token);
    let names = || {
        Ok::<_, Error>([
            token("image_start_token", "<|image_start|>")?,
            token("image_thumbnail", "<|img_thumbnail|>")?,
            token("image_end_token", "<|image_end|>")?,
        ])
    };
    let image =
        settings.token(&["image_token_id", "image_token_index"], "image_token", "<image>")?;
    let tile_patches = if is_split { (tile / patch).pow(2) } else { 0 };
    Ok(Box::new(Split {
        area: Area { block, least: least * block * block, most: most * block * block },
        patch,
        merge,
        budget: (most * merge * merge).max(tile_patches),
        tiles: is_split.then_some(tiles),
        tile,
        tolerance: fields.get("max_pixels_tolerance")?,
        has_thumbnail: fields.is_on("use_thumbnail")?,
        filter: fields.filter()?,
        normalization: Normalization::read(&fields)?,
        marker: Marker::token(image, settings.tokenizer),
        image,
        names: named.unwrap_or(true).then(names).transpose()?,
    }))
}

/// A picture in its proportions, in as many blocks of patches as the budget of feature vectors allows.
struct Pooled {
    patch: usize,
    /// The side of a block, in patches.
    pool: usize,
    /// The most feature vectors.
    most: usize,
    filter: Filter,
    normalization: Normalization,
    marker: Marker,
    image: u32,
    start: Piece,
    end: Piece,
}

impl Pooled {
    fn fit(&self, picture: Extent) -> Result<Extent> {
        let (width, height) = (picture.width as f64, picture.height as f64);
        let budget = (self.most * self.pool.pow(2) * self.patch.pow(2)) as f64;
        let factor = (budget / (width * height)).sqrt();
        let block = self.pool * self.patch;
        let blocks = |side: f64| (factor * side / block as f64).floor() as usize;
        let long = |ratio: f64| (ratio.floor() as usize).min(self.most);
        let (columns, rows) = match (blocks(width), blocks(height)) {
            (0, 0) => {
                let reason =
                    format!("a picture of {width} x {height} pixels has no block of {block}");
                return Err(Error::Image { reason });
            }
            (_, 0) => (long(width / height), 1),
            (0, _) => (1, long(height / width)),
            blocks => blocks,
        };
        Ok(Extent { width: columns * block, height: rows * block })
    }
}

impl Processor for Pooled {
    fn markers(&self) -> &[Marker] {
        std::slice::from_ref(&self.marker)
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let picture = resized(picture, self.fit(picture.extent())?, self.filter)?;
        let grid =
            Extent { width: picture.width / self.patch, height: picture.height / self.patch };
        let (budget, width) = (self.most * self.pool.pow(2), 3 * self.patch.pow(2));
        let mut values = Vec::with_capacity(budget * width);
        flatten(&picture, self.patch, &self.normalization, &mut values);
        values.resize(budget * width, 0.0);
        let place = |index: usize| match index < grid.area() {
            true => [(index % grid.width) as i32, (index / grid.width) as i32],
            false => [-1; 2],
        };
        let count = grid.area() / self.pool.pow(2);
        Ok(Prepared {
            tensors: vec![
                NamedTensor::floats("pixel_values", &[1, budget, width], values),
                NamedTensor::signed(
                    "image_position_ids",
                    &[1, budget, 2],
                    (0..budget).flat_map(place),
                ),
                NamedTensor::integers("num_soft_tokens_per_image", &[1], [count]),
            ],
            placeholders: vec![
                self.start.clone(),
                Piece::tokens(self.image, count),
                self.end.clone(),
            ],
            soft_tokens: count,
            channel_run: 1,
        })
    }
}

/// Blocks of patches up to a budget of feature vectors; `Gemma4Processor`.
///
/// # Errors
/// [`Error::Config`].
pub fn pooled(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({
        "resample": 3, "patch_size": 16, "max_soft_tokens": 280, "pooling_kernel_size": 3,
        "do_normalize": false,
    }))?;
    let image = settings.token(&["image_token_id"], "image_token", "<|image|>")?;
    let start = settings.token(&["boi_token_id"], "boi_token", "<|image>")?;
    let end = settings.token(&["eoi_token_id"], "eoi_token", "<image|>")?;
    Ok(Box::new(Pooled {
        patch: fields.count("patch_size")?,
        pool: fields.count("pooling_kernel_size")?,
        most: fields.count("max_soft_tokens")?,
        filter: fields.filter()?,
        normalization: Normalization::read(&fields)?,
        marker: Marker::token(image, settings.tokenizer),
        image,
        start: Piece::token(start),
        end: Piece::token(end),
    }))
}
