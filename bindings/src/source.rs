//! Where the files of a model are.

use crate::error::MynahError;
use mynah::{DEMO, Location, Source, hub::AccessToken};
use std::path::Path;

/// Where the files of a model are.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum ModelSource {
    /// A directory if one of this name exists or the name starts with `.`, `/` or `~`; else
    /// `org/name` or `org/name@revision` on the hub that the environment configures.
    Named {
        /// The name.
        name: String,
    },
    /// A directory with the files of a model repository.
    Directory {
        /// Its path.
        path: String,
    },
    /// A repository on a hub.
    Hub {
        /// The repository and how to access it.
        source: HubSource,
    },
    /// The tiny model that the library embeds.
    Demo,
}

/// A repository on a hub. The environment configures absent fields.
#[derive(Clone, Debug, uniffi::Record)]
pub struct HubSource {
    /// Its name, such as `org/name`.
    pub repository: String,
    /// A branch, a tag or a commit; by default `main`.
    #[uniffi(default = None)]
    pub revision: Option<String>,
    /// The address of the hub.
    #[uniffi(default = None)]
    pub endpoint: Option<String>,
    /// The access token.
    #[uniffi(default = None)]
    pub token: Option<String>,
    /// The folder of the hub cache.
    #[uniffi(default = None)]
    pub cache: Option<String>,
    /// Whether network requests are forbidden.
    #[uniffi(default = false)]
    pub offline: bool,
}

impl TryFrom<ModelSource> for Location {
    type Error = MynahError;

    fn try_from(source: ModelSource) -> Result<Self, MynahError> {
        Ok(match source {
            ModelSource::Named { name } => name.into(),
            ModelSource::Directory { path } => Path::new(&path).into(),
            ModelSource::Hub { source } => Source::try_from(source)?.into(),
            ModelSource::Demo => DEMO.into(),
        })
    }
}

impl TryFrom<ModelSource> for Source {
    type Error = MynahError;

    fn try_from(source: ModelSource) -> Result<Self, MynahError> {
        match source {
            ModelSource::Named { name } => Ok(Source::new(&name)?),
            ModelSource::Hub { source } => Source::try_from(source),
            ModelSource::Directory { .. } | ModelSource::Demo => {
                Err(MynahError::invalid("only a repository on a hub can be downloaded"))
            }
        }
    }
}

impl TryFrom<HubSource> for Source {
    type Error = MynahError;

    fn try_from(given: HubSource) -> Result<Self, MynahError> {
        let mut source = Source::new(&given.repository)?;
        if let Some(revision) = given.revision {
            source = source.with_revision(&revision)?;
        }
        if let Some(endpoint) = given.endpoint {
            source = source.with_endpoint(&endpoint)?;
        }
        if let Some(token) = given.token {
            source = source.with_token(AccessToken::new(&token)?);
        }
        if let Some(cache) = given.cache {
            source = source.with_cache(cache);
        }
        Ok(if given.offline { source.offline() } else { source })
    }
}
