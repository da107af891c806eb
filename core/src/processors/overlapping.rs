//! A picture whole, and in tiles that overlap; feature vectors are pooled from groups of patches, whose
//! numbers the tower gets: `Molmo2ImageProcessor` and `Molmo2Processor`.

use crate::{
    error::Result,
    media::image::{Extent, Pixels},
    processors::{
        Marker, NamedTensor, Normalization, Piece, Prepared, Processor, Settings, SizeField,
        Surroundings, layouts, patches::flatten,
    },
};
use serde_json::json;

struct Overlapping {
    /// The side of a tile, in patches.
    tile: usize,
    patch: usize,
    most: usize,
    margins: Margins,
    /// The patches that are pooled, columns and rows.
    pool: Extent,
    normalization: Normalization,
    marker: Marker,
    start: u32,
    tokens: Tokens,
}

/// The patches of a tile that overlap the tiles before and after it.
#[derive(Clone, Copy)]
struct Margins {
    before: usize,
    after: usize,
}

struct Tokens {
    patch: u32,
    whole_start: u32,
    start: u32,
    end: u32,
    /// At the end of each row of the whole picture.
    whole_row_end: Option<u32>,
    /// At the end of each row of the tiles.
    row_end: Option<u32>,
}

/// Groups of patches that are pooled.
struct Groups {
    /// The patches of each group, −1 where one is missing.
    patches: Vec<i32>,
    /// Columns and rows of groups.
    grid: Extent,
}

impl Overlapping {
    /// The tiles beside those margins that neighbours repeat, in patches.
    fn window(&self) -> usize {
        self.tile - self.margins.before - self.margins.after
    }

    /// The number of the patch of the tiles at a column and a row of the canvas.
    fn patch_at(&self, grid: Extent, x: usize, y: usize) -> usize {
        let window = self.window();
        // A patch of a margin belongs to the tile of which it is no margin.
        let tile = |place: usize, count: usize| {
            (place.saturating_sub(self.margins.before) / window).min(count - 1)
        };
        let (column, row) = (tile(x, grid.width), tile(y, grid.height));
        let inside = (y - row * window) * self.tile + (x - column * window);
        (row * grid.width + column) * self.tile * self.tile + inside
    }

    /// The groups of a grid of patches, whose numbers are given.
    fn groups(&self, size: Extent, number: impl Fn(usize, usize) -> usize) -> Groups {
        let grid = Extent {
            width: size.width.div_ceil(self.pool.width),
            height: size.height.div_ceil(self.pool.height),
        };
        let (left, top) = (
            (grid.width * self.pool.width - size.width) / 2,
            (grid.height * self.pool.height - size.height) / 2,
        );
        let mut patches = Vec::with_capacity(grid.area() * self.pool.area());
        for group in 0..grid.area() {
            for place in 0..self.pool.area() {
                let x = group % grid.width * self.pool.width + place % self.pool.width;
                let y = group / grid.width * self.pool.height + place / self.pool.width;
                let inside = (x.checked_sub(left), y.checked_sub(top));
                patches.push(match inside {
                    (Some(x), Some(y)) if x < size.width && y < size.height => number(x, y) as i32,
                    _ => -1,
                });
            }
        }
        Groups { patches, grid }
    }

    fn placeholders(&self, whole: Extent, tiles: Extent) -> Vec<Piece> {
        let tokens = &self.tokens;
        let mut pieces = Vec::new();
        for (start, row_end, grid) in [
            (tokens.whole_start, tokens.whole_row_end, whole),
            (tokens.start, tokens.row_end, tiles),
        ] {
            pieces.push(Piece::token(start));
            for _ in 0..grid.height {
                pieces.push(Piece::tokens(tokens.patch, grid.width));
                pieces.extend(row_end.map(Piece::token));
            }
            pieces.push(Piece::token(tokens.end));
        }
        pieces
    }
}

