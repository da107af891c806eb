//! What families of vision models have in common: the places of their parts in a checkpoint, and the
//! language model, which is that of a family of text models.

use crate::{
    checkpoint::{
        config::{self, Json, Size},
        scope::Scope,
    },
    error::{Error, Result},
    families::text,
    models::{decoder::body, language::LanguageModel},
};

/// The names of towers and of what stands between a tower and the text, in all exports.
const PARTS: &[&str] = &[
    "vision_tower",
    "vision_model",
    "visual",
    "multi_modal_projector",
    "mm_projector",
    "mlp_AR",
    "connector",
    "embed_vision",
    "image_newline",
];

/// The first of these parts that the checkpoint has, there or below `model`.
fn find_part(w: &Scope, names: &[&str]) -> Option<Scope> {
    let places = names.iter().flat_map(|name| [w.at(name), w.at("model").at(name)]);
    places.into_iter().find(|place| place.exists())
}

/// A part by the first of its names that the checkpoint has.
pub fn part(w: &Scope, names: &[&str]) -> Scope {
    find_part(w, names).unwrap_or_else(|| w.at(names[0]))
}

/// The vision tower by the first of its names that the checkpoint has, without the names of modules
/// around it.
pub fn tower(w: &Scope) -> Scope {
    let inside = |place: Scope, name| if place.has_below(name) { place.at(name) } else { place };
    ["vision_tower", "vision_model"].into_iter().fold(part(w, &PARTS[..3]), inside)
}

/// Whether the checkpoint has the tower that its config describes. Where a conversion to text alone
/// has dropped either, what is left of the other is not read.
///
/// # Errors
/// [`Error::Config`] when `vision_config` is no object.
pub fn has_tower(config: &Json, w: &Scope) -> Result<bool> {
    let described = config.get("vision_config").filter(|vision| !vision.is_null());
    if described.is_some_and(|vision| !vision.is_object()) {
        return Err(Error::config("vision_config", "not an object"));
    }
    if described.is_some() && find_part(w, &PARTS[..3]).is_some() {
        return Ok(true);
    }
    for name in PARTS {
        w.ignore(name);
        w.at("model").ignore(name);
    }
    Ok(false)
}

/// The config of the language model: `text_config`, or the config itself where it nests none. The
/// outer config says whether the head is tied, else the checkpoint.
///
/// # Errors
/// [`Error::Config`] when it is no object.
pub fn text_config(config: &Json, w: &Scope) -> Result<Json> {
    let text = config::text(config)?;
    let outer: Option<bool> = config::field(config, "tie_word_embeddings")?;
    let own: Option<bool> = config::field(&text, "tie_word_embeddings")?;
    let has_head = || body(w).1.at("lm_head").has("weight");
    Ok(text.with("tie_word_embeddings", outer.or(own).unwrap_or_else(|| !has_head())))
}

/// The language model, by the family of its `model_type`, or of `default` where it has none.
///
/// # Errors
/// Those of the family; [`Error::Unsupported`] for a type that is no text model.
pub fn text_model(config: &Json, w: &Scope, default: &str) -> Result<Box<dyn LanguageModel>> {
    let nested = text_config(config, w)?;
    let kind = config::field::<Option<String>>(&nested, "model_type")?;
    let kind = kind.as_deref().unwrap_or(default);
    let is_nested = config.get("text_config").is_some_and(|text| !text.is_null());
    text::language(kind, &nested, w).map_err(|error| match error {
        Error::UnknownModelType { .. } => {
            let reason = format!("`{kind}` is not supported");
            Error::unsupported("text_config.model_type", reason)
        }
        error if is_nested => error.with_field(|field| format!("text_config.{field}")),
        error => error,
    })
}

/// Width of the stream of the language model.
///
/// # Errors
/// [`Error::Config`] when it is missing.
pub fn text_width(config: &Json) -> Result<i32> {
    Ok(*config::field::<Size>(&config::text(config)?, "hidden_size")?)
}

/// The id of the placeholders of pictures.
///
/// # Errors
/// [`Error::Config`] when it is no id.
pub fn placeholder(config: &Json, default: u32) -> Result<u32> {
    for field in ["image_token_id", "image_token_index"] {
        if let Some(id) = config::field::<Option<u32>>(config, field)? {
            return Ok(id);
        }
    }
    Ok(default)
}
