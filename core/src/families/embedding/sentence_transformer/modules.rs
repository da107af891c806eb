//! `modules.json` of sentence-transformers: the modules that a text runs through, each with a folder of
//! its own.

use crate::{
    checkpoint::{file_rules::MODULES, files::Files, shards},
    families::{
        Checkpoint,
        prelude::*,
        text_encoders::{damaged, unsupported},
    },
};
use serde::de::DeserializeOwned;

/// What a module does to vectors `[…, width]`.
pub type Change = Box<dyn Fn(&Array) -> Result<Array>>;

/// One module.
pub struct Module {
    /// Its class, without the packages around it.
    pub kind: String,
    /// Its place in the list.
    index: usize,
    /// Its folder; empty for that of the checkpoint.
    folder: String,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

/// The modules of a checkpoint in their order; none without a list.
///
/// # Errors
/// [`Error::Config`] for a list that cannot be right; [`Error::Unsupported`] for a module whose code is
/// beside the weights.
pub fn list(files: &Files) -> Result<Vec<Module>> {
    let Some(list) = files.json(MODULES)? else { return Ok(Vec::new()) };
    let list: Vec<Listed> = in_file(MODULES, config::read(&list.into()))?;
    let module = |(index, Listed { kind, path }): (usize, Listed)| {
        let field = format!("[{index}].type");
        let Some(name) = kind.strip_prefix("sentence_transformers.") else {
            let reason = format!("`{kind}` is code of its own, which is never run");
            return Err(unsupported(MODULES, field, reason));
        };
        let folder = path.trim_matches('/').to_string();
        if folder.split('/').any(|part| part == "..") {
            return Err(damaged(MODULES, format!("[{index}].path"), "leads out of the folder"));
        }
        let kind = name.rsplit('.').next().unwrap_or(name).to_string();
        Ok(Module { kind, index, folder })
    };
    list.into_iter().enumerate().map(module).collect()
}

impl Module {
    /// A file in its folder.
    pub fn file(&self, name: &str) -> String {
        if self.folder.is_empty() { name.into() } else { format!("{}/{name}", self.folder) }
    }

    /// Its config.
    pub fn config(&self) -> String {
        self.file("config.json")
    }

    /// The fields of its config.
    ///
    /// # Errors
    /// [`Error::Config`] when they are missing or wrong.
    pub fn read<T: DeserializeOwned>(&self, files: &Files) -> Result<T> {
        let name = self.config();
        let config = files.json(&name)?.ok_or_else(|| {
            damaged(&name, "", format!("missing, and {MODULES} names a {} there", self.kind))
        })?;
        in_file(&name, config::read(&config.into()))
    }

    /// Its weights, which count as part of the checkpoint from here on.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the file is missing or damaged.
    pub fn weights(&self, checkpoint: &Checkpoint) -> Result<Scope> {
        let name = self.file("model.safetensors");
        let tensors = shards::file(checkpoint.files, &name)?;
        checkpoint.weights.adopt(&self.folder, tensors);
        Ok(checkpoint.weights.at(&self.folder))
    }

    /// An error unless it is a module of this class.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    pub fn expect(&self, kind: &str) -> Result<()> {
        if self.kind == kind {
            return Ok(());
        }
        Err(self.unsupported(format!("`{}` stands where a {kind} is expected", self.kind)))
    }

    /// An error about its class.
    pub fn unsupported(&self, reason: impl Into<String>) -> Error {
        unsupported(MODULES, format!("[{}].type", self.index), reason)
    }
}

/// An error about a config is one about this file.
pub fn in_file<T>(name: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::Config { field, reason, .. } => damaged(name, field, reason),
        Error::Unsupported { field, reason, .. } => unsupported(name, field, reason),
        error => error,
    })
}

/// An error unless a module changes what there is: the tokens before the pooling, the text after it.
pub fn check_place(module: &Module, input: Option<&str>, is_pooled: bool) -> Result<()> {
    let expected = if is_pooled { "sentence_embedding" } else { "token_embeddings" };
    if input.unwrap_or("sentence_embedding") == expected {
        return Ok(());
    }
    let reason = format!("here only {expected} is supported");
    Err(unsupported(&module.config(), "module_input_name", reason))
}