impl Processor for Overlapping {
    fn markers(&self) -> &[Marker] {
        std::slice::from_ref(&self.marker)
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings { start: vec![Piece::token(self.start)], ..Surroundings::default() }
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let side = self.tile * self.patch;
        let margins = (self.margins.before + self.margins.after) * self.patch;
        let window = self.window() * self.patch;
        let rest = |side: usize| side as i64 - margins as i64;
        let (width, height) = (rest(picture.width), rest(picture.height));
        let grid = layouts::least_scaled_rows_first(width, height, window, self.most);
        let canvas =
            Extent { width: grid.width * window + margins, height: grid.height * window + margins };
        super::check(picture, canvas)?;
        let whole = picture.interpolated(Extent::square(side));
        let canvas = picture.interpolated(canvas);
        let mut values = Vec::new();
        flatten(&whole, self.patch, &self.normalization, &mut values);
        for tile in 0..grid.area() {
            let (x, y) = (tile % grid.width * window, tile / grid.width * window);
            let tile = canvas.window(x as isize, y as isize, Extent::square(side), [0; 3]);
            flatten(&tile, self.patch, &self.normalization, &mut values);
        }
        let own = self.tile * self.tile;
        let size = Extent { width: canvas.width / self.patch, height: canvas.height / self.patch };
        let first = self.groups(Extent::square(self.tile), |x, y| y * self.tile + x);
        let second = self.groups(size, |x, y| own + self.patch_at(grid, x, y));
        let count = first.grid.area() + second.grid.area();
        let pooling = first.patches.into_iter().chain(second.patches);
        let views = 1 + grid.area();
        let shape = [views, own, 3 * self.patch * self.patch];
        let grids = [first.grid.height, first.grid.width, second.grid.height, second.grid.width];
        Ok(Prepared {
            tensors: vec![
                NamedTensor::floats("pixel_values", &shape, values),
                NamedTensor::signed("image_token_pooling", &[count, self.pool.area()], pooling),
                NamedTensor::integers("image_grids", &[1, 4], grids),
                NamedTensor::integers("image_num_crops", &[1], [views]),
            ],
            placeholders: self.placeholders(first.grid, second.grid),
            soft_tokens: count,
            channel_run: 1,
        })
    }
}

/// Tiles that overlap.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub fn read(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({
        "size": {"height": 378, "width": 378}, "max_crops": 8, "overlap_margins": [4, 4],
        "patch_size": 14, "pooling_size": [2, 2], "image_mean": 0.5, "image_std": 0.5,
    }))?;
    let patch = fields.count("patch_size")?;
    let side = fields.get::<SizeField>("size")?.extent().filter(|size| size.width == size.height);
    let side = side.ok_or_else(|| fields.wrong("size", "is no square"))?.width;
    let [before, after]: [usize; 2] = fields.get("overlap_margins")?;
    let [rows, columns]: [usize; 2] = fields.get("pooling_size")?;
    let tile = side / patch;
    if before.saturating_add(after) >= tile || rows * columns == 0 || rows.max(columns) > tile {
        return Err(
            fields.wrong("overlap_margins", "leave nothing of a tile, or nothing is pooled")
        );
    }
    let processor = settings.processor()?;
    let is_on = |name: &str| processor.get::<Option<bool>>(name);
    let token = |text: &str| settings.token(&[], "", text);
    let ends_rows = is_on("image_use_col_tokens")?.unwrap_or(true);
    let ends_whole_rows = is_on("use_single_crop_col_tokens")?.unwrap_or(ends_rows);
    let has_own_start = is_on("use_single_crop_start_token")?.unwrap_or(true);
    let image = settings.token(&["image_patch_id"], "image_patch_token", "<im_patch>")?;
    let start =
        settings.start_token(|tokenizer| tokenizer.bos_token().or(tokenizer.eos_token()))?;
    Ok(Box::new(Overlapping {
        tile,
        patch,
        most: fields.count("max_crops")?.min(256),
        margins: Margins { before, after },
        pool: Extent { width: columns, height: rows },
        normalization: Normalization::read(&fields)?,
        marker: Marker::text("<|image|>", settings.tokenizer)?,
        start,
        tokens: Tokens {
            patch: image,
            whole_start: token(if has_own_start { "<low_res_im_start>" } else { "<im_start>" })?,
            start: token("<im_start>")?,
            end: token("<im_end>")?,
            whole_row_end: ends_whole_rows.then(|| token("<im_col>")).transpose()?,
            row_end: ends_rows.then(|| token("<im_col>")).transpose()?,
        },
    }))
}
