//! PaddleOCR-VL: SigLIP over pictures of any aspect ratio, with interpolated positions and rotary ones
//! by row and column; squares of patches that an MLP merges; ERNIE 4.5 with M-RoPE, whose rotary pairs
//! are halves. Follows `modeling_paddleocr_vl` of transformers.

use crate::families::{
    multimodal,
    prelude::*,
    text::llama,
    vision::qwen2_vl::{grid, positions, sighted},
};
use crate::layers::vision::siglip;

pub const FAMILY: Family =
    Family { model_types: &["paddleocr_vl"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    spatial_merge_size: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let names = [("use_bias", "attention_bias"), ("use_bias", "mlp_bias")];
    let text = multimodal::text_config(config, w)?;
    let text = llama::decoder(w, &Text::read_renamed(&text, &names)?)?;
    if !multimodal::has_tower(config, w)? {
        return Ok(Box::new(text));
    }
    let nested = config::with_defaults(
        vision_config(config)?,
        json!({
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
            "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "spatial_merge_size": 2,
        }),
    );
    let (c, e) = (VisionConfig::read(&nested, &[])?, config::read::<Config>(&nested));
    let Config { spatial_merge_size: Size(side) } = e.map_err(in_vision_config)?;
    let (place, width) = (multimodal::tower(w), *c.hidden_size);
    let merged = square_width("vision_config.spatial_merge_size", side, width)?;
    let (embeddings, kernel) =
        (place.at("embeddings"), Kernel::square(*c.num_channels, *c.patch_size));
    // Its head pools the features, which nothing reads.
    place.ignore("head");
    embeddings.ignore("packing_position_embedding");
    let rope = rope_2d(c.head_dim(), 10_000.0, Wavelengths::Same)?;
    // Conversions nest the projector in the tower and not the blocks.
    let has_encoder = place.has_below("encoder");
    let layers = place.at(if has_encoder { "encoder.layers" } else { "layers" });
    let inner = place.at("projector");
    let projector = if inner.exists() { inner } else { w.at("mlp_AR") };
    let tower = PaddleTower {
        patches: PatchEmbedding::with_bias(&embeddings, "patch_embedding", kernel, width)?,
        table: PositionTable::read(&embeddings, "position_embedding", c.side(), width)?,
        encoder: Encoder::read(&layers, *c.num_hidden_layers, |_, w| {
            siglip::block(w, &c, rope.clone())
        })?,
        after: place.layer_norm_with_bias("post_layernorm", width, *c.layer_norm_eps)?,
        side,
        norm: projector.layer_norm_with_bias("pre_norm", width, 1e-5)?,
        first: projector.linear_with_bias("linear_1", merged, merged)?,
        second: projector.linear_with_bias("linear_2", merged, multimodal::text_width(config)?)?,
    };
    Ok(Box::new(sighted(config, Box::new(text), tower)?))
}

struct PaddleTower {
    patches: PatchEmbedding,
    table: PositionTable,
    encoder: Encoder,
    after: Norm,
    /// The side of the squares of patches that become one feature.
    side: i32,
    norm: Norm,
    first: Linear,
    second: Linear,
}

impl Tower for PaddleTower {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        // Patches `[count, channels, side, side]` in row-major order.
        let (grid, pixels) = (grid(picture)?, picture.tensor("pixel_values")?);
        let patches = pixels.reshape(&[grid.frames, grid.area(), -1])?;
        let positions = self.table.sampled(grid, Interpolation::Bilinear)?;
        let x = self.patches.flattened(&patches)?.add(positions)?;
        let x = self.encoder.forward(&x, &encoder::rotary(grid, 1))?;
        let x = self.norm.forward(&self.after.forward(&x)?)?;
        let x = grid.merge(&x, self.side, MergeOrder::PatchFirst)?.flatten(0, 1)?;
        Ok(vec![self.second.forward(&gelu(&self.first.forward(&x)?)?)?])
    }

    fn positions(&self, picture: &Media) -> Result<Option<GridPositions>> {
        positions(picture, self.side, 1.0)
    }
}
