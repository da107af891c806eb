//! The files of a commit, as the hub lists them.

/// The files of a commit, those that no model needs left out.
pub(crate) struct Listing {
    pub commit: String,
    /// Whether its licence must be accepted.
    pub gated: bool,
    pub files: Vec<RemoteFile>,
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
    /// The file of this name.
    pub fn file(&self, name: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.name == name)
    }
}
