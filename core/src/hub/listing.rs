//! The files of a commit, as the hub lists them.

/// The files of a commit; files that no model needs are left out.
pub(crate) struct Listing {
    /// The hash of the commit.
    pub commit: String,
    /// Whether the repository is gated: its licence must be accepted before a download.
    pub gated: bool,
    /// Only the files for which `select::may_need` is true.
    pub files: Vec<RemoteFile>,
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
    /// The file of this name.
    pub fn file(&self, name: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.name == name)
    }
}
