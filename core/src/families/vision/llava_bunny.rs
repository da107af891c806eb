//! nanoLLaVA and Bunny: LLaVA with SigLIP, whose last layer has the features, and a projector with
//! other names; the config has the fields of the language model itself. The placeholder of a picture
//! is -200, which is no id of the vocabulary. Follows `modeling_llava` of transformers, which computes
//! the same from the same parts.

use crate::families::{
    multimodal,
    prelude::*,
    text::{llama, qwen2},
    vision::llava::Llava,
};

pub const FAMILY: Family = Family {
    model_types: &["llava_bunny", "llava-qwen2", "bunny-llama"],
    build,
    recommended: Recommended { end_tokens: &["<|im_end|>"], ..Recommended::NOTHING },
};

/// -200 in 32 bits.
const PLACEHOLDER: u32 = u32::MAX - 199;

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let is_llama = config.get("model_type").and_then(Json::as_str) == Some("bunny-llama");
    let text = if is_llama { llama::FAMILY.build } else { qwen2::FAMILY.build };
    let text = text(&multimodal::text_config(config, w)?, w)?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    config::only(config, json!({"mm_projector_type": "mlp2x_gelu"}))?;
    let vision = json!({
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
    });
    let vision = config::with_defaults(vision_config(config)?, vision);
    let own = Json::from(json!({
        "vision_config": vision, "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }));
    let tower = Llava::read(&config::with_defaults(&own, config), w)?;
    Ok(Box::new(Sighted::new(text, tower, PLACEHOLDER)))
}
