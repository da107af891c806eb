//! Qwen2-VL: a vision transformer with rotary positions by row and column, whose squares of patches
//! are merged by an MLP, and Qwen 2 with rotary positions by time, row and column (M-RoPE). Follows
//! `modeling_qwen2_vl` of transformers.

use crate::families::{multimodal, prelude::*, text::qwen2};

pub const FAMILY: Family =
    Family { model_types: &["qwen2_vl"], build, recommended: Recommended::NOTHING };

/// The fields of towers of Qwen that others do not have.
#[derive(Clone, Copy, Deserialize)]
pub struct Config {
    pub spatial_merge_size: Size,
    pub temporal_patch_size: Size,
}

/// The names of Qwen for the usual fields.
pub const NAMES: &[(&str, &str)] = &[
    ("depth", "num_hidden_layers"),
    ("embed_dim", "hidden_size"),
    ("num_heads", "num_attention_heads"),
    ("in_channels", "num_channels"),
    ("in_chans", "num_channels"),
];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = (qwen2::FAMILY.build)(&multimodal::text_config(config, w)?, w)?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    let width = multimodal::text_width(config)?;
    let nested = config::with_defaults(
        vision_config(config)?,
        json!({
            "depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14,
            "hidden_act": "quick_gelu", "spatial_merge_size": 2, "temporal_patch_size": 2,
            "layer_norm_eps": 1e-6,
        }),
    );
    // That of the text here.
    let nested = config::without(&nested, &["hidden_size"]);
    let Size(ratio) = config::field(&nested, "mlp_ratio").map_err(in_vision_config)?;
    let Size(embed) = config::field(&nested, "embed_dim").map_err(in_vision_config)?;
    let inner = config::product("vision_config.mlp_ratio", [embed, ratio])?;
    let inner = json!({"intermediate_size": inner});
    let nested = config::with_defaults(&nested, inner);
    let (c, e) = (VisionConfig::read(&nested, NAMES)?, Config::read(&nested)?);
    let w = multimodal::tower(w);
    let rope = rope_2d(c.head_dim(), 10_000.0, Wavelengths::Same)?;
    let tower = Qwen2Tower {
        patches: PatchEmbedding::read(&w.at("patch_embed"), "proj", e.kernel(&c), *c.hidden_size)?,
        encoder: Encoder::read(&w.at("blocks"), *c.num_hidden_layers, |_, w| {
            let norm = |name| w.layer_norm_with_bias(name, *c.hidden_size, *c.layer_norm_eps);
            let attention = encoder::biased_fused_attention(&w.at("attn"), "proj", &c, rope.clone())?;
            let mlp = encoder::plain_mlp(&w.at("mlp"), FC1_FC2, &c)?;
            Ok(encoder::block(
                Residual::pre(norm("norm1")?, attention),
                Residual::pre(norm("norm2")?, mlp),
            ))
        })?,
        merger: {
            let w = w.at("merger");
            let norm = w.layer_norm_with_bias("ln_q", *c.hidden_size, *c.layer_norm_eps)?;
            Merger::read(&w.at("mlp"), MERGER_MLP, norm, e.merged_width(&c)?, width)?
        },
        side: *e.spatial_merge_size,
    };
    Ok(Box::new(sighted(config, text, tower)?))
}

/// A model with Qwen's placeholders of pictures and of clips.
pub fn sighted(
    config: &Json,
    text: Box<dyn LanguageModel>,
    tower: impl Tower + 'static,
) -> Result<Sighted> {
    let clip = config::field(config, "video_token_id")?;
    let placeholder = multimodal::placeholder(config, 151_655)?;
    Ok(Sighted::new(text, tower, placeholder).with_placeholder(clip))
}

impl Config {
    pub fn read(nested: &Json) -> Result<Self> {
        config::read(nested).map_err(in_vision_config)
    }

    /// The kernel of the embedding of patches.
    pub fn kernel(&self, c: &VisionConfig) -> Kernel {
        let (channels, side) = (*c.num_channels, *c.patch_size);
        Kernel { channels, frames: *self.temporal_patch_size, side }
    }

    /// Width of a square of patches.
    pub fn merged_width(&self, c: &VisionConfig) -> Result<i32> {
        let side = *self.spatial_merge_size;
        square_width("vision_config.spatial_merge_size", side, *c.hidden_size)
    }
}

/// The names of the projections of a merger.
pub const MERGER_MLP: PlainNames = PlainNames { up: "0", down: "2" };

/// An MLP over squares of patches, with a norm of the patches or of the squares.
pub struct Merger {
    norm: Norm,
    norms_squares: bool,
    width: i32,
    first: Linear,
    second: Linear,
}

impl Merger {
    pub fn read(w: &Scope, names: PlainNames, norm: Norm, width: i32, output: i32) -> Result<Self> {
        let first = w.linear_with_bias(names.up, width, width)?;
        let second = w.linear_with_bias(names.down, width, output)?;
        Ok(Merger { norm, norms_squares: false, width, first, second })
    }

    pub fn norming_squares(self) -> Self {
        Merger { norms_squares: true, ..self }
    }

    /// Patches `[frames, area, width]`, square by square, to `[squares, output]`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let squares = |x: &Array| x.reshape(&[-1, self.width]);
        let x = if self.norms_squares {
            self.norm.forward(&squares(x)?)?
        } else {
            squares(&self.norm.forward(x)?)?
        };
        self.second.forward(&gelu(&self.first.forward(&x)?)?)
    }
}

/// The patches of a picture or clip and their grid.
pub struct Patches {
    /// `[frames, area, channels · frames · side · side]`, square by square.
    pub pixels: Array,
    pub grid: Grid,
}

impl Patches {
    pub fn of(media: &Media) -> Result<Self> {
        let is_clip = media.tensors.contains_key("pixel_values_videos");
        let name = if is_clip { "pixel_values_videos" } else { "pixel_values" };
        let (pixels, grid) = (media.tensor(name)?, grid(media)?);
        if pixels.dim(0) != grid.count() {
            let reason = format!("{} patches for {grid:?}", pixels.dim(0));
            return Err(Error::Internal(reason));
        }
        Ok(Patches { pixels: pixels.reshape(&[grid.frames, grid.area(), -1])?, grid })
    }
}

/// The grid of the patches of a picture or clip.
pub fn grid(media: &Media) -> Result<Grid> {
    let is_clip = media.tensors.contains_key("video_grid_thw");
    Grid::of_sizes(&media.sizes(if is_clip { "video_grid_thw" } else { "image_grid_thw" }, 3)?)
}

/// The rotary positions of the merged patches of a picture or clip.
pub fn positions(media: &Media, side: i32, frame_step: f32) -> Result<Option<GridPositions>> {
    Ok(Some(GridPositions { grid: grid(media)?.merged(side)?, frame_step }))
}

struct Qwen2Tower {
    patches: PatchEmbedding,
    encoder: Encoder,
    merger: Merger,
    /// The side of the squares of patches that become one feature.
    side: i32,
}

impl Tower for Qwen2Tower {
    fn encode(&self, media: &Media) -> Result<Vec<Array>> {
        let Patches { pixels, grid } = Patches::of(media)?;
        let x = self.patches.flattened(&pixels)?;
        let x = self.encoder.forward(&x, &encoder::rotary(grid, self.side))?;
        Ok(vec![self.merger.forward(&x)?])
    }

    fn positions(&self, media: &Media) -> Result<Option<GridPositions>> {
        positions(media, self.side, 1.0)
    }
}
