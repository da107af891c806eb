//! Processors of families whose checkpoints have one of several, told apart by `image_processor_type`.

use crate::{
    error::Result,
    processors::{Processor, Settings, fixed, grids, rows},
};
use serde_json::json;

fn starts_with(settings: &Settings, name: &str) -> Result<bool> {
    let class: Option<String> = settings.image(json!({}))?.get("image_processor_type")?;
    Ok(class.is_some_and(|class| class.starts_with(name)))
}

/// [`rows::read`] or [`fixed::centered`].
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub fn rows_or_centered(settings: &Settings) -> Result<Box<dyn Processor>> {
    match starts_with(settings, "PixtralImageProcessor")? {
        true => rows::read(settings),
        false => fixed::centered(settings),
    }
}

/// [`grids::lined`] or [`grids::numbered`].
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub fn lined_or_numbered(settings: &Settings) -> Result<Box<dyn Processor>> {
    match starts_with(settings, "Cohere2VisionImageProcessor")? {
        true => grids::lined(settings),
        false => grids::numbered(settings),
    }
}
