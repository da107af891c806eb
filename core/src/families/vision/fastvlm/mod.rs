//! FastVLM: FastViTHD, a tower of convolutions with attention in its last stages, over the picture on a
//! black square, an MLP as projector, and Qwen 2, whose config has all fields. The placeholder of a
//! picture is -200, which is no id of the vocabulary. Follows `modeling_fast_vlm` of transformers and the
//! tower of timm, with the names of the authors' exports.

mod blocks;
mod tower;

use crate::families::{multimodal, prelude::*, text::qwen2};
use tower::FastVit;

pub const FAMILY: Family = Family {
    model_types: &["llava_qwen2", "fastvlm"],
    build,
    recommended: Recommended { end_tokens: &["<|im_end|>"], ..Recommended::NOTHING },
};

/// -200 in 32 bits.
const PLACEHOLDER: u32 = u32::MAX - 199;

const PROJECTOR: &str = "mm_projector";

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = (qwen2::FAMILY.build)(&multimodal::text_config(config, w)?, w)?;
    // The authors' configs do not describe the tower, of which there is one shape.
    let given = config.get("vision_config").filter(|given| !given.is_null());
    let described =
        config.with("vision_config", given.cloned().unwrap_or_else(|| json!({}).into()));
    if !multimodal::has_tower(&described, w)? {
        return Ok(text);
    }
    config::only(config, json!({"mm_patch_merge_type": "flat"}))?;
    let place = multimodal::tower(w);
    let place = if place.has_below("model") { place.at("model") } else { place };
    let vision = FastVit::read(vision_config(&described)?, &place).map_err(in_vision_config)?;
    let projector = multimodal::part(w, &[PROJECTOR]);
    let width = multimodal::text_width(config)?;
    let kind: Option<String> = config::field(config, "mm_projector_type")?;
    let projections = match depth(kind.as_deref().unwrap_or("mlp2x_gelu"))? {
        0 => {
            let outer = if w.has_below(PROJECTOR) { w.clone() } else { w.at("model") };
            vec![outer.linear_with_bias(PROJECTOR, vision.width, width)?]
        }
        depth => (0..depth)
            .map(|i| {
                let inputs = if i == 0 { vision.width } else { width };
                projector.linear_with_bias(&(2 * i).to_string(), inputs, width)
            })
            .collect::<Result<_>>()?,
    };
    Ok(Box::new(Sighted::new(text, FastVlm { vision, projections }, PLACEHOLDER)))
}

/// The layers of a projector, with an activation between them; 0 for a single one without a number.
fn depth(kind: &str) -> Result<usize> {
    let depth = kind.strip_prefix("mlp").and_then(|rest| rest.strip_suffix("x_gelu"));
    match depth.and_then(|depth| depth.parse().ok()) {
        Some(depth @ 1..=16) => Ok(depth),
        _ if kind == "linear" => Ok(0),
        _ => {
            let reason = format!("`{kind}` is neither linear nor mlp2x_gelu or the like");
            Err(Error::unsupported("mm_projector_type", reason))
        }
    }
}

struct FastVlm {
    vision: FastVit,
    projections: Vec<Linear>,
}

impl Tower for FastVlm {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        let mut x = self.vision.forward(picture.tensor("pixel_values")?)?;
        for (i, projection) in self.projections.iter().enumerate() {
            x = projection.forward(&if i == 0 { x } else { gelu(&x)? })?;
        }
        Ok(vec![x.flatten(0, 1)?])
    }
}
