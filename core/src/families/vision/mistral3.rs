//! Mistral Small 3.1, Ministral 3 and Mistral 4 with vision: Pixtral's tower, whose squares of patches
//! are merged before the projector. Follows `modeling_mistral3` and `modeling_pixtral` of transformers.

use crate::families::{multimodal, prelude::*};

pub const FAMILY: Family =
    Family { model_types: &["mistral3"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    spatial_merge_size: Size,
    multimodal_projector_bias: bool,
    projector_hidden_act: String,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = multimodal::text_model(config, w, "mistral")?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    let e: Config = config::read(&config::with_defaults(
        config,
        json!({
            "spatial_merge_size": 2, "multimodal_projector_bias": false,
            "projector_hidden_act": "gelu",
        }),
    ))?;
    config::only(config, json!({"vision_feature_layer": -1}))?;
    let (c, width) = (PixtralTower::config(config)?, multimodal::text_width(config)?);
    let projector = multimodal::part(w, &["multi_modal_projector"]);
    let read = if e.multimodal_projector_bias { Scope::linear_with_bias } else { Scope::linear };
    let Epsilon(eps) = config::field(&config::text(config)?, "rms_norm_eps")?;
    let side = *e.spatial_merge_size;
    let inputs = square_width("spatial_merge_size", side, *c.hidden_size)?;
    let merger = projector.at("patch_merger");
    let tower = Merged {
        vision: PixtralTower::read(&multimodal::tower(w), &c)?,
        norm: projector.rms_norm("norm", *c.hidden_size, eps)?,
        side,
        merger: merger.linear("merging_layer", inputs, *c.hidden_size)?,
        first: read(&projector, "linear_1", *c.hidden_size, width)?,
        activation: activation::named("projector_hidden_act", &e.projector_hidden_act)?,
        second: read(&projector, "linear_2", width, width)?,
    };
    Ok(Box::new(Sighted::new(text, tower, multimodal::placeholder(config, 10)?)))
}

/// Pixtral's vision transformer: Llama's blocks without a mask, and rotary positions by row and column.
pub struct PixtralTower {
    patches: PatchEmbedding,
    norm: Norm,
    encoder: Encoder,
    patch: i32,
}

impl PixtralTower {
    pub fn config(config: &Json) -> Result<VisionConfig> {
        let nested = config::with_defaults(
            vision_config(config)?,
            json!({
                "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                "num_attention_heads": 16, "image_size": 1024, "patch_size": 16,
                "hidden_act": "gelu",
            }),
        );
        // Its norms have a fixed epsilon.
        VisionConfig::read(&nested.with("layer_norm_eps", 1e-5), &[])
    }

    pub fn read(w: &Scope, c: &VisionConfig) -> Result<Self> {
        let (width, eps) = (*c.hidden_size, *c.layer_norm_eps);
        let theta = c.rope_theta.map_or(10_000.0, f32::from);
        let rope = rope_2d(c.head_dim(), theta, Wavelengths::Alternating)?;
        let kernel = Kernel::square(*c.num_channels, *c.patch_size);
        let block = |_, w: &Scope| {
            let names = AttentionNames::with_output("o_proj");
            let attention = encoder::attention(&w.at("attention"), names, c, rope.clone())?;
            let mlp = encoder::gated_mlp(&w.at("feed_forward"), c)?;
            Ok(encoder::block(
                Residual::pre(w.rms_norm("attention_norm", width, eps)?, attention),
                Residual::pre(w.rms_norm("ffn_norm", width, eps)?, mlp),
            ))
        };
        Ok(PixtralTower {
            patches: PatchEmbedding::read(w, "patch_conv", kernel, width)?,
            norm: w.rms_norm("ln_pre", width, eps)?,
            encoder: Encoder::read(&w.at("transformer.layers"), *c.num_hidden_layers, block)?,
            patch: *c.patch_size,
        })
    }

    pub fn hidden_states(&self, pixels: &Array) -> Result<Vec<Array>> {
        let x = self.norm.forward(&self.patches.forward(pixels)?)?;
        self.encoder.hidden_states(&x, &encoder::rotary(self.grid(pixels), 1))
    }

    pub fn grid(&self, pixels: &Array) -> Grid {
        Grid::picture(pixels.dim(-2) / self.patch, pixels.dim(-1) / self.patch)
    }
}

struct Merged {
    vision: PixtralTower,
    norm: Norm,
    /// The side of the squares of patches that become one feature.
    side: i32,
    merger: Linear,
    first: Linear,
    activation: activation::Activation,
    second: Linear,
}

impl Tower for Merged {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        let pixels = picture.tensor("pixel_values")?;
        let mut states = self.vision.hidden_states(pixels)?;
        let x = states.pop().ok_or_else(|| Error::Internal("a tower has states".into()))?;
        let grid = self.vision.grid(pixels);
        let x = grid.merge(&self.norm.forward(&x)?, self.side, MergeOrder::ChannelFirst)?;
        let x = self.first.forward(&self.merger.forward(&x)?)?;
        Ok(vec![self.second.forward(&(self.activation)(&x)?)?.flatten(0, 1)?])
    }
}
