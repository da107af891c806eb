//! The location of a model.

use crate::{
    checkpoint::files::Files,
    error::{Error, Result},
    hub::Source,
};
use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

/// The location of a model: on this machine or on a hub. Converts from a name, a directory, [`Files`]
/// or a [`Source`].
#[derive(Clone, Debug)]
pub struct Location(Named);

#[derive(Clone, Debug)]
enum Named {
    Name(String),
    Found(Found),
}

/// A resolved location.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    Here(Files),
    Hub(Box<Source>),
}

impl Location {
    /// A name is a directory if that directory exists or if the name starts with `.`, `/` or `~`.
    /// Otherwise it is a repository.
    ///
    /// # Errors
    /// [`Error::Io`] for a directory that cannot be read; those of [`Source::new`].
    pub(crate) fn resolve(self) -> Result<Found> {
        let found = self.find()?;
        if let Found::Here(Files::Directory(directory)) = &found {
            let explained = |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound => io::Error::new(
                    io::ErrorKind::NotFound,
                    "there is no such folder; check the path, or name a hub repository: org/name",
                ),
                _ => source,
            };
            fs::read_dir(directory).map_err(explained).map_err(Error::io(directory))?;
        }
        Ok(found)
    }

    fn find(self) -> Result<Found> {
        match self.0 {
            Named::Found(found) => Ok(found),
            Named::Name(name) => {
                let in_home = name.strip_prefix("~/").or((name == "~").then_some(""));
                Ok(match (in_home, env::home_dir()) {
                    (Some(rest), Some(home)) => Found::Here(home.join(rest).into()),
                    _ if name.starts_with(['.', '/', '~']) || Path::new(&name).is_dir() => {
                        Found::Here(name.as_str().into())
                    }
                    _ => Found::Hub(Box::new(Source::new(&name)?)),
                })
            }
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.0 {
            Named::Name(name) => f.write_str(name),
            Named::Found(Found::Here(Files::Directory(folder))) => folder.display().fmt(f),
            Named::Found(Found::Here(Files::Embedded(_))) => f.write_str("the embedded model"),
            Named::Found(Found::Hub(source)) if source.revision() == "main" => {
                source.repository().fmt(f)
            }
            Named::Found(Found::Hub(source)) => {
                write!(f, "{}@{}", source.repository(), source.revision())
            }
        }
    }
}

impl From<&str> for Location {
    fn from(name: &str) -> Self {
        Location(Named::Name(name.into()))
    }
}

impl From<String> for Location {
    fn from(name: String) -> Self {
        Location(Named::Name(name))
    }
}

impl From<&Path> for Location {
    fn from(directory: &Path) -> Self {
        Files::from(directory).into()
    }
}

impl From<PathBuf> for Location {
    fn from(directory: PathBuf) -> Self {
        Files::from(directory).into()
    }
}

impl From<Files> for Location {
    fn from(files: Files) -> Self {
        Location(Named::Found(Found::Here(files)))
    }
}

impl From<Source> for Location {
    fn from(source: Source) -> Self {
        Location(Named::Found(Found::Hub(Box::new(source))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str) -> Result<Found> {
        Location::from(name).find()
    }

    #[test]
    fn a_location_is_shown_as_it_is_written() {
        for name in ["./org/name", "org/name", "org/name@v1"] {
            assert_eq!(Location::from(name).to_string(), name);
            if let Found::Hub(source) = found(name).unwrap() {
                assert_eq!(Location::from(*source).to_string(), name);
            }
        }
    }

    #[test]
    fn a_name_is_a_directory_or_a_repository() {
        for here in [".", "./org/name", "../name", "/org/name", "~/name", "~name", "src"] {
            assert!(matches!(found(here).unwrap(), Found::Here(Files::Directory(_))), "{here}");
        }
        let Found::Here(Files::Directory(path)) = found("~/a/b").unwrap() else { panic!() };
        assert_eq!(Some(path), env::home_dir().map(|home| home.join("a/b")));
        let Found::Hub(source) = found("org/name@v1").unwrap() else { panic!() };
        assert_eq!((source.repository().as_str(), source.revision()), ("org/name", "v1"));
        assert!(found("no such thing").is_err());
    }
}
