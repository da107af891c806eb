//! A picture stretched to a grid of tiles, and the whole picture after them where there are several:
//! `GotOcr2ImageProcessor` and `Cohere2VisionImageProcessor`.

use crate::{
    error::{Error, Result},
    media::{
        image::{Extent, Pixels},
        resize::Filter,
    },
    processors::{
        Fields, Marker, NamedTensor, Normalization, Piece, Prepared, Processor, Settings,
        SizeField, layouts, resized, tiles::cut,
    },
};
use serde::Deserialize;
use serde_json::{Value, json};

/// Chooses the grid of a picture.
type Layout = fn(Extent, Extent, usize, usize) -> Extent;

struct Grid {
    /// Chooses the grid; none where the picture is never cut.
    layout: Option<Layout>,
    least: usize,
    most: usize,
    /// Whether the whole picture stands after several tiles.
    adds_whole: bool,
    tile: Extent,
    filter: Filter,
    normalization: Normalization,
    marker: Marker,
    /// Whether the model learns the id of the placeholders from the picture.
    tells_placeholder: bool,
    placeholders: Placeholders,
}

/// What stands for a picture.
struct Placeholders {
    start: Piece,
    /// Before each view but the last: its number comes after this text.
    tile: Option<&'static str>,
    /// Before the last view.
    last: Option<Piece>,
    image: u32,
    count: usize,
    /// After each view.
    after: Option<Piece>,
    end: Piece,
}

impl Placeholders {
    fn of(&self, views: usize) -> Vec<Piece> {
        let mut pieces = vec![self.start.clone()];
        for view in 1..=views {
            match (self.tile, &self.last) {
                (Some(tile), _) if view < views => {
                    pieces.push(Piece::Text(format!("{tile}{view}")))
                }
                (_, last) if view == views => pieces.extend(last.clone()),
                _ => {}
            }
            pieces.push(Piece::tokens(self.image, self.count));
            pieces.extend(self.after.clone());
        }
        pieces.push(self.end.clone());
        pieces
    }
}

impl Grid {
    fn read(
        settings: &Settings,
        defaults: Value,
        layout: Layout,
        placeholders: impl FnOnce(&Fields) -> Result<(Marker, Placeholders)>,
    ) -> Result<Box<dyn Processor>> {
        let fields = settings.image(defaults)?;
        let tile = fields.get::<SizeField>("size")?.extent();
        let most = fields.count("max_patches")?;
        let (marker, placeholders) = placeholders(&fields)?;
        let is_cut = fields.is_on("crop_to_patches")? && most > 1;
        Ok(Box::new(Grid {
            layout: is_cut.then_some(layout),
            least: fields.count("min_patches")?,
            // More tiles than a prompt has room for are not looked at.
            most: most.min(256),
            adds_whole: true,
            tile: tile.ok_or_else(|| fields.wrong("size", "has no height and width"))?,
            filter: fields.filter()?,
            normalization: Normalization::read(&fields)?,
            marker,
            tells_placeholder: false,
            placeholders,
        }))
    }
}

impl Processor for Grid {
    fn markers(&self) -> &[Marker] {
        std::slice::from_ref(&self.marker)
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let size = picture.extent();
        let grid = self.layout.map(|layout| layout(size, self.tile, self.least, self.most));
        let grid = grid.unwrap_or(Extent::square(1));
        let Extent { width, height } = self.tile;
        let canvas = Extent { width: width * grid.width, height: height * grid.height };
        let mut views = cut(&resized(picture, canvas, self.filter)?, grid, self.tile);
        if self.adds_whole && views.len() > 1 {
            views.push(resized(picture, self.tile, self.filter)?);
        }
        let mut values = Vec::with_capacity(3 * views.len() * self.tile.area());
        views.iter().for_each(|view| self.normalization.planes(view, &mut values));
        let shape = [views.len(), 3, height, width];
        let mut tensors = vec![NamedTensor::floats("pixel_values", &shape, values)];
        if self.tells_placeholder {
            let id = self.placeholders.image as usize;
            tensors.push(NamedTensor::integers("image_token_id", &[1], [id]));
        }
        Ok(Prepared {
            tensors,
            placeholders: self.placeholders.of(views.len()),
            soft_tokens: views.len() * self.placeholders.count,
            channel_run: self.tile.area(),
        })
    }
}

fn defaults(tile: usize, is_cut: bool) -> Value {
    json!({
        "size": {"height": tile, "width": tile}, "resample": 3, "crop_to_patches": is_cut,
        "min_patches": 1, "max_patches": 12,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    })
}

/// A piece of this text: a token, where the vocabulary has it.
fn piece(settings: &Settings, text: &str) -> Piece {
    settings.token_of(text).map_or_else(|| Piece::written(text), Piece::token)
}

