//! The settings of processors: `processor_config.json`, `preprocessor_config.json` and the fields of
//! `config.json` that repeat them.

use crate::{
    checkpoint::{
        config::{self, Json},
        files::Files,
    },
    error::{Error, Result},
    media::{image::Extent, resize::Filter},
    text::Tokenizer,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};
use serde_json::{Value, json};

const PROCESSOR: &str = "processor_config.json";
const IMAGE: &str = "preprocessor_config.json";
const VIDEO: &str = "video_preprocessor_config.json";
/// No side is longer.
const LONGEST_SIDE: i64 = 1 << 16;

/// What a processor is read from.
pub struct Settings<'a> {
    /// `config.json`.
    pub config: &'a Value,
    /// The files of the checkpoint.
    pub files: &'a Files,
    /// The tokenizer; none for a checkpoint that reads token ids only.
    pub tokenizer: Option<&'a Tokenizer>,
}

/// The fields of one of the files.
pub struct Fields {
    json: Json,
    file: &'static str,
}

impl Settings<'_> {
    /// The settings of pictures: `image_processor` in `processor_config.json`, or else
    /// `preprocessor_config.json`. A field that is absent or null is that of `defaults`.
    ///
    /// # Errors
    /// [`Error::Config`] when there is neither.
    pub fn image(&self, defaults: Value) -> Result<Fields> {
        let processor = self.files.json(PROCESSOR)?;
        let nested = processor.as_ref().and_then(|json| json.get("image_processor")).cloned();
        let (json, file) = match nested {
            Some(json) => (json, PROCESSOR),
            None => match self.files.json(IMAGE)? {
                Some(json) => (json, IMAGE),
                None => return Err(missing_file()),
            },
        };
        Ok(Fields { json: config::with_defaults(&Json::from(&json), defaults), file })
    }

    /// As [`Settings::image`], for models whose code has the settings: without a file they are `defaults`.
    ///
    /// # Errors
    /// [`Error::Config`] when a file is not JSON.
    pub fn image_or_defaults(&self, defaults: Value) -> Result<Fields> {
        match self.files.json(PROCESSOR)?.is_some() || self.files.json(IMAGE)?.is_some() {
            true => self.image(defaults),
            false => Ok(Fields { json: defaults.into(), file: IMAGE }),
        }
    }

    /// The settings of clips: `video_processor` in `processor_config.json`, or else
    /// `video_preprocessor_config.json`, or else `defaults`.
    ///
    /// # Errors
    /// [`Error::Config`] when a file is not JSON.
    pub fn video(&self, defaults: Value) -> Result<Fields> {
        let processor = self.files.json(PROCESSOR)?;
        let nested = processor.as_ref().and_then(|json| json.get("video_processor")).cloned();
        let (json, file) = match nested {
            Some(json) => (json, PROCESSOR),
            None => (self.files.json(VIDEO)?.unwrap_or_default(), VIDEO),
        };
        Ok(Fields { json: config::with_defaults(&object(json), defaults), file })
    }

    /// The fields of `processor_config.json`; none without that file.
    ///
    /// # Errors
    /// [`Error::Config`] when it is not JSON.
    pub fn processor(&self) -> Result<Fields> {
        Ok(Fields {
            json: object(self.files.json(PROCESSOR)?.unwrap_or_default()),
            file: PROCESSOR,
        })
    }

    /// A field of `config.json`; a path has points between its names.
    ///
    /// # Errors
    /// [`Error::Config`] when it has another type.
    pub fn config<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        let mut json = self.config;
        for name in path.split('.') {
            match json.get(name) {
                Some(inner) => json = inner,
                None => return Ok(None),
            }
        }
        let value = Option::deserialize(json);
        value.map_err(|error| Error::config(path, error.to_string()))
    }

    /// The id of a token: that of one of these fields of `config.json`, or of the token that
    /// `tokenizer_config.json` has for this role, or of this text.
    ///
    /// # Errors
    /// [`Error::Config`] about the first field when nothing of it is known.
    pub fn token(&self, fields: &[&str], role: &str, text: &str) -> Result<u32> {
        for field in fields {
            if let Some(id) = self.config(field)? {
                return Ok(id);
            }
        }
        let tokenizer = self.tokenizer;
        let role = tokenizer.and_then(|tokenizer| tokenizer.special_token(role));
        let id = tokenizer.and_then(|tokenizer| tokenizer.token_id(role.unwrap_or(text)));
        id.ok_or_else(|| {
            let reason = format!("missing, and the tokenizer has no token `{text}`");
            Error::config(*fields.first().unwrap_or(&"image_token_id"), reason)
        })
    }

    /// The id of the token at the start of a sequence: that which `of` takes from the tokenizer, or else one
    /// of the config.
    ///
    /// # Errors
    /// [`Error::Config`] when it is nowhere.
    pub fn start_token(&self, of: impl Fn(&Tokenizer) -> Option<&str>) -> Result<u32> {
        let own = self.tokenizer.and_then(|tokenizer| tokenizer.token_id(of(tokenizer)?));
        match own {
            Some(id) => Ok(id),
            None => self.token(
                &["bos_token_id", "text_config.bos_token_id", "eos_token_id"],
                "bos_token",
                "<bos>",
            ),
        }
    }

    /// The id of a token by its text, where it is in the vocabulary.
    pub fn token_of(&self, text: &str) -> Option<u32> {
        self.tokenizer?.token_id(text)
    }
}

