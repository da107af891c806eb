//! Processors of models with one of several vision towers, told apart by `image_processor_type`.

use crate::{
    error::Result,
    processors::{Processor, Settings, fixed, rows},
};
use serde_json::json;

/// [`rows::read`] or [`fixed::centered`].
///
/// # Errors
/// [`Error::Config`](crate::Error::Config).
pub fn read(settings: &Settings) -> Result<Box<dyn Processor>> {
    let class: Option<String> = settings.image(json!({}))?.get("image_processor_type")?;
    match class.is_some_and(|class| class.starts_with("Pixtral")) {
        true => rows::read(settings),
        false => fixed::centered(settings),
    }
}
