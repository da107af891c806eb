//! Pictures in their own shape: sides become multiples of a block and the area stays within limits; the
//! tower gets flattened patches in the order in which it merges them. `Qwen2VLImageProcessor`,
//! `Qwen2VLVideoProcessor` and their processors.

use crate::{
    error::{Error, Result},
    media::{
        image::{Extent, Pixels},
        resize::Filter,
        video::Video,
    },
    processors::{
        Fields, Marker, NamedTensor, Normalization, Piece, Prepared, Processor, Settings,
        SizeField, resized, round_half_even,
    },
};
use serde_json::{Value, json};

/// The limits of a picture, in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    /// The side of a block: both sides are multiples of it.
    pub block: usize,
    /// The fewest pixels.
    pub least: usize,
    /// The most pixels.
    pub most: usize,
}

impl Area {
    /// The size within the limits that keeps the shape best.
    ///
    /// # Errors
    /// [`Error::Image`] for a side 200 times as long as the other.
    pub fn fit(self, size: Extent) -> Result<Extent> {
        let (width, height) = (size.width as f64, size.height as f64);
        if width.max(height) / width.min(height) > 200.0 {
            let reason = format!(
                "a picture of {width} x {height} pixels is too narrow for the model, which reads sides \
                 of at most 1 to 200; crop it"
            );
            return Err(Error::Image { reason });
        }
        Ok(self.within(size, self.rounded(size), Frames::ONE))
    }

    /// The size of frames that keep the limits together: of a clip, or of a picture that counts as several.
    ///
    /// # Errors
    /// As [`Area::fit`].
    pub fn fit_frames(self, size: Extent, frames: Frames) -> Result<Extent> {
        let (width, height, block) = (size.width as f64, size.height as f64, self.block as f64);
        let enlarge = (block / width).max(block / height).max(1.0);
        let size =
            Extent { width: (width * enlarge) as usize, height: (height * enlarge) as usize };
        self.fit(size)?;
        Ok(self.within(size, self.rounded(size), frames))
    }

    /// A size with both sides rounded to multiples of a block.
    pub fn rounded(self, size: Extent) -> Extent {
        let block = self.block as f64;
        let side = |side: usize| (round_half_even(side as f64 / block) * block) as usize;
        Extent { width: side(size.width), height: side(size.height) }
    }

    /// A rounded size, or within the limits that which keeps the shape best.
    pub fn within(self, size: Extent, rounded: Extent, frames: Frames) -> Extent {
        let (width, height, block) = (size.width as f64, size.height as f64, self.block as f64);
        let (least, most) = (self.least as f64, self.most as f64);
        let volume = rounded.area() as f64 * frames.rounded;
        let exact = frames.count * height * width;
        let blocks = |count: f64| count as usize * self.block;
        if volume > most {
            let shrink = (exact / most).sqrt();
            let side = |side: f64| blocks((side / shrink / block).floor()).max(self.block);
            Extent { width: side(width), height: side(height) }
        } else if volume < least {
            let grow = (least / exact).sqrt();
            let side = |side: f64| blocks((side * grow / block).ceil());
            Extent { width: side(width), height: side(height) }
        } else {
            rounded
        }
    }
}

/// How many frames share the limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frames {
    count: f64,
    /// Rounded to whole groups.
    rounded: f64,
}

impl Frames {
    /// A picture.
    pub const ONE: Frames = Frames { count: 1.0, rounded: 1.0 };

    fn of(count: usize, group: usize) -> Self {
        let rounded = round_half_even(count as f64 / group as f64) * group as f64;
        Frames { count: count as f64, rounded }
    }
}

/// How models differ.
struct Style {
    /// The text of the placeholder.
    image: &'static str,
    /// A picture counts as a group of frames.
    counts_group: bool,
    reads_clips: bool,
    /// The frames of a clip share the limits of the area, and each group of frames has its time in the
    /// prompt.
    is_timed: bool,
}

