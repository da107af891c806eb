//! The small files of a checkpoint, from a directory or from inside the program.

use crate::{
    checkpoint::{
        file_rules::{FileRules, fits},
        weight_files::{INDEX, WeightFiles},
    },
    error::{Error, Result},
};
use serde_json::Value as Json;
use std::{
    borrow::Cow,
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Cursor, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// The file of weights of a checkpoint that is part of the program.
pub(crate) const EMBEDDED: &str = "model.safetensors";

/// How the text begins that git leaves in place of a large file that it has not fetched.
pub(crate) const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// The error of such a file.
pub(crate) fn is_pointer(path: &Path) -> Error {
    let reason = "is a git-lfs pointer and not the file itself; run `git lfs pull`, or download the \
                  model again";
    Error::Checkpoint { file: path.into(), reason: reason.into() }
}

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
    /// [`Error::Io`] when it exists and cannot be read; [`Error::Checkpoint`] when git has left a
    /// pointer in its place.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>> {
        match self {
            Files::Embedded(files) => {
                Ok(files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
            Files::Directory(directory) => match fs::read(directory.join(name)) {
                Ok(bytes) if bytes.starts_with(LFS_POINTER) => {
                    Err(is_pointer(&directory.join(name)))
                }
                Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(Error::Io { path: directory.join(name), source }),
            },
        }
    }

    /// What errors call one file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match self {
            Files::Directory(directory) => directory.join(name),
            Files::Embedded(_) => name.into(),
        }
    }

    /// What tells this checkpoint from others: a hash of its config, of the names and sizes of its
    /// weights, and of samples from all over them, since fine-tuned models differ in nothing else.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] when there are no weights.
    pub fn fingerprint(&self) -> Result<String> {
        self.fingerprint_of(&FileRules::USUAL)
    }

    /// As [`Files::fingerprint`], for a family with files of its own.
    pub(crate) fn fingerprint_of(&self, rules: &FileRules) -> Result<String> {
        self.hash("config.json", &self.weights(rules)?.names)
    }

    /// The files of weights of a family: those that its rules name, or else the usual ones.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] when they are not there or not whole.
    pub(crate) fn weights(&self, rules: &FileRules) -> Result<WeightFiles> {
        let Files::Directory(directory) = self else {
            return Ok(WeightFiles { names: [EMBEDDED.into()].into(), ..WeightFiles::default() });
        };
        if rules.weights.is_empty() {
            let present = self.names("")?.into_iter().collect();
            return WeightFiles::choose(self.json(INDEX)?.as_ref(), &present, |name| {
                self.path(name)
            });
        }
        let names = self.list()?.into_iter().filter(|name| fits(rules.weights, name)).collect();
        let weights = WeightFiles { names, ..WeightFiles::default() };
        if weights.names.is_empty() {
            let reason = format!("has no {}", rules.weights.join(" or "));
            return Err(Error::Checkpoint { file: directory.into(), reason });
        }
        Ok(weights)
    }

    /// A hash of a config, and of files of weights with their names.
    pub(crate) fn hash(&self, config: &str, weights: &BTreeSet<String>) -> Result<String> {
        let mut hash = Fnv::new();
        hash.add(&self.read(config)?.unwrap_or_default());
        for name in weights {
            hash.add(name.as_bytes());
            let path = self.path(name);
            let sampled = match self {
                Files::Embedded(_) => {
                    sample(Cursor::new(self.read(name)?.unwrap_or_default()), &mut hash)
                }
                Files::Directory(_) => File::open(&path).and_then(|file| sample(file, &mut hash)),
            };
            sampled.map_err(Error::io(&path))?;
        }
        Ok(format!("{:016x}", hash.0))
    }

    /// The names of the files in a folder, in their order; none when there is no such folder.
    ///
    /// # Errors
    /// [`Error::Io`] when it exists and cannot be read.
    pub fn names(&self, folder: &str) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Files::Embedded(files) => {
                let names = files.iter().map(|(name, _)| *name);
                let inside = |name: &'static str| name.strip_prefix(folder)?.strip_prefix('/');
                names.filter_map(inside).map(String::from).collect()
            }
            Files::Directory(directory) => {
                let path = directory.join(folder);
                let unreadable = |source| Error::Io { path: path.clone(), source };
                let entries = match fs::read_dir(&path) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                    entries => entries.map_err(unreadable)?,
                };
                let name =
                    |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().into_string().ok());
                let names: io::Result<Vec<_>> = entries.map(name).collect();
                names.map_err(unreadable)?.into_iter().flatten().collect()
            }
        };
        names.sort_unstable();
        Ok(names)
    }

    /// The names of all files, with the folder of those that are in one; deeper ones are left out.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn list(&self) -> Result<Vec<String>> {
        let directory = match self {
            Files::Embedded(files) => {
                return Ok(files.iter().map(|(name, _)| (*name).into()).collect());
            }
            Files::Directory(directory) => directory,
        };
        let mut list = Vec::new();
        for name in self.names("")? {
            if directory.join(&name).is_dir() {
                list.extend(self.names(&name)?.iter().map(|inner| format!("{name}/{inner}")));
            } else {
                list.push(name);
            }
        }
        Ok(list)
    }

    /// A JSON file; `None` when there is no such file.
    ///
    /// Python writes numbers that JSON does not have as `Infinity` and `NaN`; they are read as
    /// `{"__float__": "Infinity"}`, the spelling of transformers, which [`crate::checkpoint::config::Float`]
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

impl Files {
    /// A YAML file, as JSON; `None` when there is no such file.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Config`] when it is not YAML.
    pub fn yaml(&self, name: &str) -> Result<Option<Json>> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        serde_yaml_ng::from_slice(&bytes).map(Some).map_err(|error| Error::Config {
            file: name.into(),
            field: String::new(),
            reason: format!("not YAML: {error}"),
        })
    }
}

fn sample(mut file: impl Read + Seek, hash: &mut Fnv) -> io::Result<()> {
    const SAMPLES: u64 = 64;
    const BYTES: u64 = 256;
    let size = file.seek(SeekFrom::End(0))?;
    hash.add(&size.to_le_bytes());
    let last = size.saturating_sub(BYTES);
    for i in 0..SAMPLES {
        file.seek(SeekFrom::Start(last * i / (SAMPLES - 1)))?;
        let mut bytes = Vec::new();
        file.by_ref().take(BYTES).read_to_end(&mut bytes)?;
        hash.add(&bytes);
    }
    Ok(())
}

/// FNV-1a: the same in every process, which the hashes of the standard library do not promise.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
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
