//! LFM2-VL: SigLIP 2 over views of any aspect ratio, squares of patches that become one feature, an
//! MLP as projector, and LFM2. Follows `modeling_lfm2_vl` and `modeling_siglip2` of transformers.

use crate::families::{multimodal, prelude::*, text::lfm2};
use crate::layers::vision::siglip;

pub const FAMILY: Family = Family {
    model_types: &["lfm2_vl", "lfm2-vl"],
    build,
    recommended: lfm2::FAMILY.recommended,
};

#[derive(Deserialize)]
struct Config {
    downsample_factor: Size,
    projector_hidden_size: Size,
    projector_hidden_act: String,
    projector_bias: bool,
    projector_use_layernorm: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = multimodal::text_model(config, w, "lfm2")?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    let e: Config = config::read(&config::with_defaults(
        config,
        json!({
            "downsample_factor": 2, "projector_hidden_size": 2560, "projector_hidden_act": "gelu",
            "projector_bias": true, "projector_use_layernorm": true,
        }),
    ))?;
    let c = VisionConfig::siglip(config)?;
    let side = *e.downsample_factor;
    let inputs = square_width("downsample_factor", side, *c.hidden_size)?;
    let projector = multimodal::part(w, &["multi_modal_projector"]);
    let norm = e
        .projector_use_layernorm
        .then(|| projector.layer_norm_with_bias("layer_norm", inputs, 1e-5));
    let read = if e.projector_bias { Scope::linear_with_bias } else { Scope::linear };
    let (inner, width) = (*e.projector_hidden_size, multimodal::text_width(config)?);
    let tower = Views {
        vision: Siglip2::read(config, &multimodal::tower(w), &c)?,
        side,
        norm: norm.transpose()?,
        first: read(&projector, "linear_1", inputs, inner)?,
        activation: activation::named("projector_hidden_act", &e.projector_hidden_act)?,
        second: read(&projector, "linear_2", inner, width)?,
    };
    Ok(Box::new(Sighted::new(text, tower, multimodal::placeholder(config, 396)?)))
}

/// SigLIP 2 in its variant for any aspect ratio: SigLIP with positions that are interpolated.
pub struct Siglip2 {
    patches: PatchEmbedding,
    table: PositionTable,
    encoder: Encoder,
    norm: Norm,
}

impl Siglip2 {
    pub fn read(config: &Json, w: &Scope, c: &VisionConfig) -> Result<Self> {
        w.ignore("head");
        let (width, kernel) = (*c.hidden_size, Kernel::square(*c.num_channels, *c.patch_size));
        let positions = config::field::<Option<Size>>(vision_config(config)?, "num_patches");
        let positions = positions.map_err(in_vision_config)?.map_or(256, i32::from);
        let side = (positions as f32).sqrt() as i32;
        let embeddings = w.at("embeddings");
        Ok(Siglip2 {
            patches: PatchEmbedding::with_bias(&embeddings, "patch_embedding", kernel, width)?,
            table: PositionTable::read(&embeddings, "position_embedding", side, width)?,
            encoder: Encoder::read(&w.at("encoder.layers"), *c.num_hidden_layers, |_, w| {
                siglip::block(w, c, Rope::None)
            })?,
            norm: w.layer_norm_with_bias("post_layernorm", width, *c.layer_norm_eps)?,
        })
    }

    /// Patches of one view `[1, area, channels · side · side]` to the stream after the norm.
    pub fn forward(&self, patches: &Array, grid: Grid) -> Result<Array> {
        let positions = self.table.sampled(grid, Interpolation::AreaBilinear)?;
        let x = self.patches.flattened(patches)?.add(positions)?;
        let x = self.encoder.forward(&x, &Step::prefill(0, grid.area()))?;
        self.norm.forward(&x)
    }
}

struct Views {
    vision: Siglip2,
    /// The side of the squares of patches that become one feature.
    side: i32,
    norm: Option<Norm>,
    first: Linear,
    activation: activation::Activation,
    second: Linear,
}

impl Views {
    fn project(&self, x: &Array) -> Result<Array> {
        let x = self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(x))?;
        self.second.forward(&(self.activation)(&self.first.forward(&x)?)?)
    }
}

impl Tower for Views {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        // `[views, most patches, …]`; each view fills a part of its row.
        let pixels = picture.tensor("pixel_values")?;
        let shapes = picture.sizes("spatial_shapes", 2 * pixels.dim(0) as usize)?;
        let view = |(i, shape): (i32, &[i32])| {
            let grid = Grid::of_sizes(&[1, shape[0], shape[1]])?;
            let patches = mlx::slice(&mlx::slice(pixels, 0, i, i + 1)?, 1, 0, grid.area())?;
            let x = self.vision.forward(&patches, grid)?;
            self.project(&grid.merge(&x, self.side, MergeOrder::PatchFirst)?)
        };
        let views = (0..).zip(shapes.chunks_exact(2)).map(view).collect::<Result<Vec<_>>>()?;
        Ok(vec![ops::concatenate(&views, 1)?.squeeze_axes(&[0])?])
    }
}
