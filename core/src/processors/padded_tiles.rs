//! A picture that keeps its proportions on the grid of tiles that changes its size least; what is left
//! of the grid is black: `Llama4ImageProcessor` and `MllamaImageProcessor`.

use crate::{
    error::Result,
    media::{
        image::{Extent, Pixels},
        resize::Filter,
    },
    processors::{
        Fields, Marker, NamedTensor, Normalization, Piece, Prepared, Processor, Settings,
        SizeField, Surroundings, layouts, resized, tiles::cut,
    },
};
use serde_json::json;

/// How a picture is put on its grid.
struct PaddedTiles {
    tile: Extent,
    most: usize,
    filter: Filter,
    normalization: Normalization,
}

/// A picture on a grid.
struct Tiled {
    /// Columns and rows.
    grid: Extent,
    tiles: Vec<Pixels>,
}

impl PaddedTiles {
    fn read(fields: &Fields, most: &str) -> Result<Self> {
        let tile = fields.get::<SizeField>("size")?.extent();
        Ok(PaddedTiles {
            tile: tile.ok_or_else(|| fields.wrong("size", "has no height and width"))?,
            most: fields.count(most)?.min(256),
            filter: fields.filter()?,
            normalization: Normalization::read(fields)?,
        })
    }

    fn tile(&self, picture: &Pixels) -> Result<Tiled> {
        let grid = layouts::least_scaled(picture.extent(), self.tile, self.most);
        let Extent { width, height } = self.tile;
        let canvas = Extent { width: width * grid.width, height: height * grid.height };
        super::check(picture, canvas)?;
        let size = layouts::on_canvas(picture.extent(), self.tile, canvas);
        let padded = resized(picture, size, self.filter)?.window(0, 0, canvas, [0; 3]);
        Ok(Tiled { grid, tiles: cut(&padded, grid, self.tile) })
    }

    fn values(&self, views: &[Pixels]) -> Vec<f32> {
        let mut values = Vec::with_capacity(3 * views.len() * self.tile.area());
        views.iter().for_each(|view| self.normalization.planes(view, &mut values));
        values
    }
}

/// Tiles with tokens between them, and the whole picture last.
struct Separated {
    tiles: PaddedTiles,
    marker: Marker,
    /// The tokens of a view.
    patches: Piece,
    count: usize,
    start: Piece,
    between: Piece,
    row_end: Piece,
    whole: Piece,
    end: Piece,
}

impl Processor for Separated {
    fn markers(&self) -> &[Marker] {
        std::slice::from_ref(&self.marker)
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let Tiled { grid, tiles: mut views } = self.tiles.tile(picture)?;
        let mut placeholders = vec![self.start.clone()];
        if views.len() > 1 {
            views.push(resized(picture, self.tiles.tile, self.tiles.filter)?);
            for _ in 0..grid.height {
                placeholders.push(self.patches.clone());
                for _ in 1..grid.width {
                    placeholders.extend([self.between.clone(), self.patches.clone()]);
                }
                placeholders.push(self.row_end.clone());
            }
        }
        placeholders.extend([self.whole.clone(), self.patches.clone(), self.end.clone()]);
        let Extent { width, height } = self.tiles.tile;
        let values = self.tiles.values(&views);
        Ok(Prepared {
            tensors: vec![
                NamedTensor::floats("pixel_values", &[views.len(), 3, height, width], values),
                NamedTensor::integers("aspect_ratios", &[1, 2], [grid.height, grid.width]),
            ],
            placeholders,
            soft_tokens: views.len() * self.count,
            channel_run: width * height,
        })
    }
}

/// Tiles with a token between two of a row and one at the end of each row; `Llama4Processor`.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub fn separated(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({
        "size": {"height": 336, "width": 336}, "resample": 2, "max_patches": 16,
        "image_mean": 0.5, "image_std": 0.5,
    }))?;
    let processor = settings.processor()?;
    let patch = match processor.optional_count("patch_size")? {
        Some(patch) => patch,
        None => settings.config("vision_config.patch_size")?.unwrap_or(14_usize).max(1),
    };
    let ratio = match processor.get::<Option<f64>>("pixel_shuffle_ratio")? {
        Some(ratio) => ratio,
        None => settings.config("vision_config.pixel_shuffle_ratio")?.unwrap_or(0.5),
    };
    let tiles = PaddedTiles::read(&fields, "max_patches")?;
    let merged = (1.0 / (ratio * ratio)).round_ties_even().max(1.0) as usize;
    let count = (tiles.tile.width / patch) * (tiles.tile.height / patch) / merged;
    let image =
        settings.token(&["image_token_index", "image_token_id"], "patch_token", "<|patch|>")?;
    let token = |text: &str| settings.token(&[], "", text).map(Piece::token);
    Ok(Box::new(Separated {
        tiles,
        marker: Marker::text("<|image|>", settings.tokenizer)?,
        patches: Piece::tokens(image, count),
        count,
        start: token("<|image_start|>")?,
        between: token("<|tile_x_separator|>")?,
        row_end: token("<|tile_y_separator|>")?,
        whole: token("<|image|>")?,
        end: token("<|image_end|>")?,
    }))
}

/// Tiles for cross attention: one token stands for the picture.
struct Crossed {
    tiles: PaddedTiles,
    marker: Marker,
    image: u32,
    /// The text of the token at the start.
    first: Option<String>,
}

impl Processor for Crossed {
    fn markers(&self) -> &[Marker] {
        std::slice::from_ref(&self.marker)
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings { first: self.first.clone(), ..Surroundings::default() }
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let Tiled { grid, tiles: views } = self.tiles.tile(picture)?;
        let (most, Extent { width, height }) = (self.tiles.most, self.tiles.tile);
        let mut values = self.tiles.values(&views);
        // Tiles that are missing have values of 0, after the normalization.
        values.resize(most * 3 * width * height, 0.0);
        // The grids by rows, then columns; 0 is no picture.
        let before = |rows: usize| (1..rows).map(|rows| most / rows).sum::<usize>();
        let id = before(grid.height) + grid.width;
        let mask = (0..most).map(|tile| usize::from(tile < views.len()));
        Ok(Prepared {
            tensors: vec![
                NamedTensor::floats("pixel_values", &[1, 1, most, 3, height, width], values),
                NamedTensor::integers("aspect_ratio_ids", &[1, 1], [id]),
                NamedTensor::integers("aspect_ratio_mask", &[1, 1, most], mask),
            ],
            placeholders: vec![Piece::token(self.image)],
            soft_tokens: 1,
            channel_run: width * height,
        })
    }
}

/// Tiles for cross attention; `MllamaProcessor`.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub fn crossed(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({
        "size": {"height": 224, "width": 224}, "resample": 2, "max_image_tiles": 4,
        "image_mean": 0.5, "image_std": 0.5,
    }))?;
    let image =
        settings.token(&["image_token_index", "image_token_id"], "image_token", "<|image|>")?;
    Ok(Box::new(Crossed {
        tiles: PaddedTiles::read(&fields, "max_image_tiles")?,
        marker: Marker::token(image, settings.tokenizer),
        image,
        first: settings.tokenizer.and_then(|tokenizer| tokenizer.bos_token()).map(Into::into),
    }))
}
