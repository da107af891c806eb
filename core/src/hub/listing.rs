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

/// A file as a list names it. Mirrors and private hubs leave out sizes or hashes.
#[derive(Debug)]
pub(super) struct ListedFile {
    pub name: String,
    pub announced: Announced,
}

/// What a hub says of a file, in a list or in the headers of the file itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Announced {
    pub size: Option<u64>,
    pub hash: Option<String>,
}

impl Announced {
    /// With what is missing from another answer.
    pub fn or(self, other: Announced) -> Self {
        Announced { size: self.size.or(other.size), hash: self.hash.or(other.hash) }
    }

    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        self.size.is_some() && self.hash.is_some()
    }
}

/// A text that is the SHA-256 or the git blob SHA-1 of a file.
pub(super) fn hash(text: &str) -> Option<String> {
    let is_hex = text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    (matches!(text.len(), 40 | 64) && is_hex).then(|| text.into())
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