/// How frames of a clip are taken.
struct Clips {
    area: Area,
    /// How many frames of a second are taken of a clip that has a rate.
    fps: f64,
    least_frames: usize,
    most_frames: usize,
    /// The frames of a clip share the limits of the area, and each group of frames has its time in the
    /// prompt.
    is_timed: bool,
    video: u32,
    /// The tokens around a group of frames that has a time.
    around: Option<[Piece; 2]>,
}

struct SmartResize {
    area: Option<Area>,
    /// How many frames a picture counts as.
    picture: Frames,
    filter: Filter,
    normalization: Normalization,
    /// The side of a patch.
    patch: usize,
    /// The side of a block of patches that become one feature vector, in patches.
    merge: usize,
    /// The frames of a patch.
    frames: usize,
    markers: Vec<Marker>,
    image: u32,
    clips: Option<Clips>,
}

/// The patches of a picture or a clip.
struct Patches {
    /// `[frames, rows, columns]`.
    grid: [usize; 3],
    values: Vec<f32>,
}

impl SmartResize {
    fn read(settings: &Settings, defaults: Value, style: Style) -> Result<Self> {
        let fields = settings.image(defaults)?;
        let image = settings.token(&["image_token_id"], "image_token", style.image)?;
        let (patch, merge) = (fields.count("patch_size")?, fields.count("merge_size")?);
        let area = match fields.is_on("do_resize")? {
            true => Some(limits(&fields, patch * merge)?),
            false => None,
        };
        let frames = fields.count("temporal_patch_size")?;
        let clips = match style.reads_clips {
            true => Clips::read(settings, style.is_timed, patch * merge)?,
            false => None,
        };
        let mut markers = vec![Marker::token(image, settings.tokenizer)];
        markers.extend(clips.iter().map(|clips| clips.marker(settings)));
        Ok(SmartResize {
            area,
            picture: if style.counts_group { Frames::of(frames, frames) } else { Frames::ONE },
            filter: fields.filter()?,
            normalization: Normalization::read(&fields)?,
            patch,
            merge,
            frames,
            markers,
            image,
            clips,
        })
    }

    /// The patches of frames of one size; the last frame is repeated to a whole group.
    fn patches(&self, frames: &[Pixels]) -> Result<Patches> {
        let Some(first) = frames.first() else { return Err(no_frames()) };
        let (side, block) = (self.patch, self.patch * self.merge);
        let blocks = Extent { width: first.width / block, height: first.height / block };
        if first.width % block + first.height % block > 0 || blocks.area() == 0 {
            let reason = format!("the sides of the picture are no multiples of {block} pixels");
            return Err(Error::Image { reason });
        }
        let groups = frames.len().div_ceil(self.frames);
        let count = blocks.area() * self.merge.pow(2);
        let mut values = Vec::with_capacity(groups * count * 3 * self.frames * side * side);
        for index in 0..groups * count {
            let (group, index) = (index / count, index % count);
            let (block_index, inner) = (index / self.merge.pow(2), index % self.merge.pow(2));
            let y = block_index / blocks.width * block + inner / self.merge * side;
            let x = block_index % blocks.width * block + inner % self.merge * side;
            for channel in 0..3 {
                for frame in group * self.frames..(group + 1) * self.frames {
                    let picture = &frames[frame.min(frames.len() - 1)];
                    for row in y..y + side {
                        let row = &picture.rgb[3 * (row * picture.width + x)..][..3 * side];
                        let levels = row.iter().skip(channel).step_by(3);
                        values
                            .extend(levels.map(|level| self.normalization.value(channel, *level)));
                    }
                }
            }
        }
        let grid = [groups, blocks.height * self.merge, blocks.width * self.merge];
        Ok(Patches { grid, values })
    }