impl Fields {
    /// A field; one that is absent is like null.
    ///
    /// # Errors
    /// [`Error::Config`] that names the file and the field.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        config::field(&self.json, name).map_err(|error| match error {
            Error::Config { field, reason, .. } => {
                Error::Config { file: self.file.into(), field, reason }
            }
            error => error,
        })
    }

    /// A number of pixels, patches or tokens of which there is at least one.
    ///
    /// # Errors
    /// Those of [`Fields::get`].
    pub fn count(&self, name: &str) -> Result<usize> {
        self.get::<Count>(name).map(|Count(count)| count)
    }

    /// As [`Fields::count`], for a field that may be absent.
    ///
    /// # Errors
    /// Those of [`Fields::get`].
    pub fn optional_count(&self, name: &str) -> Result<Option<usize>> {
        Ok(self.get::<Option<Count>>(name)?.map(|Count(count)| count))
    }

    /// Whether an option is on.
    ///
    /// # Errors
    /// Those of [`Fields::get`].
    pub fn is_on(&self, name: &str) -> Result<bool> {
        Ok(self.get::<Option<bool>>(name)?.unwrap_or(false))
    }

    /// The filter that `resample` names.
    ///
    /// # Errors
    /// Those of [`Fields::get`]; [`Error::Config`] for a number that Pillow does not have.
    pub fn filter(&self) -> Result<Filter> {
        let code: i64 = self.get("resample")?;
        Filter::of_code(code)
            .ok_or_else(|| self.wrong("resample", format!("{code} is no filter of Pillow")))
    }

    /// An error about a field.
    pub fn wrong(&self, field: &str, reason: impl Into<String>) -> Error {
        Error::Config { file: self.file.into(), field: field.into(), reason: reason.into() }
    }
}

/// An object without fields where there is no file.
fn object(json: Value) -> Json {
    if json.is_null() { json!({}).into() } else { json.into() }
}

fn missing_file() -> Error {
    let reason = "there is no such file, which says how pictures are prepared; copy it from the original \
                  repository of the model";
    Error::Config { file: IMAGE.into(), field: String::new(), reason: reason.into() }
}

/// A size at least 1 and at most that of a picture.
#[derive(Clone, Copy, Debug)]
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match i64::deserialize(deserializer)? {
            count @ 1..=LONGEST_SIDE => Ok(Count(count as usize)),
            count => Err(D::Error::custom(format!("{count} is not between 1 and {LONGEST_SIDE}"))),
        }
    }
}

/// A size as transformers writes it: a number or an object.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub enum SizeField {
    /// The length of an edge, or of all of them.
    Edge(u32),
    /// Some of these.
    Named {
        /// Rows.
        height: Option<u32>,
        /// Columns.
        width: Option<u32>,
        /// The shorter edge, or the smallest number of pixels.
        shortest_edge: Option<u32>,
        /// The longer edge, or the largest number of pixels.
        longest_edge: Option<u32>,
    },
}

impl SizeField {
    /// The size of a rectangle, or of a square.
    pub fn extent(self) -> Option<Extent> {
        let (width, height) = match self {
            SizeField::Edge(edge) => (edge, edge),
            SizeField::Named { width: Some(width), height: Some(height), .. } => (width, height),
            SizeField::Named { .. } => return None,
        };
        Some(Extent { width: width as usize, height: height as usize })
    }

    /// The shorter edge.
    pub fn shortest_edge(self) -> Option<usize> {
        match self {
            SizeField::Edge(edge) => Some(edge as usize),
            SizeField::Named { shortest_edge, .. } => shortest_edge.map(|edge| edge as usize),
        }
    }

    /// The longer edge.
    pub fn longest_edge(self) -> Option<usize> {
        match self {
            SizeField::Edge(edge) => Some(edge as usize),
            SizeField::Named { longest_edge, .. } => longest_edge.map(|edge| edge as usize),
        }
    }
}
