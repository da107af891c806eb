//! Aya Vision and Command A Vision: SigLIP over tiles of a picture, squares of patches that become one
//! feature, a SwiGLU projector, and Command R7B. Follows `modeling_aya_vision` and
//! `modeling_cohere2_vision` of transformers, and the text model for the scale of the logits.

use crate::families::{multimodal, prelude::*};

pub const FAMILY: Family = Family {
    model_types: &["aya_vision", "cohere2_vision"],
    build,
    recommended: Recommended::NOTHING,
};

#[derive(Deserialize)]
struct Config {
    downsample_factor: Size,
    alignment_intermediate_size: Size,
    adapter_layer_norm_eps: Epsilon,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = multimodal::text_model(config, w, "cohere2")?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    let (c, width) = (VisionConfig::siglip(config)?, multimodal::text_width(config)?);
    let is_aya = config.get("model_type").and_then(Json::as_str) == Some("aya_vision");
    let inner = if is_aya { width } else { 36_864 };
    let defaults = json!({
        "downsample_factor": 2, "alignment_intermediate_size": inner,
        "adapter_layer_norm_eps": 1e-6,
    });
    let e: Config = config::read(&config::with_defaults(config, defaults))?;
    config::only(config, json!({"vision_feature_layer": -1}))?;
    let (side, inner) = (*e.downsample_factor, *e.alignment_intermediate_size);
    let inputs = square_width("downsample_factor", side, *c.hidden_size)?;
    let projector = multimodal::part(w, &["multi_modal_projector"]);
    let eps = *e.adapter_layer_norm_eps;
    let norm = is_aya.then(|| projector.layer_norm_with_bias("layernorm", inputs, eps));
    let tower = Tiles {
        vision: VisionTransformer::siglip(&multimodal::tower(w), &c)?,
        side,
        norm: norm.transpose()?,
        up: projector.linear_with_bias("linear_1", inputs, inner)?,
        down: projector.linear_with_bias("linear_2", inner / 2, width)?,
    };
    Ok(Box::new(Sighted::new(text, tower, multimodal::placeholder(config, 255_036)?)))
}

struct Tiles {
    vision: VisionTransformer,
    /// The side of the squares of patches that become one feature.
    side: i32,
    /// Aya Vision has one; its features are also those before the tower's last norm.
    norm: Option<Norm>,
    /// To values and gates, in this order.
    up: Linear,
    down: Linear,
}

impl Tower for Tiles {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        let pixels = picture.tensor("pixel_values")?;
        let x = match &self.norm {
            Some(_) => self.vision.last_state(pixels)?,
            None => self.vision.forward(pixels)?,
        };
        let x = self.vision.grid(pixels).merge(&x, self.side, MergeOrder::PatchFirst)?;
        let x = self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))?;
        let parts = self.up.forward(&x)?.split_equal(2, -1)?;
        let x = self.down.forward(&swiglu(&parts[1], &parts[0])?)?;
        Ok(vec![x.flatten(0, 1)?])
    }
}