    /// What a tower reads of patches, and how many feature vectors it makes of them.
    fn prepared(
        &self,
        patches: Patches,
        pixels_name: &'static str,
        grid_name: &'static str,
    ) -> Prepared {
        let Patches { grid, values } = patches;
        let count: usize = grid.iter().product();
        let width = values.len() / count;
        Prepared {
            tensors: vec![
                NamedTensor::floats(pixels_name, &[count, width], values),
                NamedTensor::integers(grid_name, &[1, 3], grid),
            ],
            placeholders: Vec::new(),
            soft_tokens: count / self.merge.pow(2),
            channel_run: width / 3,
        }
    }
}

fn no_frames() -> Error {
    Error::Image { reason: "the clip has no frames".into() }
}

impl Clips {
    /// The settings of clips; none where the vocabulary has no token for them.
    fn read(settings: &Settings, is_timed: bool, block: usize) -> Result<Option<Self>> {
        let Ok(video) = settings.token(&["video_token_id"], "video_token", "<|video_pad|>") else {
            return Ok(None);
        };
        let fields = settings.video(json!({
            "size": {"shortest_edge": 128 * block * block, "longest_edge": 768 * block * block},
            "fps": 2.0, "min_frames": 4, "max_frames": 768,
        }))?;
        let token = |field: &str, role: &str, text: &str| settings.token(&[field], role, text);
        let around = match is_timed {
            false => None,
            true => Some([
                Piece::token(token(
                    "vision_start_token_id",
                    "vision_start_token",
                    "<|vision_start|>",
                )?),
                Piece::token(token("vision_end_token_id", "vision_end_token", "<|vision_end|>")?),
            ]),
        };
        Ok(Some(Clips {
            area: limits(&fields, block)?,
            fps: fields.get("fps")?,
            least_frames: fields.count("min_frames")?,
            most_frames: fields.count("max_frames")?,
            is_timed,
            video,
            around,
        }))
    }

    /// What marks the place of a clip: a token, with those around it where each group of frames has its own.
    fn marker(&self, settings: &Settings) -> Marker {
        let own = Marker::token(self.video, settings.tokenizer);
        let Some(around) = &self.around else { return own };
        let [start, end] = around.clone().map(|piece| {
            let text = settings.tokenizer.and_then(|tokenizer| piece.text(tokenizer));
            let text = text.unwrap_or_default();
            (text, piece.ids(None).unwrap_or_default())
        });
        Marker {
            text: format!("{}{}{}", start.0, own.text, end.0),
            ids: [start.1, own.ids, end.1].concat(),
        }
    }

    /// The places of the frames that a model reads.
    fn sample(&self, video: &Video, group: usize) -> Vec<usize> {
        let total = video.frames().len();
        let Some(rate) = video.fps() else { return (0..total).collect() };
        let wanted = (total as f64 / rate * self.fps) as usize;
        let count = wanted.max(self.least_frames).min(self.most_frames).min(total);
        if self.is_timed {
            let step = (total - 1) as f64 / (count.max(2) - 1) as f64;
            return (0..count).map(|i| round_half_even(i as f64 * step) as usize).collect();
        }
        let count = (count / group * group).max(1);
        (0..count).map(|i| (i as f64 * total as f64 / count as f64) as usize).collect()
    }
}

/// `min_pixels` and `max_pixels`, or else the edges of `size`, which are numbers of pixels here.
pub(super) fn limits(fields: &Fields, block: usize) -> Result<Area> {
    let size: Option<SizeField> = fields.get("size")?;
    let limit = |name: &str, edge: Option<usize>| {
        let own = fields.get::<Option<usize>>(name)?;
        own.or(edge).ok_or_else(|| fields.wrong(name, "missing"))
    };
    Ok(Area {
        block,
        least: limit("min_pixels", size.and_then(SizeField::shortest_edge))?,
        most: limit("max_pixels", size.and_then(SizeField::longest_edge))?,
    })
}

impl Processor for SmartResize {
    fn markers(&self) -> &[Marker] {
        &self.markers
    }

