//! A picture on the canvas of several that wastes least, cut into tiles, after the whole picture: the
//! placeholders leave out what is padding. `LlavaNextImageProcessor` and `LlavaNextProcessor`.

use crate::{
    error::{Error, Result},
    media::{
        image::{Extent, Pixels},
        resize::Filter,
    },
    processors::{
        Marker, NamedTensor, Normalization, Piece, Prepared, Processor, Settings, SizeField,
        fixed::{Sizing, patch_size, soft_tokens},
        resized,
        tiles::cut,
    },
};
use serde_json::json;

struct Canvas {
    /// The canvases.
    canvases: Vec<Extent>,
    /// The size of the whole picture.
    whole: Extent,
    /// The side of a tile of the canvas.
    tile: usize,
    /// What each view passes through.
    sizing: Sizing,
    filter: Filter,
    normalization: Normalization,
    patch: usize,
    /// The feature vectors of the whole picture, which may be one fewer or more than its patches.
    whole_tokens: usize,
    marker: Marker,
    image: u32,
}

/// The size in which a picture just fits into another size.
pub(super) fn inside(picture: Extent, size: Extent) -> Extent {
    let (width, height) = (picture.width as f64, picture.height as f64);
    let (across, down) = (size.width as f64 / width, size.height as f64 / height);
    match across < down {
        true => Extent {
            width: size.width,
            height: ((height * across).ceil() as usize).min(size.height),
        },
        false => {
            Extent { width: ((width * down).ceil() as usize).min(size.width), height: size.height }
        }
    }
}

impl Canvas {
    /// The canvas on which most of the picture's pixels count, of these the smallest.
    fn best(&self, picture: Extent) -> Result<Extent> {
        let (width, height) = (picture.width as f64, picture.height as f64);
        let mut best = None;
        for canvas in &self.canvases {
            let scale = (canvas.width as f64 / width).min(canvas.height as f64 / height);
            let scaled = (width * scale) as usize * (height * scale) as usize;
            let useful = scaled.min(picture.area());
            let wasted = canvas.area() as i64 - useful as i64;
            if useful > 0
                && best.is_none_or(|(most, least, _)| {
                    useful > most || useful == most && wasted < least
                })
            {
                best = Some((useful, wasted, *canvas));
            }
        }
        best.map(|(.., canvas)| canvas).ok_or_else(|| {
            let Extent { width, height } = picture;
            let reason = format!(
                "a picture of {width} x {height} pixels fits no canvas of the model; crop it"
            );
            Error::Image { reason }
        })
    }

    /// How many feature vectors of the canvas are no padding, with one more for each row.
    fn canvas_tokens(&self, picture: Extent, canvas: Extent, view: Extent) -> usize {
        let (columns, rows) = (view.width / self.patch, view.height / self.patch);
        let columns = columns * (canvas.width / view.width);
        let rows = rows * (canvas.height / view.height);
        let (width, height) = (picture.width as f64, picture.height as f64);
        // Seven digits, as the reference rounds before it cuts.
        let whole = |x: f64| (round_to_seven_digits(x)) as usize;
        let is_wide = width / height > columns as f64 / rows as f64;
        let (columns, rows) = if is_wide {
            let kept = whole(height * (columns as f64 / width));
            (columns, rows - rows.saturating_sub(kept) / 2 * 2)
        } else {
            let kept = whole(width * (rows as f64 / height));
            (columns - columns.saturating_sub(kept) / 2 * 2, rows)
        };
        rows * columns + rows
    }
}

fn round_to_seven_digits(x: f64) -> f64 {
    format!("{x:.7}").parse().unwrap_or(x)
}

impl Processor for Canvas {
    fn markers(&self) -> &[Marker] {
        std::slice::from_ref(&self.marker)
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let canvas = self.best(picture.extent())?;
        super::check(picture, canvas)?;
        let fitted = resized(picture, inside(picture.extent(), canvas), self.filter)?;
        let before = |whole: usize, part: usize| -(((whole - part) / 2) as isize);
        let (x, y) = (before(canvas.width, fitted.width), before(canvas.height, fitted.height));
        let padded = fitted.window(x, y, canvas, [0; 3]);
        let grid = Extent { width: canvas.width / self.tile, height: canvas.height / self.tile };
        let mut views = vec![resized(picture, self.whole, self.filter)?];
        views.extend(cut(&padded, grid, Extent::square(self.tile)));
        let (mut values, mut size) = (Vec::new(), self.whole);
        for view in &views {
            let view = self.sizing.apply(view)?;
            size = view.extent();
            self.normalization.planes(&view, &mut values);
        }
        let count = self.whole_tokens + self.canvas_tokens(picture.extent(), canvas, size);
        let shape = [1, views.len(), 3, size.height, size.width];
        Ok(Prepared {
            tensors: vec![
                NamedTensor::floats("pixel_values", &shape, values),
                NamedTensor::integers("image_sizes", &[1, 2], [picture.height, picture.width]),
            ],
            placeholders: vec![Piece::tokens(self.image, count)],
            soft_tokens: count,
            channel_run: size.area(),
        })
    }
}

/// With the canvases, the mean and the deviation of the first models where the file says nothing.
///
/// # Errors
/// [`Error::Config`].
pub fn read(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({
        "do_resize": true, "size": {"shortest_edge": 224}, "resample": 3,
        "do_center_crop": true, "crop_size": {"height": 224, "width": 224},
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }))?;
    let size: SizeField = fields.get("size")?;
    let whole = size.extent().or(size.shortest_edge().map(Extent::square));
    let whole = whole.filter(|size| size.area() > 0);
    let whole = whole.ok_or_else(|| fields.wrong("size", "has no edge"))?;
    let crop = fields.get::<SizeField>("crop_size")?.extent();
    let tile = crop.map_or(whole.height, |crop| crop.height);
    let canvases: Vec<[usize; 2]> = fields.get("image_grid_pinpoints")?;
    let canvas = |[height, width]: [usize; 2]| {
        let size = Extent { width, height };
        let is_possible =
            tile > 0 && height % tile + width % tile == 0 && height.max(width) <= 1 << 16;
        let reason = || format!("{height} x {width} is no grid of tiles of {tile} pixels");
        if is_possible { Ok(size) } else { Err(fields.wrong("image_grid_pinpoints", reason())) }
    };
    let sizing = Sizing::read(&fields)?;
    let patch = patch_size(settings)?;
    let view = crop.unwrap_or(whole);
    let image =
        settings.token(&["image_token_index", "image_token_id"], "image_token", "<image>")?;
    Ok(Box::new(Canvas {
        canvases: canvases.into_iter().map(canvas).collect::<Result<_>>()?,
        whole,
        tile,
        sizing,
        filter: fields.filter()?,
        normalization: Normalization::read(&fields)?,
        patch,
        whole_tokens: soft_tokens(settings, (view.width / patch) * (view.height / patch))?,
        marker: Marker::token(image, settings.tokenizer),
        image,
    }))
}
