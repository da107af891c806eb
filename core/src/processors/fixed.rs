//! One picture in one size, and crops of it where it is long: every picture has the same number of
//! placeholders.

use crate::{
    error::Result,
    media::{
        image::{Extent, Pixels},
        resize::Filter,
    },
    processors::{
        Fields, Marker, NamedTensor, Normalization, PLACE, Piece, Prepared, Processor, Settings,
        SizeField, Surroundings, resized,
    },
    text::Tokenizer,
};
use serde_json::{Value, json};

/// How a picture gets its size.
pub(super) struct Sizing {
    resize: Option<SizeField>,
    filter: Filter,
    crop: Option<Extent>,
}

impl Sizing {
    /// Reads `do_resize`, `size`, `resample`, `do_center_crop` and `crop_size`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config).
    pub fn read(fields: &Fields) -> Result<Self> {
        let resize = fields.is_on("do_resize")?.then(|| fields.get("size")).transpose()?;
        let crop = match fields.is_on("do_center_crop")? {
            true => {
                let crop = fields.get::<SizeField>("crop_size")?.extent();
                Some(crop.ok_or_else(|| fields.wrong("crop_size", "has no height and width"))?)
            }
            false => None,
        };
        Ok(Sizing { resize, filter: fields.filter()?, crop })
    }

    /// The picture resized, then cropped around its centre.
    ///
    /// # Errors
    /// [`Error::Image`](crate::Error::Image) when the size has no pixels or too many.
    pub fn apply(&self, picture: &Pixels) -> Result<Pixels> {
        let resized = match self.resize.map(|size| edges(size, picture.extent())) {
            Some(size) => resized(picture, size, self.filter)?,
            None => picture.clone(),
        };
        let Some(crop) = self.crop else { return Ok(resized) };
        super::check(picture, crop)?;
        let start = |whole: usize, part: usize| match whole >= part {
            true => ((whole - part) / 2) as isize,
            // What is missing is black, the larger half of it before the picture.
            false => -((part - whole).div_ceil(2) as isize),
        };
        let (x, y) = (start(resized.width, crop.width), start(resized.height, crop.height));
        Ok(resized.window(x, y, crop, [0; 3]))
    }
}

/// The size that `size` asks for: a rectangle, or a shorter edge.
fn edges(size: SizeField, picture: Extent) -> Extent {
    if let Some(extent) = size.extent().filter(|_| !matches!(size, SizeField::Edge(_))) {
        return extent;
    }
    let short = size.shortest_edge().unwrap_or(0);
    let Extent { width, height } = picture;
    let long = (short * width.max(height)) / width.min(height);
    match width <= height {
        true => Extent { width: short, height: long },
        false => Extent { width: long, height: short },
    }
}

/// A picture of one size.
struct Fixed {
    /// The colour of what makes the picture a square before it is resized, where it becomes one.
    border: Option<[u8; 3]>,
    sizing: Sizing,
    normalization: Normalization,
    crops: Option<Crops>,
    marker: Marker,
    placeholders: Vec<Piece>,
    soft_tokens: usize,
    surroundings: Surroundings,
}

/// Crops of a long picture ("pan and scan").
struct Crops {
    least_size: usize,
    most: usize,
    least_ratio: f64,
}

impl Crops {
    fn read(fields: &Fields) -> Result<Option<Self>> {
        if !fields.is_on("do_pan_and_scan")? {
            return Ok(None);
        }
        Ok(Some(Crops {
            least_size: fields.count("pan_and_scan_min_crop_size")?,
            most: fields.count("pan_and_scan_max_num_crops")?,
            least_ratio: fields.get("pan_and_scan_min_ratio_to_activate")?,
        }))
    }

