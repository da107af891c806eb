//! The files of a commit, as the hub lists them.

/// The files of a commit.
pub(crate) struct Listing {
    pub commit: String,
    /// Whether its licence must be accepted.
    pub gated: bool,
    /// Those that some model has under the usual names.
    pub files: Vec<RemoteFile>,
    /// The others: only a family with files of its own needs any.
    pub others: Vec<RemoteFile>,
}

/// A file as the hub announces it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RemoteFile {
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// The SHA-256 of a large file, the SHA-1 that git gives to a small one; in hexadecimal.
    pub hash: String,
}

impl Listing {
    /// The names of all files.
    pub fn names(&self) -> Vec<String> {
        self.files.iter().chain(&self.others).map(|file| file.name.clone()).collect()
    }

    /// The file of this name.
    pub fn file(&self, name: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.name == name)
    }
}
