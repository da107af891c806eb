//! What the list of families says of each: the kind of model it builds, the files it needs, and how a
//! checkpoint is recognised.

use crate::{
    checkpoint::{
        config::{self, Json},
        file_rules::FileRules,
        files::Files,
        scope::Scope,
    },
    error::{Error, Result},
    families::family::{Family, Recommended, model_type},
    models::{
        codec::Codec,
        detector::Detector,
        embedder::Embedder,
        language::LanguageModel,
        network::{Kind, Network},
        reranker::Reranker,
        speaker::Speaker,
        speech::Transcriber,
    },
    processors,
};
use serde_json::Value;
use std::rc::Rc;

/// A family of any kind in the list of all families.
pub struct Entry {
    /// The values of `model_type` that it reads; the first one is its name.
    pub model_types: &'static [&'static str],
    /// What it builds.
    pub build: Build,
    /// What the authors recommend where the files of a checkpoint say nothing.
    pub recommended: Recommended,
    /// Which files it needs.
    pub files: FileRules,
    /// Reads the settings that prepare pictures; none for a model that reads none.
    pub processor: Option<processors::Read>,
}

/// A checkpoint on its way to a model.
pub struct Checkpoint<'a> {
    /// Its `config.json`, which remembers which of its fields were read; an empty object without one.
    pub config: &'a Json,
    /// Its weights.
    pub weights: &'a Scope,
    /// Its other files.
    pub files: &'a Files,
}

/// Builds a model of one kind.
pub type Builder<M> = fn(&Checkpoint) -> Result<Box<M>>;

/// What a family builds.
#[derive(Clone, Copy)]
pub enum Build {
    /// A language model from the config and the weights alone.
    Text(fn(&Json, &Scope) -> Result<Box<dyn LanguageModel>>),
    /// A language model that needs other files too, such as those of its processor.
    Language(Builder<dyn LanguageModel>),
    /// Speech to text.
    Transcriber(Builder<dyn Transcriber>),
    /// Text to speech.
    Speaker(Builder<dyn Speaker>),
    /// Voice activity detection.
    Detector(Builder<dyn Detector>),
    /// An audio codec.
    Codec(Builder<dyn Codec>),
    /// Text embeddings.
    Embedder(Builder<dyn Embedder>),
    /// Scores of queries and documents.
    Reranker(Builder<dyn Reranker>),
}

impl Build {
    /// What kind of model it builds.
    pub fn kind(self) -> Kind {
        match self {
            Build::Text(_) | Build::Language(_) => Kind::Language,
            Build::Transcriber(_) => Kind::Transcriber,
            Build::Speaker(_) => Kind::Speaker,
            Build::Detector(_) => Kind::Detector,
            Build::Codec(_) => Kind::Codec,
            Build::Embedder(_) => Kind::Embedder,
            Build::Reranker(_) => Kind::Reranker,
        }
    }

    /// The model.
    ///
    /// # Errors
    /// Those of the family.
    pub fn network(self, checkpoint: &Checkpoint) -> Result<Network> {
        Ok(match self {
            Build::Text(build) => {
                Network::Language(build(checkpoint.config, checkpoint.weights)?.into())
            }
            Build::Language(build) => Network::Language(build(checkpoint)?.into()),
            Build::Transcriber(build) => Network::Transcriber(build(checkpoint)?.into()),
            Build::Speaker(build) => Network::Speaker(build(checkpoint)?.into()),
            Build::Detector(build) => Network::Detector(build(checkpoint)?.into()),
            Build::Codec(build) => Network::Codec(build(checkpoint)?.into()),
            Build::Embedder(build) => Network::Embedder(build(checkpoint)?.into()),
            Build::Reranker(build) => Network::Reranker(build(checkpoint)?.into()),
        })
    }
}

impl Entry {
    /// The entry of a family of text models with the usual files.
    pub const fn text(family: Family) -> Self {
        Entry {
            model_types: family.model_types,
            build: Build::Text(family.build),
            recommended: family.recommended,
            files: FileRules::USUAL,
            processor: None,
        }
    }

    /// The entry of a family of models that read pictures and text, with the usual files.
    pub const fn vision(family: Family, processor: processors::Read) -> Self {
        Entry { processor: Some(processor), ..Entry::text(family) }
    }

    /// The entry of a family of speech to text.
    pub const fn transcriber(
        model_types: &'static [&'static str],
        build: Builder<dyn Transcriber>,
        files: FileRules,
    ) -> Self {
        Entry {
            model_types,
            build: Build::Transcriber(build),
            recommended: Recommended::NOTHING,
            files,
            processor: None,
        }
    }

    /// What errors call a checkpoint of this family: its `model_type`, or the family's first one.
    pub fn name<'a>(&'a self, config: &'a Value) -> &'a str {
        model_type(config).unwrap_or(self.model_types[0])
    }

    /// An error unless it builds models of this kind.
    ///
    /// # Errors
    /// [`Error::ModelKind`].
    pub fn expect(&self, kind: Kind, config: &Value) -> Result<()> {
        if self.build.kind() == kind {
            return Ok(());
        }
        Err(Error::ModelKind {
            model_type: self.name(config).into(),
            found: self.build.kind().description(),
            expected: kind.description(),
        })
    }

    /// The model of a checkpoint.
    ///
    /// # Errors
    /// Those of the family, and [`Error::Unsupported`] for a field of the config that the family does
    /// not use and that changes the numbers.
    pub fn network(&self, weights: &Scope, files: &Files) -> Result<Network> {
        let config = weights.config();
        let network = self.build.network(&Checkpoint { config, weights, files })?;
        config::ignored_fields(config)?;
        Ok(network)
    }

    /// The language model of a checkpoint without other files.
    ///
    /// # Errors
    /// [`Error::ModelKind`] when it builds models of another kind, and those of [`Entry::network`].
    pub fn language(&self, weights: &Scope) -> Result<Rc<dyn LanguageModel>> {
        self.expect(Kind::Language, &weights.config().to_value())?;
        match self.network(weights, &Files::Embedded(&[]))? {
            Network::Language(model) => Ok(model),
            _ => Err(Error::Internal("a family builds another kind of model than it says".into())),
        }
    }
}

macro_rules! families {
    ($($name:ident),* $(,)?) => {
        $(pub(crate) mod $name;)*
        /// The families of this modality.
        pub const FAMILIES: &[$crate::families::entry::Entry] =
            &[$($crate::families::entry::Entry::text($name::FAMILY)),*];
    };
}
pub(crate) use families;

macro_rules! vision_families {
    ($($name:ident: $processor:path),* $(,)?) => {
        $(pub(crate) mod $name;)*
        /// The families of this modality, each with the processor of its pictures.
        pub const FAMILIES: &[$crate::families::entry::Entry] =
            &[$($crate::families::entry::Entry::vision($name::FAMILY, $processor)),*];
    };
}
pub(crate) use vision_families;