/// Numbered tiles between a token at the start and one at the end; `AyaVisionProcessor`.
///
/// # Errors
/// [`Error::Config`].
pub fn numbered(settings: &Settings) -> Result<Box<dyn Processor>> {
    let processor = settings.processor()?;
    let number = |name: &str, default: usize| {
        processor.optional_count(name).map(|number| number.unwrap_or(default))
    };
    let patch = number("patch_size", 28)? * number("downsample_factor", 1)?;
    let side = number("img_size", 364)? / patch;
    let image = settings.token(
        &["image_token_index", "image_token_id"],
        "img_patch_token",
        "<|IMG_PATCH|>",
    )?;
    let placeholders = Placeholders {
        start: piece(settings, "<|START_OF_IMG|>"),
        tile: Some("TILE_"),
        last: Some(piece(settings, "TILE_GLOBAL")),
        image,
        count: side * side,
        after: None,
        end: piece(settings, "<|END_OF_IMG|>"),
    };
    let marker = Marker::text("<image>", settings.tokenizer)?;
    Grid::read(settings, defaults(384, false), layouts::closest, |_| Ok((marker, placeholders)))
}

/// Tiles that end with a token for the line; `Cohere2VisionProcessor`.
///
/// # Errors
/// [`Error::Config`].
pub fn lined(settings: &Settings) -> Result<Box<dyn Processor>> {
    let mut all = defaults(512, true);
    all["patch_size"] = 16.into();
    let layout: Layout = |picture, tile, _, most| layouts::least_scaled(picture, tile, most);
    Grid::read(settings, all, layout, |fields| {
        let token = |role: &str, text: &str| settings.token(&[], role, text).map(Piece::token);
        let image = settings.token(
            &["image_token_id", "image_token_index"],
            "image_token",
            "<|IMG_PATCH|>",
        )?;
        let placeholders = Placeholders {
            start: token("boi_token", "<|START_OF_IMG|>")?,
            tile: None,
            last: None,
            image,
            count: fields.count("patch_size")?.pow(2),
            after: Some(token("img_line_break_token", "<|IMG_LINE_BREAK|>")?),
            end: token("eoi_token", "<|END_OF_IMG|>")?,
        };
        Ok((Marker::token(image, settings.tokenizer), placeholders))
    })
}

/// Tiles between a token at the start and one at the end; `InternVLProcessor`.
///
/// # Errors
/// [`Error::Config`].
pub fn plain(settings: &Settings) -> Result<Box<dyn Processor>> {
    let count = settings.processor()?.optional_count("image_seq_length")?;
    let count = match count {
        Some(count) => count,
        None => settings.config("image_seq_length")?.unwrap_or(256),
    };
    let image = settings.token(&["image_token_id"], "context_image_token", "<IMG_CONTEXT>")?;
    let token = |role: &str, text: &str| settings.token(&[], role, text).map(Piece::token);
    let placeholders = Placeholders {
        start: token("start_image_token", "<img>")?,
        tile: None,
        last: None,
        image,
        count,
        after: None,
        end: token("end_image_token", "</img>")?,
    };
    let marker = Marker::token(image, settings.tokenizer);
    Grid::read(settings, defaults(384, false), layouts::closest, |_| Ok((marker, placeholders)))
}

/// As [`plain`], from the fields of `config.json`, where `<image>` marks the place; `load_image` of the code
/// that published models have beside them.
///
/// # Errors
/// [`Error::Config`].
pub fn chat(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image_or_defaults(json!({
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }))?;
    let size = |name: &str, default: usize| {
        let size = settings.config::<PerSide>(name)?.map_or(default, PerSide::side);
        let bounds = format!("{size} is not between 1 and {LONGEST_SIDE}");
        (1..=LONGEST_SIDE)
            .contains(&size)
            .then_some(size)
            .ok_or_else(|| Error::config(name, bounds))
    };
    let patch = size("vision_config.patch_size", 14)?;
    let own = settings.config::<usize>("force_image_size")?;
    let side = match own.is_some_and(|side| side > 0) {
        true => size("force_image_size", 0)?,
        false => size("vision_config.image_size", 224)?,
    };
    let ratio = settings.config::<f64>("downsample_ratio")?.unwrap_or(0.5);
    let count = (((side / patch) as f64).powi(2) * ratio * ratio) as usize;
    if count == 0 {
        let reason = format!("{ratio} leaves nothing of a tile of {side} pixels");
        return Err(Error::config("downsample_ratio", reason));
    }
    let flag = |name: &str, default: bool| {
        Ok::<_, Error>(settings.config::<bool>(name)?.unwrap_or(default))
    };
    let most = size("max_dynamic_patch", 12)?;
    let is_cut = flag("dynamic_image_size", true)? && most > 1;
    let token = |text: &str| settings.token(&[], "", text);
    let image = token("<IMG_CONTEXT>")?;
    Ok(Box::new(Grid {
        layout: is_cut.then_some(layouts::closest as Layout),
        least: size("min_dynamic_patch", 1)?,
        most: most.min(256),
        adds_whole: flag("use_thumbnail", true)?,
        tile: Extent::square(side),
        filter: fields.filter()?,
        normalization: Normalization::read(&fields)?,
        marker: Marker::text("<image>", settings.tokenizer)?,
        tells_placeholder: true,
        placeholders: Placeholders {
            start: Piece::token(token("<img>")?),
            tile: None,
            last: None,
            image,
            count,
            after: None,
            end: Piece::token(token("</img>")?),
        },
    }))
}

/// No side and no count of tiles is larger.
const LONGEST_SIDE: usize = 1 << 16;

/// A number, or one for the height and one for the width.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum PerSide {
    Both(usize),
    Each([usize; 2]),
}

impl PerSide {
    fn side(self) -> usize {
        match self {
            PerSide::Both(side) | PerSide::Each([side, _]) => side,
        }
    }
}
