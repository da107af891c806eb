//! A picture as a grid of tiles, row by row, and the whole picture last, where the tiles have names in
//! the prompt: `Idefics3ImageProcessor` and `Idefics3Processor`.

use crate::{
    error::Result,
    media::{
        image::{Extent, Pixels},
        resize::Filter,
    },
    processors::{
        Marker, NamedTensor, Normalization, Piece, Prepared, Processor, Settings, SizeField,
        resized,
    },
};
use serde_json::json;

/// The longest side that a picture is resized to before it is cut.
const LONGEST_SIDE: usize = 4096;
/// The sides of the largest grid whose tiles have names.
const NAMED_TILES: usize = 16;

struct NamedTiles {
    /// The longer side before the picture is cut.
    longest_edge: Option<usize>,
    /// The side of a tile.
    tile: usize,
    is_split: bool,
    filter: Filter,
    normalization: Normalization,
    marker: Marker,
    image: u32,
    /// The token around each view.
    around: u32,
    /// The token of the whole picture.
    whole: Piece,
    /// The placeholders of a view.
    count: usize,
    /// The names of tiles by row and column, where the tokenizer has them as tokens.
    names: Vec<Vec<Option<u32>>>,
}

/// The size in which the longer side is `longest`; the shorter one is even.
fn with_longest(size: Extent, longest: usize) -> Extent {
    let ratio = size.width as f64 / size.height as f64;
    let even = |side: f64| ((side as usize).next_multiple_of(2)).max(1);
    match size.width >= size.height {
        true => Extent { width: longest, height: even(longest as f64 / ratio) },
        false => Extent { width: even(longest as f64 * ratio), height: longest },
    }
}

/// The size whose longer side is at most [`LONGEST_SIDE`].
fn bounded(size: Extent) -> Extent {
    let ratio = size.width as f64 / size.height as f64;
    let longest = LONGEST_SIDE as f64;
    match size.longest() > LONGEST_SIDE {
        false => size,
        true if size.width >= size.height => {
            Extent { width: LONGEST_SIDE, height: ((longest / ratio) as usize).max(1) }
        }
        true => Extent { width: ((longest * ratio) as usize).max(1), height: LONGEST_SIDE },
    }
}

impl NamedTiles {
    /// The size in which both sides are multiples of a tile.
    fn whole_tiles(&self, size: Extent) -> Extent {
        let ratio = size.width as f64 / size.height as f64;
        let up = |side: usize| side.next_multiple_of(self.tile);
        match size.width >= size.height {
            true => {
                let width = up(size.width);
                Extent { width, height: up((width as f64 / ratio) as usize) }
            }
            false => {
                let height = up(size.height);
                Extent { width: up((height as f64 * ratio) as usize), height }
            }
        }
    }

    /// The grid, columns and rows, and its tiles with the whole picture last; one view has no grid.
    fn views(&self, picture: &Pixels) -> Result<Cut> {
        let whole = Extent::square(self.tile);
        let own;
        let picture = match self.longest_edge {
            Some(edge) => {
                own = resized(picture, bounded(with_longest(picture.extent(), edge)), self.filter)?;
                &own
            }
            None => picture,
        };
        if !self.is_split {
            return Ok(Cut {
                grid: Extent::square(0),
                views: vec![resized(picture, whole, self.filter)?],
            });
        }
        let picture = resized(picture, self.whole_tiles(picture.extent()), self.filter)?;
        if picture.extent() == whole {
            return Ok(Cut { grid: Extent::square(0), views: vec![picture] });
        }
        let grid = Extent { width: picture.width / self.tile, height: picture.height / self.tile };
        let mut views = cut(&picture, grid, whole);
        views.push(resized(&picture, whole, self.filter)?);
        Ok(Cut { grid, views })
    }

    fn name(&self, row: usize, column: usize) -> Piece {
        let known = self.names.get(row).and_then(|names| *names.get(column)?);
        known.map_or_else(
            || Piece::Text(format!("<row_{}_col_{}>", row + 1, column + 1)),
            Piece::token,
        )
    }

    fn placeholders(&self, grid: Extent) -> Vec<Piece> {
        let view =
            |name: Piece| [Piece::token(self.around), name, Piece::tokens(self.image, self.count)];
        let mut pieces = Vec::new();
        for row in 0..grid.height {
            pieces.extend((0..grid.width).flat_map(|column| view(self.name(row, column))));
            pieces.push(Piece::written(if row + 1 == grid.height { "\n\n" } else { "\n" }));
        }
        pieces.extend(view(self.whole.clone()));
        pieces.push(Piece::token(self.around));
        pieces
    }
}

/// A picture that has been cut.
struct Cut {
    /// Columns and rows; 0 when there is one view.
    grid: Extent,
    views: Vec<Pixels>,
}

/// The tiles of a picture, row by row.
pub(super) fn cut(picture: &Pixels, grid: Extent, tile: Extent) -> Vec<Pixels> {
    let place = |index: usize| {
        let (row, column) = (index / grid.width, index % grid.width);
        ((column * tile.width) as isize, (row * tile.height) as isize)
    };
    let tiles = (0..grid.area()).map(place);
    tiles.map(|(x, y)| picture.window(x, y, tile, [0; 3])).collect()
}

impl Processor for NamedTiles {
    fn markers(&self) -> &[Marker] {
        std::slice::from_ref(&self.marker)
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let Cut { grid, views } = self.views(picture)?;
        let mut values = Vec::with_capacity(3 * views.len() * self.tile.pow(2));
        views.iter().for_each(|view| self.normalization.planes(view, &mut values));
        let (count, side) = (views.len(), self.tile);
        let mask = std::iter::repeat_n(1, count * side * side);
        Ok(Prepared {
            tensors: vec![
                NamedTensor::floats("pixel_values", &[1, count, 3, side, side], values),
                NamedTensor::integers("pixel_attention_mask", &[1, count, side, side], mask),
            ],
            placeholders: self.placeholders(grid),
            soft_tokens: count * self.count,
            channel_run: side * side,
        })
    }
}

/// Tiles with names.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub fn named(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({
        "do_resize": true, "size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364},
        "resample": 1, "do_image_splitting": true, "image_mean": 0.5, "image_std": 0.5,
    }))?;
    let edge = |name: &str| {
        let edge = fields.get::<SizeField>(name)?.longest_edge().filter(|edge| *edge > 0);
        edge.ok_or_else(|| fields.wrong(name, "has no longest_edge"))
    };
    let image = settings.token(&["image_token_id"], "image_token", "<image>")?;
    let names = |row: usize| {
        let name =
            |column: usize| settings.token_of(&format!("<row_{}_col_{}>", row + 1, column + 1));
        (0..NAMED_TILES).map(name).collect()
    };
    let whole = settings.token_of("<global-img>");
    let count = settings.processor()?.optional_count("image_seq_len")?;
    Ok(Box::new(NamedTiles {
        longest_edge: fields.is_on("do_resize")?.then(|| edge("size")).transpose()?,
        tile: edge("max_image_size")?,
        is_split: fields.is_on("do_image_splitting")?,
        filter: fields.filter()?,
        normalization: Normalization::read(&fields)?,
        marker: Marker::token(image, settings.tokenizer),
        image,
        around: settings.token(&[], "fake_image_token", "<fake_token_around_image>")?,
        whole: whole.map_or(Piece::written("<global-img>"), Piece::token),
        count: count.unwrap_or(169),
        names: (0..NAMED_TILES).map(names).collect(),
    }))
}