    /// The crops, side by side along the longer side.
    fn of(&self, picture: &Pixels) -> Vec<Pixels> {
        let Extent { width, height } = picture.extent();
        let (long, short) = (width.max(height), width.min(height));
        let ratio = long as f64 / short as f64;
        if ratio < self.least_ratio {
            return Vec::new();
        }
        let count = ((ratio + 0.5).floor() as usize).min(long / self.least_size);
        let count = count.max(2).min(self.most);
        let length = long.div_ceil(count);
        if length.min(short) < self.least_size {
            return Vec::new();
        }
        let crop = |i: usize| {
            // The last crop ends where the picture ends.
            let (start, length) = (i * length, length.min(long - (i * length).min(long)));
            match width >= height {
                true => (start, 0, Extent { width: length, height }),
                false => (0, start, Extent { width, height: length }),
            }
        };
        let crops = (0..count).map(crop).filter(|(_, _, size)| size.area() > 0);
        crops.map(|(x, y, size)| picture.window(x as isize, y as isize, size, [0; 3])).collect()
    }
}

/// The picture in the middle of a square; of an odd rest, the smaller half is before it.
fn squared(picture: &Pixels, border: [u8; 3]) -> Result<Pixels> {
    let Extent { width, height } = picture.extent();
    let square = Extent::square(width.max(height));
    super::check(picture, square)?;
    let before = |side: usize| -(((square.width - side) / 2) as isize);
    Ok(picture.window(before(width), before(height), square, border))
}

impl Processor for Fixed {
    fn markers(&self) -> &[Marker] {
        std::slice::from_ref(&self.marker)
    }

    fn surroundings(&self) -> Surroundings {
        self.surroundings.clone()
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let crops = self.crops.as_ref().map_or(Vec::new(), |crops| crops.of(picture));
        let (mut values, mut size) = (Vec::new(), picture.extent());
        for view in [picture].into_iter().chain(&crops) {
            let view = match self.border {
                Some(border) => self.sizing.apply(&squared(view, border)?)?,
                None => self.sizing.apply(view)?,
            };
            size = view.extent();
            self.normalization.planes(&view, &mut values);
        }
        let mut placeholders = self.placeholders.clone();
        for i in 0..crops.len() {
            let before =
                if i == 0 { " and here are some crops to help you see better " } else { " " };
            placeholders.push(Piece::written(before));
            placeholders.extend_from_slice(&self.placeholders);
        }
        if !crops.is_empty() {
            placeholders.insert(0, Piece::written("Here is the original image "));
        }
        let views = 1 + crops.len();
        let shape = [views, 3, size.height, size.width];
        Ok(Prepared {
            tensors: vec![NamedTensor::floats("pixel_values", &shape, values)],
            placeholders,
            soft_tokens: views * self.soft_tokens,
            channel_run: size.area(),
        })
    }
}

/// A square, with crops of long pictures, between a token at the start, one at the end and line breaks;
/// `Gemma3ImageProcessor` and `Gemma3Processor`.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub fn with_crops(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({
        "do_resize": true, "size": {"height": 224, "width": 224}, "resample": 2,
        "image_mean": 0.5, "image_std": 0.5,
        "do_pan_and_scan": false, "pan_and_scan_min_crop_size": 256,
        "pan_and_scan_max_num_crops": 4, "pan_and_scan_min_ratio_to_activate": 1.2,
    }))?;
    let start = settings.token(&["boi_token_index"], "boi_token", "<start_of_image>")?;
    let end = settings.token(&["eoi_token_index"], "eoi_token", "<end_of_image>")?;
    let soft = settings.token(
        &["image_token_index", "image_token_id"],
        "image_token",
        "<image_soft_token>",
    )?;
    let count = settings.processor()?.optional_count("image_seq_length")?;
    let count = match count {
        Some(count) => count,
        None => settings.config("mm_tokens_per_image")?.unwrap_or(256),
    };
    Ok(Box::new(Fixed {
        border: None,
        sizing: Sizing::read(&fields)?,
        normalization: Normalization::read(&fields)?,
        crops: Crops::read(&fields)?,
        marker: Marker::token(start, settings.tokenizer),
        placeholders: vec![
            Piece::written("\n\n"),
            Piece::token(start),
            Piece::tokens(soft, count),
            Piece::token(end),
            Piece::written("\n\n"),
        ],
        soft_tokens: count,
        surroundings: Surroundings::default(),
    }))
}

