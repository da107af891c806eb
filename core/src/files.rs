//! The small files of a checkpoint, from a directory or from inside the program.

use crate::error::{Error, Result};
use serde_json::Value as Json;
use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
};

/// Where the files of a checkpoint are.
#[derive(Clone, Debug)]
pub enum Files {
    /// A directory in the layout that model repositories have.
    Directory(PathBuf),
    /// Names and contents that are part of the program.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl Files {
    /// The content of one file; `None` when there is no such file.
    ///
    /// # Errors
    /// [`Error::Io`] when it exists and cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>> {
        match self {
            Files::Embedded(files) => {
                Ok(files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
            Files::Directory(directory) => match fs::read(directory.join(name)) {
                Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(Error::Io { path: directory.join(name), source }),
            },
        }
    }

    /// A JSON file; `None` when there is no such file.
    ///
    /// Python writes numbers that JSON does not have as `Infinity` and `NaN`; they are read as
    /// `{"__float__": "Infinity"}`, the spelling of transformers, which [`crate::config::float`]
    /// understands.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Config`] when it is not JSON.
    pub fn json(&self, name: &str) -> Result<Option<Json>> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let not_json = |reason: String| Error::Config {
            file: name.into(),
            field: String::new(),
            reason: format!("not JSON: {reason}"),
        };
        let text = std::str::from_utf8(&bytes).map_err(|e| not_json(e.to_string()))?;
        match serde_json::from_str(text) {
            Ok(json) => Ok(Some(json)),
            Err(error) => serde_json::from_str(&tag_non_finite(text))
                .map(Some)
                .map_err(|_| not_json(error.to_string())),
        }
    }
}

impl From<&Path> for Files {
    fn from(directory: &Path) -> Self {
        Files::Directory(directory.into())
    }
}

impl From<PathBuf> for Files {
    fn from(directory: PathBuf) -> Self {
        Files::Directory(directory)
    }
}

impl From<&str> for Files {
    fn from(directory: &str) -> Self {
        Files::Directory(directory.into())
    }
}

/// Replaces the words `Infinity`, `-Infinity` and `NaN` outside of strings.
fn tag_non_finite(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        let word = ["Infinity", "-Infinity", "NaN"].into_iter().find(|w| rest.starts_with(w));
        match (in_string, word) {
            (false, Some(word)) => {
                out += &format!(r#"{{"__float__": "{word}"}}"#);
                rest = &rest[word.len()..];
                continue;
            }
            (true, _) if c == '\\' => {
                let escaped = rest.chars().take(2).map(char::len_utf8).sum();
                out += &rest[..escaped];
                rest = &rest[escaped..];
                continue;
            }
            _ => in_string ^= c == '"',
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_finite_numbers_are_tagged_outside_of_strings_only() {
        let tagged = tag_non_finite(r#"{"a": [0.0, Infinity], "NaN": "\" -Infinity", "b": NaN}"#);
        let json: Json = serde_json::from_str(&tagged).unwrap();
        assert_eq!(json["a"][1]["__float__"], "Infinity");
        assert_eq!(json["NaN"], "\" -Infinity");
        assert_eq!(json["b"]["__float__"], "NaN");
    }
}
