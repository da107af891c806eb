//! LLaVA 1.6: LLaVA over a whole picture and its tiles; the features of the tiles form one grid, from
//! which the padding is cut, and end each row with a learned vector. Follows `modeling_llava_next` of
//! transformers.

use crate::families::{multimodal, prelude::*, vision::llava::Llava};

pub const FAMILY: Family =
    Family { model_types: &["llava_next"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    image_grid_pinpoints: Vec<[i32; 2]>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = multimodal::text_model(config, w, "llama")?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    let defaults = json!({
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    });
    let e: Config = config::read(&config::with_defaults(config, defaults))?;
    let place = if w.has("image_newline") { w.clone() } else { w.at("model") };
    let tower = Tiled {
        tiles: Llava::read(config, w)?,
        row_end: place.tensor("image_newline", &[multimodal::text_width(config)?])?,
        canvases: e.image_grid_pinpoints,
    };
    Ok(Box::new(Sighted::new(text, tower, multimodal::placeholder(config, 32_000)?)))
}

struct Tiled {
    tiles: Llava,
    /// What follows each row of features.
    row_end: Array,
    /// Heights and widths of which a picture fits one, in pixels.
    canvases: Vec<[i32; 2]>,
}

impl Tower for Tiled {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        // `[1, tiles, channels, height, width]`, the whole picture first.
        let pixels = picture.tensor("pixel_values")?.flatten(0, 1)?;
        let sizes = picture.sizes("image_sizes", 2)?;
        let (height, width, count) = (sizes[0], sizes[1], pixels.dim(0));
        let (x, grid) = (self.tiles.features(&pixels)?, self.tiles.grid(&pixels));
        let whole = mlx::slice(&x, 0, 0, 1)?.squeeze_axes(&[0])?;
        if count == 1 {
            return Ok(vec![ops::concatenate(&[whole, self.row_end.expand_dims(0)?], 0)?]);
        }
        let [canvas_height, canvas_width] = best_canvas(&self.canvases, height, width)
            .ok_or_else(|| Error::config("image_grid_pinpoints", "is empty"))?;
        let (rows, columns) = (canvas_height / pixels.dim(2), canvas_width / pixels.dim(3));
        if rows * columns != count - 1 {
            let reason = format!("{count} views, not 1 and {rows} times {columns} tiles");
            return Err(Error::Internal(reason));
        }
        let dims = x.dim(2);
        let tiles = mlx::slice(&x, 0, 1, count)?;
        let tiles = tiles.reshape(&[rows, columns, grid.rows, grid.columns, dims])?;
        let tiles = tiles.transpose_axes(&[0, 2, 1, 3, 4])?;
        let tiles = tiles.reshape(&[rows * grid.rows, columns * grid.columns, dims])?;
        let tiles = without_padding(&tiles, height, width)?;
        let ends = ops::broadcast_to(&self.row_end, &[tiles.dim(0), 1, dims])?;
        let tiles = ops::concatenate(&[tiles, ends], 1)?.flatten(0, 1)?;
        Ok(vec![ops::concatenate(&[whole, tiles], 0)?])
    }
}

/// The canvas on which most pixels of a picture fit; of several the one with least waste.
fn best_canvas(canvases: &[[i32; 2]], height: i32, width: i32) -> Option<[i32; 2]> {
    let fit = |[rows, columns]: &[i32; 2]| {
        let (rows, columns) = (f64::from(*rows), f64::from(*columns));
        let scale = (columns / f64::from(width)).min(rows / f64::from(height));
        let area = (f64::from(width) * scale) as i64 * (f64::from(height) * scale) as i64;
        let useful = area.min(i64::from(width) * i64::from(height));
        (useful, useful - rows as i64 * columns as i64)
    };
    canvases.iter().rev().max_by_key(|canvas| fit(canvas)).copied()
}

/// Features `[rows, columns, width]` of a canvas less those of the padding around the picture.
fn without_padding(x: &Array, height: i32, width: i32) -> Result<Array> {
    let (rows, columns) = (x.dim(0), x.dim(1));
    let (aspect, canvas) =
        (f64::from(width) / f64::from(height), f64::from(columns) / f64::from(rows));
    // The reference rounds to seven digits before it drops the fraction.
    let whole = |x: f64| ((x * 1e7).round() / 1e7) as i32;
    let (axis, all, kept) = if aspect > canvas {
        let scale = f64::from(columns) / f64::from(width);
        (0, rows, whole(f64::from(height) * scale))
    } else {
        let scale = f64::from(rows) / f64::from(height);
        (1, columns, whole(f64::from(width) * scale))
    };
    let padding = (all - kept) / 2;
    mlx::slice(x, axis, padding, all - padding)
}
