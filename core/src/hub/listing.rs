//! The files of a commit, as the hub lists them.

/// The files of a commit.
pub(crate) struct Listing {
    /// The hash of the commit.
    pub commit: String,
    /// Whether the repository is gated: its licence must be accepted before a download.
    pub gated: bool,
    /// The files whose names models usually have: those for which `select::may_need` is true.
    pub files: Vec<RemoteFile>,
    /// The others: only a family with files of its own needs any.
    pub others: Vec<RemoteFile>,
}

/// A file as the hub announces it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RemoteFile {
    /// Its path in the repository.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// In hexadecimal: the SHA-256 of a large (LFS) file, the git blob SHA-1 of a small one.
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
