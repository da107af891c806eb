//! Gemma 3 with vision: SigLIP, whose patches are averaged to a fixed number of features for each
//! picture; the features of a picture see each other both ways. Follows `modeling_gemma3` of
//! transformers.

use crate::families::{multimodal, prelude::*, text::gemma3_text};

pub const FAMILY: Family =
    Family { model_types: &["gemma3"], build, recommended: gemma3_text::FAMILY.recommended };

#[derive(Deserialize)]
struct Config {
    mm_tokens_per_image: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = gemma3_text::build(config, w)?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    let defaults = json!({"mm_tokens_per_image": 256});
    let e: Config = config::read(&config::with_defaults(config, defaults))?;
    let c = VisionConfig::siglip(config)?;
    let features = (*e.mm_tokens_per_image as f32).sqrt() as i32;
    if features == 0 || c.side() % features != 0 {
        let reason = format!("{} patches a side have no such mean", c.side());
        return Err(Error::config("mm_tokens_per_image", reason));
    }
    let projector = multimodal::part(w, &["multi_modal_projector"]);
    let (width, name) = (multimodal::text_width(config)?, "mm_input_projection_weight");
    let tower = Tower3 {
        vision: VisionTransformer::siglip(&multimodal::tower(w), &c)?,
        pooled: c.side() / features,
        norm: projector
            .rms_norm("mm_soft_emb_norm", *c.hidden_size, *c.layer_norm_eps)?
            .plus_one()?,
        projection: projector.tensor(name, &[*c.hidden_size, width])?,
    };
    let placeholder = multimodal::placeholder(config, 262_144)?;
    Ok(Box::new(Sighted::new(text, tower, placeholder).seeing(Visibility::WithinPictures)))
}

struct Tower3 {
    vision: VisionTransformer,
    /// The side of the squares of patches that are averaged.
    pooled: i32,
    norm: Norm,
    /// `[width, width of the text]`.
    projection: Array,
}

impl Tower for Tower3 {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        let pixels = picture.tensor("pixel_values")?;
        let x = self.vision.forward(pixels)?;
        let x = self.vision.grid(pixels).average(&x, self.pooled)?;
        let x = self.norm.forward(&x)?.matmul(&self.projection)?;
        Ok(vec![x.flatten(0, 1)?])
    }
}
