//! PaliGemma 1 and 2: SigLIP, a linear projector, and Gemma or Gemma 2, in which all positions of a
//! prompt with a picture see each other. Follows `modeling_paligemma` of transformers.

use crate::families::{multimodal, prelude::*};

pub const FAMILY: Family =
    Family { model_types: &["paligemma"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = multimodal::text_model(config, w, "gemma")?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    // transformers writes into the config what holds for every prompt of the family.
    config::only(&config::text(config)?, json!({"use_bidirectional_attention": true}))
        .map_err(|error| error.with_field(|field| format!("text_config.{field}")))?;
    let (c, width) = (VisionConfig::siglip(config)?, multimodal::text_width(config)?);
    let projector = multimodal::part(w, &["multi_modal_projector"]);
    let tower = Projected {
        vision: VisionTransformer::siglip(&multimodal::tower(w), &c)?,
        projection: projector.linear_with_bias("linear", *c.hidden_size, width)?,
    };
    let placeholder = multimodal::placeholder(config, 257_152)?;
    Ok(Box::new(Sighted::new(text, tower, placeholder).seeing(Visibility::WholePrompt)))
}

struct Projected {
    vision: VisionTransformer,
    projection: Linear,
}

impl Tower for Projected {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        let x = self.vision.forward(picture.tensor("pixel_values")?)?;
        Ok(vec![self.projection.forward(&x)?.flatten(0, 1)?])
    }
}