/// A square before a token at the start and the text, which a line break ends; `SiglipImageProcessor` and
/// `PaliGemmaProcessor`.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub fn with_start_after(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({
        "do_resize": true, "size": {"height": 224, "width": 224}, "resample": 3,
        "image_mean": 0.5, "image_std": 0.5,
    }))?;
    let image =
        settings.token(&["image_token_index", "image_token_id"], "image_token", "<image>")?;
    let start = settings.start_token(Tokenizer::bos_token)?;
    let own = match fields.optional_count("image_seq_length")? {
        Some(count) => Some(count),
        None => settings.config("text_config.num_image_tokens")?,
    };
    let sizing = Sizing::read(&fields)?;
    let count = match own {
        Some(count) => count,
        None => patches(settings, &fields, &sizing)?.area(),
    };
    Ok(Box::new(Fixed {
        border: None,
        sizing,
        normalization: Normalization::read(&fields)?,
        crops: None,
        marker: Marker::token(image, settings.tokenizer),
        placeholders: vec![Piece::tokens(image, count)],
        soft_tokens: count,
        surroundings: Surroundings {
            after_media: vec![Piece::token(start)],
            end: vec![Piece::written("\n")],
            ..Surroundings::default()
        },
    }))
}

/// A square cut out of the centre, one token for each patch; `CLIPImageProcessor` or
/// `SiglipImageProcessor`, and `LlavaProcessor`.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub fn centered(settings: &Settings) -> Result<Box<dyn Processor>> {
    let fields = settings.image(json!({}))?;
    let is_whole = fields.get::<Option<String>>("image_processor_type")?;
    let is_whole = is_whole.is_some_and(|name| name.starts_with("Siglip"));
    let defaults = if is_whole { WHOLE } else { CENTER };
    let fields = settings.image(defaults())?;
    let image =
        settings.token(&["image_token_index", "image_token_id"], "image_token", "<image>")?;
    let sizing = Sizing::read(&fields)?;
    let grid = patches(settings, &fields, &sizing)?;
    let count = soft_tokens(settings, grid.area())?;
    Ok(Box::new(Fixed {
        border: None,
        sizing,
        normalization: Normalization::read(&fields)?,
        crops: None,
        marker: Marker::token(image, settings.tokenizer),
        placeholders: vec![Piece::tokens(image, count)],
        soft_tokens: count,
        surroundings: Surroundings::default(),
    }))
}

/// A square, one token for each patch, where −200 or `<image>` marks the place: the code of nanoLLaVA.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub fn marked(settings: &Settings) -> Result<Box<dyn Processor>> {
    let mut defaults = WHOLE();
    defaults["size"] = json!({"height": 384, "width": 384});
    let fields = settings.image_or_defaults(defaults)?;
    let sizing = Sizing::read(&fields)?;
    let count = patches(settings, &fields, &sizing)?.area();
    Ok(Box::new(Fixed {
        border: None,
        sizing,
        normalization: Normalization::read(&fields)?,
        crops: None,
        marker: Marker::place(),
        placeholders: vec![Piece::tokens(PLACE, count)],
        soft_tokens: count,
        surroundings: Surroundings::default(),
    }))
}

/// A square around the whole picture, one token for each feature of a tower of convolutions, where −200 or
/// `<image>` marks the place; `LlavaImageProcessor` with `do_pad`.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub fn squared_and_reduced(settings: &Settings) -> Result<Box<dyn Processor>> {
    // The name of the tower ends in the side of its pictures.
    let tower: Option<String> = settings.config("mm_vision_tower")?;
    let side = tower.and_then(|tower| tower.rsplit('_').next()?.parse().ok()).unwrap_or(1024_u32);
    let fields = settings.image_or_defaults(json!({
        "do_resize": true, "size": {"shortest_edge": side}, "resample": 3,
        "do_center_crop": true, "crop_size": {"height": side, "width": side},
        "image_mean": 0.0, "image_std": 1.0,
    }))?;
    let is_padded = match settings.config::<String>("image_aspect_ratio")?.as_deref() {
        None | Some("pad") => true,
        Some("square") => false,
        Some(other) => {
            let reason = format!("`{other}` is not supported, only pad and square are");
            return Err(crate::Error::unsupported("image_aspect_ratio", reason));
        }
    };
    let normalization = Normalization::read(&fields)?;
    let border = Normalization::mean_levels(&fields)?;
    let sizing = Sizing::read(&fields)?;
    let size = sizing.crop.or(sizing.resize.map(|size| edges(size, Extent::square(1))));
    let size = size.ok_or_else(|| fields.wrong("size", "has no height and width"))?;
    let strides = strides(settings)?;
    let reduced = |side: usize| strides.iter().fold(side, |side, stride| side.div_ceil(*stride));
    let count = reduced(size.width) * reduced(size.height);
    Ok(Box::new(Fixed {
        border: is_padded.then_some(border),
        sizing,
        normalization,
        crops: None,
        marker: Marker::place(),
        placeholders: vec![Piece::tokens(PLACE, count)],
        soft_tokens: count,
        surroundings: Surroundings::default(),
    }))
}

