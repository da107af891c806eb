//! The source of a download: a repository at a revision, the hub, the credential and the cache.
//!
//! Environment variables have the meaning that they have for Python's `huggingface_hub`
//! (`constants.py`, `utils/_auth.py`).

use crate::error::{Error, Result};
use crate::hub::{Downloader, access_token::AccessToken};
use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

const ENDPOINT: &str = "https://huggingface.co";

/// A repository at a revision, and how to download it. The builder methods return a changed copy.
#[derive(Clone)]
pub struct Source {
    repository: Repository,
    revision: String,
    endpoint: String,
    token: Option<AccessToken>,
    cache: PathBuf,
    offline: bool,
    downloader: Option<Arc<dyn Downloader>>,
}

impl Source {
    /// The repository `org/name`, or `org/name@revision`. The environment sets the rest:
    /// `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`Error::InvalidName`]; [`Error::Io`] for a token file that cannot be read; [`Error::Option`]
    /// for a variable with an invalid value.
    pub fn new(name: &str) -> Result<Self> {
        Source::with_environment(name, &|variable| env::var(variable).ok())
    }

    fn with_environment(name: &str, variable: &Variables) -> Result<Self> {
        let (repository, revision) = name.split_once('@').unwrap_or((name, "main"));
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let source = Source {
            repository: repository.parse()?,
            revision: checked_revision(revision)?,
            endpoint: String::new(),
            token: token(&variable)?,
            cache: cache(&variable),
            offline: variable("HF_HUB_OFFLINE")
                .or_else(|| variable("TRANSFORMERS_OFFLINE"))
                .is_some_and(is_true),
            downloader: None,
        };
        source.with_endpoint(&variable("HF_ENDPOINT").unwrap_or(ENDPOINT.into()))
    }

    /// Sets the branch, tag or commit.
    ///
    /// # Errors
    /// [`Error::InvalidName`].
    pub fn with_revision(self, revision: &str) -> Result<Self> {
        Ok(Source { revision: checked_revision(revision)?, ..self })
    }

    /// Sets the address of the hub, such as `https://hub.example.org`.
    ///
    /// # Errors
    /// [`Error::Option`] when it is not an HTTP or HTTPS address.
    pub fn with_endpoint(self, endpoint: &str) -> Result<Self> {
        let endpoint = endpoint.trim().trim_end_matches('/');
        let address = endpoint.parse::<ureq::http::Uri>().ok().filter(|address| {
            matches!(address.scheme_str(), Some("http" | "https"))
                && address.host().is_some_and(|host| !host.is_empty())
                && address.query().is_none()
                // Errors show the address, so it must not contain a password.
                && address.authority().is_some_and(|it| !it.as_str().contains('@'))
        });
        match address {
            Some(_) => Ok(Source { endpoint: endpoint.into(), ..self }),
            None => Err(Error::option(
                "endpoint",
                "must be the http:// or https:// address of a hub, without a password or a query",
            )),
        }
    }

    /// Sets the access token, which is sent to this source's hub only.
    pub fn with_token(self, token: AccessToken) -> Self {
        Source { token: Some(token), ..self }
    }

    /// Uses no access token, even if the environment has one.
    pub fn without_token(self) -> Self {
        Source { token: None, ..self }
    }

    /// Sets the folder of the cache.
    pub fn with_cache(self, cache: impl Into<PathBuf>) -> Self {
        Source { cache: cache.into(), ..self }
    }

    /// Allows no network requests: a model that is not fully downloaded is an error.
    pub fn offline(self) -> Self {
        Source { offline: true, ..self }
    }

    /// Sets the transport for the files.
    pub fn with_downloader(self, downloader: Arc<dyn Downloader>) -> Self {
        Source { downloader: Some(downloader), ..self }
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Whether the revision is a commit, which never changes.
    pub fn is_pinned(&self) -> bool {
        is_commit(&self.revision)
    }

    /// The address of the hub, without a slash at its end.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The access token.
    pub fn token(&self) -> Option<&AccessToken> {
        self.token.as_ref()
    }

    /// The folder of the cache, in the layout of `huggingface_hub`.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Whether network requests are forbidden.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// The error of a source that is offline and not fully downloaded.
    pub(super) fn not_cached_offline(&self) -> Error {
        Error::Offline { repository: self.repository.to_string(), revision: self.revision.clone() }
    }

    pub(super) fn downloader(&self) -> Option<&Arc<dyn Downloader>> {
        self.downloader.as_ref()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Source")
            .field("repository", &self.repository)
            .field("revision", &self.revision)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token)
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Source::new(name)
    }
}

/// The default cache: `HF_HUB_CACHE`, else `HF_HOME/hub`, else the default folder of the platform.
pub fn default_cache() -> PathBuf {
    cache(&|variable| env::var(variable).ok().filter(|value| !value.is_empty()))
}

