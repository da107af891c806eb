//! InternVL in the layout of its authors: the parts of `internvl` under other names, with queries, keys
//! and values in one matrix, and a language model of any family. Only the tokenizer knows the id of the
//! placeholders. Follows `modeling_internvl_chat.py` and `modeling_intern_vit.py` of the published models.

use crate::families::{
    multimodal,
    prelude::*,
    vision::internvl::{InternConfig, Tiles},
};

pub const FAMILY: Family = Family {
    model_types: &["internvl_chat"],
    build,
    recommended: Recommended { end_tokens: &["<|im_end|>", "<|end|>"], ..Recommended::NOTHING },
};

/// The names of the authors and those of `internvl`.
const TENSORS: &[(&str, &str)] = &[
    ("embeddings.class_embedding", "embeddings.cls_token"),
    ("embeddings.patch_embedding.", "embeddings.patch_embeddings.projection."),
    ("embeddings.position_embedding", "embeddings.position_embeddings"),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.projection_layer."),
    (".attn.", ".attention."),
];
const PROJECTOR: &[(&str, &str)] = &[
    ("mlp1.0.", "multi_modal_projector.layer_norm."),
    ("mlp1.1.", "multi_modal_projector.linear_1."),
    ("mlp1.3.", "multi_modal_projector.linear_2."),
];
const FIELDS: &[(&str, &str)] =
    &[("qkv_bias", "attention_bias"), ("qk_normalization", "use_qk_norm")];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let is_given = |name| config.get(name).is_some_and(|nested| !nested.is_null());
    if !is_given("llm_config") && !is_given("text_config") {
        return Err(Error::config("llm_config", "missing"));
    }
    // mlx-vlm has the second name.
    config::read_renamed(config, &[("llm_config", "text_config")], |config| read(config, w))
}

fn read(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    // The language model is built from its own config.
    let own = config.pointer("/text_config/tie_word_embeddings").filter(|tied| !tied.is_null());
    let config = &own.map_or_else(|| config.clone(), |own| config.with("tie_word_embeddings", own));
    let text = multimodal::text_model(config, w, "qwen2")?;
    w.at("vision_model").rename(TENSORS);
    w.at("vision_model.encoder").rename(&[("encoder.layers.", "encoder.layer.")]);
    w.rename(PROJECTOR);
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    let nested = config::with_defaults(
        vision_config(config)?,
        json!({
            "hidden_size": 3200, "intermediate_size": 12_800, "num_hidden_layers": 48,
            "num_attention_heads": 25, "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
            "layer_norm_eps": 1e-6, "norm_type": "rms_norm", "use_qk_norm": true,
            "attention_bias": false,
        }),
    );
    config::only(&nested, json!({"model_type": "intern_vit_6b"})).map_err(in_vision_config)?;
    let eps = nested.get("layer_norm_eps").cloned().unwrap_or_else(|| json!(1e-6).into());
    let nested = nested
        .with("qk_norm_eps", eps)
        .with("use_mean_pooling", json!(true))
        .with("use_absolute_position_embeddings", json!(true));
    // The processor reads them. Where pictures are not those of the position table, that is interpolated.
    let cut = ["force_image_size", "dynamic_image_size", "use_thumbnail"];
    for name in cut.into_iter().chain(["min_dynamic_patch", "max_dynamic_patch"]) {
        config.get(name);
    }
    let mut c = InternConfig::read(&nested, FIELDS)?;
    let layer = config::field::<Option<i32>>(config, "select_layer")?.unwrap_or(-1);
    let place = w.at("vision_model.encoder.layer");
    c.blocks = encoder::until(&place, "select_layer", layer, *c.shared.num_hidden_layers)?;
    let tower = Tiles::read(config, &c, w)?;
    let version: Option<String> = config::field(config, "ps_version")?;
    let tower = match version.as_deref() {
        Some("v2") => tower,
        None | Some("v1") => tower.transposed(true),
        Some(version) => {
            let reason = format!("`{version}` is neither v1 nor v2");
            return Err(Error::unsupported("ps_version", reason));
        }
    };
    let sighted = Sighted::new(text, tower, 151_667);
    Ok(Box::new(sighted.with_placeholders_of_pictures()))
}
