//! Idefics 3 and SmolVLM: SigLIP over tiles of a picture, whose squares of patches become one feature
//! through a linear projector, and Llama. Follows `modeling_idefics3` of transformers.

use crate::families::{multimodal, prelude::*};

pub const FAMILY: Family = Family {
    model_types: &["idefics3", "smolvlm", "smolvlm2"],
    build,
    recommended: Recommended { end_tokens: &["<end_of_utterance>"], ..Recommended::NOTHING },
};

#[derive(Deserialize)]
struct Config {
    scale_factor: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = multimodal::text_model(config, w, "llama")?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    let Config { scale_factor: Size(side) } =
        config::read(&config::with_defaults(config, json!({"scale_factor": 2})))?;
    let c = VisionConfig::with_defaults(
        config,
        json!({
            "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 16, "image_size": 224, "patch_size": 32,
            "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
        }),
    )?;
    let inputs = square_width("scale_factor", side, *c.hidden_size)?;
    let connector = multimodal::part(w, &["connector"]).at("modality_projection");
    let tower = Shuffled {
        vision: VisionTransformer::siglip(&multimodal::tower(w), &c)?,
        side,
        projection: connector.linear("proj", inputs, multimodal::text_width(config)?)?,
    };
    Ok(Box::new(Sighted::new(text, tower, multimodal::placeholder(config, 128_257)?)))
}

struct Shuffled {
    vision: VisionTransformer,
    /// The side of the squares of patches that become one feature.
    side: i32,
    projection: Linear,
}

impl Tower for Shuffled {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        // `[1, tiles, channels, height, width]`.
        let pixels = picture.tensor("pixel_values")?.flatten(0, 1)?;
        let x = self.vision.forward(&pixels)?;
        let x = self.vision.grid(&pixels).merge(&x, self.side, MergeOrder::PatchFirst)?;
        Ok(vec![self.projection.forward(&x)?.flatten(0, 1)?])
    }
}