/// The name of a repository on a hub, such as `org/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(String);

impl Repository {
    /// The name, with its slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Repository {
    type Err = Error;

    /// Checks the rules of the hub, which also exclude names that lead out of a folder.
    fn from_str(name: &str) -> Result<Self> {
        let invalid = |reason| Err(Error::InvalidName { name: shown(name), reason });
        let is_part = |part: &str| {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            part.chars().all(|c| is_word(c) || c == '-' || c == '.')
                && part.starts_with(is_word)
                && part.ends_with(is_word)
        };
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() > 2 {
            return invalid("a repository is `name` or `organization/name`");
        }
        if parts.iter().any(|part| part.len() > 96) {
            return invalid("it is longer than 96 characters");
        }
        if !parts.iter().all(|part| is_part(part)) {
            return invalid(
                "it consists of letters, digits, `-`, `_` and `.`, and neither starts nor ends with `-` or `.`",
            );
        }
        if name.contains("--") || name.contains("..") || name.ends_with(".git") {
            return invalid("`--`, `..` and `.git` at the end are not allowed");
        }
        Ok(Repository(name.into()))
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

fn is_true(value: String) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str())
}

fn token(variable: &Variables) -> Result<Option<AccessToken>> {
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(is_true) {
        return Ok(None);
    }
    let given = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
    let secret = match given.filter(|secret| !secret.trim().is_empty()) {
        Some(secret) => secret,
        None => {
            let path = variable("HF_TOKEN_PATH").map(|path| expand(&path, variable));
            let path = path.or_else(|| Some(home(variable)?.join("token")));
            match path.map(|path| (fs::read_to_string(&path), path)) {
                Some((Ok(secret), _)) => secret,
                Some((Err(error), path)) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(&path)(error));
                }
                _ => return Ok(None),
            }
        }
    };
    if secret.trim().is_empty() { Ok(None) } else { AccessToken::new(&secret).map(Some) }
}

/// The folder of Python's cache and token file.
fn home(variable: &Variables) -> Option<PathBuf> {
    if let Some(home) = variable("HF_HOME") {
        return Some(expand(&home, variable));
    }
    let cache = match variable("XDG_CACHE_HOME") {
        Some(cache) => expand(&cache, variable),
        None => user(variable)?.join(".cache"),
    };
    Some(cache.join("huggingface"))
}

fn user(variable: &Variables) -> Option<PathBuf> {
    variable("HOME").map(PathBuf::from).or_else(env::home_dir)
}

fn cache(variable: &Variables) -> PathBuf {
    let given = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
    if let Some(cache) = given {
        return expand(&cache, variable);
    }
    // An iOS app has a folder of its own; on a Mac the cache is shared with Python's tools.
    let in_an_app = cfg!(all(target_vendor = "apple", not(target_os = "macos")));
    let folder = match user(variable) {
        Some(user) if in_an_app && variable("HF_HOME").is_none() => {
            Some(user.join("Library/Application Support/huggingface"))
        }
        _ => home(variable),
    };
    folder.unwrap_or_else(|| env::temp_dir().join("huggingface")).join("hub")
}

/// Expands `~` at the start of a path and `$NAME` or `${NAME}` in it; unset variables stay as they
/// are.
fn expand(path: &str, variable: &Variables) -> PathBuf {
    let path = match (path.strip_prefix('~'), user(variable)) {
        (Some(rest), Some(user)) if rest.is_empty() || rest.starts_with('/') => {
            user.to_string_lossy().into_owned() + rest
        }
        _ => path.to_string(),
    };
    let mut pieces = path.split('$');
    let mut expanded = pieces.next().unwrap_or_default().to_string();
    for piece in pieces {
        let braced = piece.strip_prefix('{').and_then(|piece| piece.split_once('}'));
        let end = piece.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (name, rest) = braced.unwrap_or(piece.split_at(end.unwrap_or(piece.len())));
        match variable(name).filter(|_| !name.is_empty()) {
            Some(value) => expanded += &(value + rest),
            None => expanded += &format!("${piece}"),
        }
    }
    expanded.into()
}

/// Whether a revision is the full hash of a commit.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// Checks a revision, which becomes a path in the cache and a part of an address.
fn checked_revision(revision: &str) -> Result<String> {
    check_path(revision)?;
    if revision.contains([' ', '~', '^', ':', '?', '*', '[']) || revision.starts_with('-') {
        let reason = "git does not allow such a name for a branch or tag";
        return Err(Error::InvalidName { name: shown(revision), reason });
    }
    Ok(revision.into())
}