    fn image(&self, picture: &Pixels) -> Result<Prepared> {
        let picture = match self.area {
            Some(area) if self.picture.count > 1.0 => {
                resized(picture, area.fit_frames(picture.extent(), self.picture)?, self.filter)?
            }
            Some(area) => resized(picture, area.fit(picture.extent())?, self.filter)?,
            None => picture.clone(),
        };
        // A picture is a frame that is repeated.
        let mut prepared =
            self.prepared(self.patches(&[picture])?, "pixel_values", "image_grid_thw");
        prepared.placeholders = vec![Piece::tokens(self.image, prepared.soft_tokens)];
        Ok(prepared)
    }

    fn video(&self, video: &Video) -> Result<Prepared> {
        let Some(clips) = &self.clips else {
            let reason = "the vocabulary of the model has no token for clips; pass pictures".into();
            return Err(Error::Image { reason });
        };
        let places = clips.sample(video, self.frames);
        let first = video.frames().first().ok_or_else(no_frames)?;
        let size = Extent { width: first.width() as usize, height: first.height() as usize };
        let size = match clips.is_timed {
            false => clips.area.fit(size)?,
            true => clips.area.fit_frames(size, Frames::of(places.len(), self.frames))?,
        };
        let frame = |place: &usize| resized(&video.frames()[*place].pixels()?, size, self.filter);
        let frames = places.iter().map(frame).collect::<Result<Vec<_>>>()?;
        let patches = self.patches(&frames)?;
        let groups = patches.grid[0];
        let mut prepared = self.prepared(patches, "pixel_values_videos", "video_grid_thw");
        let Some([start, end]) = &clips.around else {
            prepared.placeholders = vec![Piece::tokens(clips.video, prepared.soft_tokens)];
            return Ok(prepared);
        };
        let rate = video.fps().unwrap_or(clips.fps);
        let seconds = |frame: usize| places[frame.min(places.len() - 1)] as f64 / rate;
        for group in 0..groups {
            let first = group * self.frames;
            let middle = (seconds(first) + seconds(first + self.frames - 1)) / 2.0;
            prepared.placeholders.extend([
                Piece::Text(format!("<{middle:.1} seconds>")),
                start.clone(),
                Piece::tokens(clips.video, prepared.soft_tokens / groups),
                end.clone(),
            ]);
        }
        Ok(prepared)
    }
}

/// The fields that the first models have where their files say nothing.
const DEFAULTS: fn() -> Value = || {
    json!({
        "do_resize": true, "size": {"shortest_edge": 3136, "longest_edge": 1003520}, "resample": 3,
        "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    })
};

/// The tokens of a clip follow each other; `Qwen2VLProcessor`.
///
/// # Errors
/// [`Error::Config`].
pub fn read(settings: &Settings) -> Result<Box<dyn Processor>> {
    let style =
        Style { image: "<|image_pad|>", counts_group: false, reads_clips: true, is_timed: false };
    Ok(Box::new(SmartResize::read(settings, DEFAULTS(), style)?))
}

/// Each group of frames of a clip has its time in the prompt; `Qwen3VLProcessor`.
///
/// # Errors
/// [`Error::Config`].
pub fn timed(settings: &Settings) -> Result<Box<dyn Processor>> {
    let style =
        Style { image: "<|image_pad|>", counts_group: false, reads_clips: true, is_timed: true };
    Ok(Box::new(SmartResize::read(settings, DEFAULTS(), style)?))
}

/// A picture counts as the frames of a group, and clips are not read yet; `Glm4vImageProcessor` and
/// `Glm4vProcessor`.
///
/// # Errors
/// [`Error::Config`].
pub fn doubled(settings: &Settings) -> Result<Box<dyn Processor>> {
    let mut defaults = DEFAULTS();
    defaults["size"] = json!({"shortest_edge": 12544, "longest_edge": 11_760_000});
    let style =
        Style { image: "<|image|>", counts_group: true, reads_clips: false, is_timed: false };
    Ok(Box::new(SmartResize::read(settings, defaults, style)?))
}
