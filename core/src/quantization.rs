//! What a config says about the packing of weights; the tensors say the rest.

use crate::{
    config::Json,
    error::{Error, Result},
    mlx::{Format, Mode},
};
use std::collections::BTreeMap;

/// What `config.json` says about quantized tensors.
#[derive(Default)]
pub(crate) struct Quantization {
    /// Formats of single paths; `None` where the config says `false`.
    paths: BTreeMap<String, Option<Format>>,
}

impl Quantization {
    pub(crate) fn read(config: &Json) -> Result<Self> {
        let (field, map) = match (config.get("quantization"), config.get("quantization_config")) {
            (Some(Json::Object(map)), _) => ("quantization", map),
            (_, Some(Json::Object(map))) => ("quantization_config", map),
            _ => return Ok(Self::default()),
        };
        if let Some(method) = map.get("quant_method").and_then(Json::as_str)
            && !["mxfp4", "mxfp8", "bitnet"].contains(&method)
        {
            return Err(Error::Quantization {
                path: format!("{field}.quant_method"),
                reason: format!("`{method}` is not supported yet"),
            });
        }
        let mut paths = BTreeMap::new();
        for (path, value) in map {
            match value {
                Json::Bool(false) => drop(paths.insert(path.clone(), None)),
                Json::Object(fields) => {
                    let format = Format::read(&format!("{field}.{path}"), fields)?;
                    paths.insert(path.clone(), Some(format));
                }
                _ => {}
            }
        }
        Ok(Quantization { paths })
    }

    /// What the config says about one path; the outer `None` when it does not name it.
    pub(crate) fn of(&self, path: &str) -> Option<Option<Format>> {
        self.paths.get(path).copied()
    }
}

impl Format {
    fn read(path: &str, fields: &serde_json::Map<String, Json>) -> Result<Self> {
        let wrong = |reason: &str| Error::Quantization { path: path.into(), reason: reason.into() };
        let mode = match fields.get("mode").map(|mode| mode.as_str()) {
            None | Some(Some("affine")) => Mode::Affine,
            Some(Some("mxfp4")) => Mode::Mxfp4,
            Some(Some("mxfp8")) => Mode::Mxfp8,
            Some(Some("nvfp4")) => Mode::Nvfp4,
            Some(_) => return Err(wrong("the mode is not affine, mxfp4, mxfp8 or nvfp4")),
        };
        let (bits, group) = match mode {
            Mode::Affine => (4, 64),
            Mode::Mxfp4 => (4, 32),
            Mode::Mxfp8 => (8, 32),
            Mode::Nvfp4 => (4, 16),
        };
        let number = |name: &str, default: i32| match fields.get(name) {
            None => Ok(default),
            Some(value) => value
                .as_i64()
                .and_then(|n| i32::try_from(n).ok())
                .ok_or_else(|| wrong(&format!("{name} is not a number"))),
        };
        Ok(Format { mode, bits: number("bits", bits)?, group: number("group_size", group)? })
    }
}