/// By how much each convolution of such a tower reduces a side: those of the stem, then those between
/// stages.
fn strides(settings: &Settings) -> Result<Vec<usize>> {
    let widths: Option<Vec<i64>> = settings.config("vision_config.embed_dims")?;
    let widths = widths.unwrap_or_else(|| vec![96, 192, 384, 768, 1536]);
    let reduces: Option<Vec<bool>> = settings.config("vision_config.downsamples")?;
    let reduces = |stage: usize| match &reduces {
        Some(reduces) => reduces.get(stage).copied().unwrap_or(false),
        None => true,
    };
    let stride: usize = settings.config("vision_config.down_stride")?.unwrap_or(2);
    if stride == 0 {
        return Err(crate::Error::config("vision_config.down_stride", "is 0"));
    }
    let between = widths.windows(2).enumerate();
    let between = between.filter(|(stage, pair)| reduces(*stage) || pair[0] != pair[1]);
    Ok([2, 2].into_iter().chain(between.map(|_| stride)).collect())
}

/// The defaults of a processor that takes the whole picture.
const WHOLE: fn() -> Value = || {
    json!({
        "do_resize": true, "size": {"height": 224, "width": 224}, "resample": 3,
        "image_mean": 0.5, "image_std": 0.5,
    })
};

/// The defaults of a processor that takes the centre of the picture.
const CENTER: fn() -> Value = || {
    json!({
        "do_resize": true, "size": {"shortest_edge": 224}, "resample": 3,
        "do_center_crop": true, "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    })
};

/// The patches of a picture of the only size, columns and rows.
fn patches(settings: &Settings, fields: &Fields, sizing: &Sizing) -> Result<Extent> {
    let size = sizing.crop.or(sizing.resize.and_then(SizeField::extent));
    let size = size.ok_or_else(|| fields.wrong("size", "has no height and width"))?;
    let patch = patch_size(settings)?;
    Ok(Extent { width: size.width / patch, height: size.height / patch })
}

/// The side of a patch, of the processor or else of the tower.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) when it is nowhere.
pub(super) fn patch_size(settings: &Settings) -> Result<usize> {
    if let Some(patch) = settings.processor()?.optional_count("patch_size")? {
        return Ok(patch);
    }
    let patch = settings.config("vision_config.patch_size")?.filter(|patch| *patch > 0);
    patch.ok_or_else(|| crate::Error::config("vision_config.patch_size", "missing"))
}

/// The feature vectors of `patches` patches: those of other tokens of the tower too, less the first where
/// that is dropped. Old checkpoints do not say how many others there are: then it is the one that is
/// dropped.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub(super) fn soft_tokens(settings: &Settings, patches: usize) -> Result<usize> {
    let processor = settings.processor()?;
    let strategy = match processor.get::<Option<String>>("vision_feature_select_strategy")? {
        Some(strategy) => strategy,
        None => settings.config("vision_feature_select_strategy")?.unwrap_or("default".into()),
    };
    let is_dropped = strategy == "default";
    let is_old = processor.optional_count("patch_size")?.is_none();
    let others = processor.get::<Option<usize>>("num_additional_image_tokens")?;
    let others = others.unwrap_or(usize::from(is_old && is_dropped));
    Ok((patches + others).saturating_sub(usize::from(is_dropped)))
}