/// Checks that a relative path stays in its folder.
pub(super) fn check_path(path: &str) -> Result<()> {
    let reason = if path.is_empty() {
        "it is empty"
    } else if path.len() > 240 {
        "it is longer than 240 bytes"
    } else if path.contains('\\') || path.chars().any(char::is_control) {
        "it contains a backslash or control characters"
    } else if path.split('/').any(|part| part.is_empty() || part == "." || part.contains("..")) {
        "it is not a path within a folder"
    } else {
        return Ok(());
    };
    Err(Error::InvalidName { name: shown(path), reason })
}

/// A name as it may appear in a message: shortened, with control characters escaped.
fn shown(name: &str) -> String {
    name.chars().take(120).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, variables: &[(&str, &str)]) -> Result<Source> {
        let mut all = vec![("HOME", "/home/ada")];
        all.extend(variables);
        Source::with_environment(name, &|wanted| {
            all.iter().rev().find(|(name, _)| *name == wanted).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn names_are_parsed_and_checked() {
        let plain = source("org/some_model-4.bit", &[]).unwrap();
        assert_eq!(
            (plain.repository().as_str(), plain.revision()),
            ("org/some_model-4.bit", "main")
        );
        assert!(!plain.is_pinned());
        assert_eq!(source("gpt2@refs/pr/3", &[]).unwrap().revision(), "refs/pr/3");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert!(source(&format!("a/b@{commit}"), &[]).unwrap().is_pinned());
        let long = "n".repeat(97);
        for name in [
            "", "/", "a/", "/a", "a/b/c", "../a", "a/..", "a/.b", "a/b.", "-a/b", "a/b--c",
            "a..b/c", "a/b.git", "a b/c", "a/b\0", "a\\b", "ä/b", "a/b\n", &long,
        ] {
            assert!(matches!(source(name, &[]), Err(Error::InvalidName { .. })), "{name:?}");
        }
        let long = "r".repeat(241);
        for revision in [
            "", "/main", "main/", "a//b", "..", "a/../b", ".", "a/./b", "a..b", "a\\b", "a\0",
            "a b", "a:b", "-x", "a\u{7f}", &long,
        ] {
            let name = format!("org/name@{revision}");
            assert!(matches!(source(&name, &[]), Err(Error::InvalidName { .. })), "{revision:?}");
        }
        let message = source("a/b\u{1b}[2J", &[]).unwrap_err().to_string();
        assert!(!message.contains('\u{1b}'), "{message}");
    }

    #[test]
    fn environment_variables_mean_what_they_mean_in_python() {
        let cache = |variables| source("a/b", variables).unwrap().cache().to_path_buf();
        if cfg!(any(not(target_vendor = "apple"), target_os = "macos")) {
            assert_eq!(cache(&[]), Path::new("/home/ada/.cache/huggingface/hub"));
            assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        }
        assert_eq!(
            cache(&[("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/x")]),
            Path::new("/home/ada/hf/hub")
        );
        assert_eq!(
            cache(&[("HF_HUB_CACHE", "$D/${E}c/$F"), ("D", "/d"), ("E", "e")]),
            Path::new("/d/ec/$F")
        );
        assert_eq!(
            cache(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/h")]),
            Path::new("/old")
        );
        assert_eq!(cache(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/h")]), Path::new("/h/hub"));

        let offline = |variables| source("a/b", variables).unwrap().is_offline();
        assert!(
            !offline(&[]) && !offline(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")])
        );
        assert!(offline(&[("HF_HUB_OFFLINE", "Yes")]) && offline(&[("TRANSFORMERS_OFFLINE", "1")]));

        let endpoint =
            |value| source("a/b", &[("HF_ENDPOINT", value)]).map(|s| s.endpoint().to_string());
        assert_eq!(endpoint("http://h:1/x/").unwrap(), "http://h:1/x");
        assert_eq!(endpoint("").unwrap(), ENDPOINT);
        for wrong in ["h", "ftp://h", "https://", "https://h?x", "/x", "http://me:pass@h"] {
            assert!(
                matches!(endpoint(wrong), Err(Error::Option { option: "endpoint", .. })),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_token_is_found_and_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        let token = |variables: &[(&str, &str)]| {
            source("a/b", variables).unwrap().token().map(AccessToken::authorization)
        };
        let bearer = |secret: &str| Some(format!("Bearer {secret}"));
        assert_eq!(token(&[("HF_HOME", home)]), bearer("hf_file"));
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN", " hf_set ")]), bearer("hf_set"));
        assert_eq!(token(&[("HF_TOKEN_PATH", path.to_str().unwrap())]), bearer("hf_file"));
        assert_eq!(token(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(token(&[("HF_HOME", "/nowhere")]), None);
        assert!(matches!(
            source("a/b", &[("HF_TOKEN", "a\nb")]),
            Err(Error::Option { option: "token", .. })
        ));
        let source = source("a/b", &[("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{source:?} {:?}", source.token()).contains("secret"));
        assert_eq!(source.without_token().token(), None);
    }
}
