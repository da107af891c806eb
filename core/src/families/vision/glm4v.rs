//! GLM-4.1V and GLM-OCR: a vision transformer of RMS norms and gated networks with rotary positions by
//! row and column, a convolution over squares of patches, a gated merger, and GLM 4 with M-RoPE.
//! GLM-4.1V adds learned positions and a norm before the blocks; GLM-OCR normalises queries and keys.
//! Follows `modeling_glm4v` and `modeling_glm_ocr` of transformers.

use crate::families::{
    multimodal,
    prelude::*,
    text::glm4,
    vision::qwen2_vl::{self, NAMES, Patches, positions, sighted},
};

pub const FAMILY: Family =
    Family { model_types: &["glm4v", "glm_ocr"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let is_ocr = config.get("model_type").and_then(Json::as_str) == Some("glm_ocr");
    let mut text = multimodal::text_config(config, w)?;
    let nested = text.get("rope_parameters").or(text.get("rope_scaling"));
    let is_given = nested.is_some_and(|rope| rope.get("partial_rotary_factor").is_some());
    if is_ocr && !is_given {
        text = config::with_defaults(&text, json!({"partial_rotary_factor": 1.0}));
    }
    // GLM-OCR has a layer that predicts further tokens.
    ignore_prediction_layers(w, &Text::read(&text)?);
    let text = (glm4::FAMILY.build)(&text, w)?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    Ok(Box::new(sighted(config, text, GlmTower::read(config, w, is_ocr)?)?))
}

struct GlmTower {
    patches: PatchEmbedding,
    /// GLM-4.1V's norm and positions before the first block.
    start: Option<(Norm, PositionTable)>,
    encoder: Encoder,
    norm: Norm,
    downsample: PatchEmbedding,
    merger: Merger,
    /// The side of the squares of patches that become one feature.
    side: i32,
}

struct Merger {
    projection: Linear,
    norm: Norm,
    mlp: Mlp,
}

impl GlmTower {
    fn read(config: &Json, w: &Scope, is_ocr: bool) -> Result<Self> {
        let width = multimodal::text_width(config)?;
        let nested = config::with_defaults(
            vision_config(config)?,
            json!({
                "depth": 24, "hidden_size": 1536, "num_heads": 12, "intermediate_size": 13_696,
                "image_size": 336, "patch_size": 14, "hidden_act": "silu", "rms_norm_eps": 1e-5,
                "spatial_merge_size": 2, "temporal_patch_size": 2,
            }),
        );
        let names = [NAMES, &[("rms_norm_eps", "layer_norm_eps")]].concat();
        let (mut c, e) = (VisionConfig::read(&nested, &names)?, qwen2_vl::Config::read(&nested)?);
        let (hidden, eps, side) = (*c.hidden_size, *c.layer_norm_eps, *e.spatial_merge_size);
        let inner = if is_ocr {
            config::product("vision_config.in_channels", [width, *c.num_channels])?
        } else {
            // The blocks have the width of the text here, and the merger that of the field.
            std::mem::replace(&mut c.intermediate_size, Size(width)).0
        };
        let w = multimodal::tower(w);
        let rope = rope_2d(c.head_dim(), 10_000.0, Wavelengths::Same)?;
        let block = |_, w: &Scope| {
            let a = w.at("attn");
            let mut attention = encoder::fused_attention(&a, "proj", &c, rope.clone())?;
            if is_ocr {
                let norm = |name| a.rms_norm(name, c.head_dim(), eps);
                attention = attention.qk_norm(QkNorm::BeforeRope(norm("q_norm")?, norm("k_norm")?));
            }
            Ok(encoder::block(
                Residual::pre(w.rms_norm("norm1", hidden, eps)?, attention),
                Residual::pre(w.rms_norm("norm2", hidden, eps)?, encoder::gated_mlp(&w.at("mlp"), &c)?),
            ))
        };
        let start = || -> Result<_> {
            let embeddings = w.at("embeddings");
            let table = PositionTable::read(&embeddings, "position_embedding", c.side(), hidden)?;
            Ok((w.rms_norm("post_conv_layernorm", hidden, eps)?, table))
        };
        let m = w.at("merger");
        Ok(GlmTower {
            patches: PatchEmbedding::with_bias(
                &w.at("patch_embed"),
                "proj",
                e.kernel(&c),
                *c.hidden_size,
            )?,
            start: (!is_ocr).then(start).transpose()?,
            encoder: Encoder::read(&w.at("blocks"), *c.num_hidden_layers, block)?,
            norm: w.rms_norm("post_layernorm", hidden, eps)?,
            downsample: PatchEmbedding::with_bias(&w, "downsample", Kernel::square(hidden, side), width)?,
            merger: Merger {
                projection: m.linear("proj", width, width)?,
                norm: m.layer_norm_with_bias("post_projection_norm", width, 1e-5)?,
                mlp: Mlp::new(
                    m.linear("gate_proj", width, inner)?,
                    m.linear("up_proj", width, inner)?,
                    m.linear("down_proj", inner, width)?,
                    gated(c.activation()?),
                ),
            },
            side,
        })
    }
}

impl Tower for GlmTower {
    fn encode(&self, media: &Media) -> Result<Vec<Array>> {
        let Patches { pixels, grid } = Patches::of(media)?;
        let mut x = self.patches.flattened(&pixels)?;
        if let Some((norm, table)) = &self.start {
            let positions = table.sampled(grid, Interpolation::Bicubic)?;
            x = norm.forward(&x)?.add(positions.take_axis(grid.order(self.side), 0)?)?;
        }
        let x = self.encoder.forward(&x, &encoder::rotary(grid, self.side))?;
        // The convolution reads channel by channel.
        let squares = self.norm.forward(&x)?.reshape(&[-1, self.side * self.side, x.dim(-1)])?;
        let squares = squares.swap_axes(1, 2)?.flatten(1, 2)?;
        let x = self.merger.projection.forward(&self.downsample.flattened(&squares)?)?;
        Ok(vec![self.merger.mlp.apply(&gelu(&self.merger.norm.forward(&x)?)?)?])
    }

    fn positions(&self, media: &Media) -> Result<Option<GridPositions>> {
        positions(media, self.side, 1.0)
    }
}
