//! What is asked of a hub and what it answers; addresses and headers follow `huggingface_hub`
//! (`hf_api.py`, `file_download.py`, `utils/_http.py`).
//!
//! Redirects are followed here, not by the HTTP library, so that the token stays with its host.

use crate::error::{Error, Result};
use crate::hub::{
    AccessToken, Cancel, Repository, Source,
    listing::{Listing, RemoteFile},
    select,
    source::{check_path, is_commit},
};
use serde::Deserialize;
use std::{fmt, io::Read, ops::Range, time::Duration};
use ureq::{
    Agent, Body, BodyReader,
    http::{Response, Uri, header, uri::Authority},
    tls::{RootCerts, TlsConfig, TlsProvider},
};

/// How long a connection may stay silent.
const SILENCE: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(10);
/// Bytes that a connection reads at once.
pub(super) const BUFFER: usize = 512 << 10;
/// The longest list of files that is read, in bytes.
const LONGEST_LIST: u64 = 16 << 20;
/// The largest file that is not weights, in bytes; some are read into memory as a whole.
const LARGEST_SMALL: u64 = 256 << 20;
/// The longest wait that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// One repository of one hub.
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<AccessToken>,
    repository: Repository,
    cancel: Cancel,
}

/// Why an attempt came to nothing.
#[derive(Debug)]
pub(super) struct Trouble {
    pub error: Error,
    /// Whether the next attempt may come to more, and when.
    retry: Option<Duration>,
}

impl Trouble {
    pub(super) fn passing(error: Error) -> Self {
        Trouble { error, retry: Some(Duration::ZERO) }
    }

    pub(super) fn lasting(error: Error) -> Self {
        Trouble { error, retry: None }
    }

    /// How long to wait after so many attempts in a row that came to nothing; or the error.
    pub(super) fn pause(self, failures: u32, most: u32) -> Result<Duration> {
        match self.retry {
            Some(asked) if failures < most && asked <= LONGEST_WAIT => {
                let growing = Duration::from_millis(125) * 2u32.saturating_pow(failures.min(7));
                Ok(asked.max(growing))
            }
            _ => Err(self.error),
        }
    }
}

/// A body that begins to arrive.
pub(super) struct Answer {
    /// Where it comes from, after all redirects.
    pub address: Uri,
    /// The part that it is, and the size of the whole, if it is not the whole.
    pub part: Option<(Range<u64>, Option<u64>)>,
    /// The length of the body, if it says so.
    pub length: Option<u64>,
    /// What names this version of the file.
    pub version: Option<String>,
    pub body: BodyReader<'static>,
}

/// Scheme, host and port.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Origin(String, String, u16);

impl Origin {
    fn of(address: &Uri) -> Option<Self> {
        let scheme = address.scheme_str()?;
        let port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let host = address.host().filter(|host| !host.is_empty())?.to_lowercase();
        let port = address.authority().and_then(Authority::port_u16).unwrap_or(port);
        Some(Origin(scheme.into(), host, port))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.1)?;
        match (self.0.as_str(), self.2) {
            ("http", 80) | ("https", 443) => Ok(()),
            (_, port) => write!(f, ":{port}"),
        }
    }
}

impl Client {
    /// A client whose connections end when `cancel` says so.
    ///
    /// # Errors
    /// [`Error::Option`] when the endpoint is no address.
    pub(crate) fn new(source: &Source, cancel: &Cancel) -> Result<Self> {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::NativeTls)
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("mynah/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .max_idle_connections_per_host(8)
            .input_buffer_size(BUFFER)
            .build();
        let agent = Agent::new_with_config(config);
        let held = agent.clone();
        cancel.on_cancel(move || held.shutdown());
        let origin = source.endpoint().parse().ok().and_then(|address| Origin::of(&address));
        Ok(Client {
            agent,
            origin: origin.ok_or_else(|| Error::option("endpoint", "is no address"))?,
            endpoint: source.endpoint().into(),
            token: source.token().cloned(),
            repository: source.repository().clone(),
            cancel: cancel.clone(),
        })
    }

    /// What a branch, tag or commit holds; `attempts` are made while the trouble may pass.
    ///
    /// # Errors
    /// [`Error::RepositoryNotFound`], [`Error::RevisionNotFound`], [`Error::Gated`],
    /// [`Error::Unauthorized`], [`Error::RateLimited`], [`Error::Network`], [`Error::Server`],
    /// [`Error::Cancelled`].
    pub(crate) fn listing(&self, revision: &str, attempts: u32) -> Result<Listing> {
        let revision_in_address = encoded(revision, "");
        let address = format!(
            "{}/api/models/{}/revision/{revision_in_address}?blobs=true",
            self.endpoint, self.repository
        );
        let bytes = self.patiently(attempts, || {
            let about = About { revision, file: None };
            let answer = self.send(&address, None, about)?;
            let from = answer.address.clone();
            let mut bytes = Vec::new();
            let read = answer.body.take(LONGEST_LIST + 1).read_to_end(&mut bytes);
            read.map_err(|error| self.broken(&from, &error))?;
            Ok(bytes)
        })?;
        if bytes.len() as u64 > LONGEST_LIST {
            return Err(self.wrong("its list of files has no end"));
        }
        self.read_listing(&bytes)
    }

    fn read_listing(&self, bytes: &[u8]) -> Result<Listing> {
        #[derive(Deserialize)]
        struct Revision {
            sha: String,
            #[serde(default)]
            gated: serde_json::Value,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
            #[serde(rename = "blobId")]
            blob_id: Option<String>,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            sha256: String,
            size: u64,
        }
        let revision: Revision = serde_json::from_slice(bytes).map_err(|error| {
            let looks_like_a_page = bytes.trim_ascii_start().starts_with(b"<");
            self.wrong(&if looks_like_a_page {
                "answers with a web page instead of a list of files; is there a login in between?"
                    .into()
            } else {
                format!("its list of files cannot be read: {error}")
            })
        })?;
        if !is_commit(&revision.sha) {
            return Err(self.wrong("names a commit that is none"));
        }
        let mut files = Vec::new();
        for sibling in revision.siblings.into_iter().filter(|s| select::may_need(&s.rfilename)) {
            let name = sibling.rfilename;
            check_path(&name)?;
            let announced = match sibling.lfs {
                Some(lfs) => Some((lfs.size, lfs.sha256)).filter(|(_, hash)| hash.len() == 64),
                None => sibling.size.zip(sibling.blob_id).filter(|(_, hash)| hash.len() == 40),
            };
            let is_hex = |hash: &str| hash.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
            let Some((size, hash)) = announced.filter(|(_, hash)| is_hex(hash)) else {
                return Err(self.wrong(&format!("does not say size and hash of {name}")));
            };
            if select::is_small(&name) && size > LARGEST_SMALL {
                return Err(self.wrong(&format!("says that {name} has {size} bytes")));
            }
            files.push(RemoteFile { name, size, hash });
        }
        let gated = revision.gated.as_str().is_some() || revision.gated == true;
        Ok(Listing { commit: revision.sha, gated, files })
    }

    /// The address of a file at a commit.
    pub(crate) fn address(&self, commit: &str, name: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, self.repository, encoded(name, "/"))
    }

    /// Bytes of a file at a commit, all in memory.
    ///
    /// # Errors
    /// Those of [`Client::listing`].
    pub(crate) fn bytes(
        &self,
        commit: &str,
        file: &RemoteFile,
        range: Range<u64>,
    ) -> Result<Vec<u8>> {
        let address = self.address(commit, &file.name);
        let wanted = range.end.saturating_sub(range.start);
        self.patiently(super::ATTEMPTS, || {
            let part = (range != (0..file.size)).then(|| range.clone());
            let answer = self.open(&address, part, &file.name)?;
            let from = answer.address.clone();
            // A server without ranges sends the file from its start.
            let skipped = answer.part.map_or(range.start, |(part, _)| range.start - part.start);
            let mut body = answer.body.take(skipped + wanted);
            let mut bytes = Vec::new();
            let read = std::io::copy(&mut (&mut body).take(skipped), &mut std::io::sink())
                .and_then(|_| body.read_to_end(&mut bytes));
            read.map_err(|error| self.broken(&from, &error))?;
            if bytes.len() as u64 == wanted {
                Ok(bytes)
            } else {
                Err(self.broken(&from, &"the connection ended early"))
            }
        })
    }

    /// Begins to fetch a file or a part of it.
    pub(super) fn open(
        &self,
        address: &str,
        range: Option<Range<u64>>,
        file: &str,
    ) -> Result<Answer, Trouble> {
        let begin = range.as_ref().map_or(0, |range| range.start);
        let about = About { revision: "", file: Some(file) };
        let answer = self.send(address, range, about)?;
        match &answer.part {
            Some((part, _)) if part.start != begin => {
                let reason =
                    format!("sends {file} from byte {} instead of byte {begin}", part.start);
                Err(Trouble::lasting(self.server(&answer.address, reason)))
            }
            _ => Ok(answer),
        }
    }

    /// One request, through all of its redirects.
    fn send(
        &self,
        address: &str,
        range: Option<Range<u64>>,
        about: About,
    ) -> Result<Answer, Trouble> {
        self.cancel.check().map_err(Trouble::lasting)?;
        let no_address = || Trouble::lasting(self.wrong("its address is none"));
        let mut address: Uri = address.parse().map_err(|_| no_address())?;
        let mut at_home = true;
        for _ in 0..10 {
            let origin = Origin::of(&address).ok_or_else(no_address)?;
            at_home &= origin == self.origin;
            let mut request = self.agent.get(&address).header(header::ACCEPT_ENCODING, "identity");
            if let Some(Range { start, end }) = &range {
                request = request.header(header::RANGE, format!("bytes={start}-{}", end - 1));
            }
            if let Some(token) = self.token.as_ref().filter(|_| at_home) {
                request = request.header(header::AUTHORIZATION, token.authorization());
            }
            let response = request.call().map_err(|error| self.broken(&address, &error))?;
            match response.status().as_u16() {
                200 | 206 => return self.answer(address, response),
                301 | 302 | 303 | 307 | 308 => {
                    let location = text(&response, "location");
                    let next = location.as_deref().and_then(|to| joined(&address, to));
                    let is_safe =
                        |next: &Uri| address.scheme_str() == Some("http") || is_https(next);
                    let Some(next) = next.filter(is_safe) else {
                        let reason = "redirects to what is no safe address";
                        return Err(Trouble::lasting(self.server(&address, reason.into())));
                    };
                    drain(response);
                    address = next;
                }
                _ => return Err(self.refusal(&address, response, at_home, about)),
            }
        }
        Err(Trouble::lasting(self.server(&address, "redirects without end".into())))
    }

    fn answer(&self, address: Uri, response: Response<Body>) -> Result<Answer, Trouble> {
        let part = match response.status().as_u16() {
            206 => {
                let range = text(&response, "content-range");
                let Some(range) = range.as_deref().and_then(content_range) else {
                    let reason = "sends a part of a file without saying which".into();
                    return Err(Trouble::lasting(self.server(&address, reason)));
                };
                Some(range)
            }
            _ => None,
        };
        let length = text(&response, "content-length").and_then(|length| length.parse().ok());
        let version = text(&response, "etag");
        let version = version.map(|etag| etag.trim_start_matches("W/").to_string());
        Ok(Answer { address, part, length, version, body: response.into_body().into_reader() })
    }

    fn refusal(
        &self,
        address: &Uri,
        response: Response<Body>,
        at_home: bool,
        about: About,
    ) -> Trouble {
        let status = response.status().as_u16();
        let code = text(&response, "x-error-code").unwrap_or_default();
        let seconds = text(&response, "retry-after").and_then(|seconds| seconds.parse().ok());
        let after = seconds.map(Duration::from_secs);
        drain(response);
        let (repository, host) = (self.repository.to_string(), self.origin.to_string());
        let says = |what: &str| match about.file {
            Some(file) => self.server(address, format!("{what} for {file}")),
            None => self.server(address, what.into()),
        };
        match (status, code.as_str()) {
            (429, _) => Trouble {
                error: Error::RateLimited { host: shown(address), after },
                retry: Some(after.unwrap_or_default()),
            },
            (408 | 500.., _) => Trouble {
                error: says(&format!("answers with status {status}")),
                retry: Some(after.unwrap_or_default()),
            },
            (416, _) => {
                Trouble::lasting(Error::Changed { file: about.file.unwrap_or_default().into() })
            }
            // The links that a hub redirects to expire; it gives new ones.
            (401 | 403 | 404 | 410, _) if !at_home => {
                Trouble::passing(says(&format!("answers with status {status}")))
            }
            (_, "GatedRepo") => {
                let address = format!("{}/{repository}", self.endpoint);
                Trouble::lasting(Error::Gated { repository, address })
            }
            (_, "RevisionNotFound") => {
                let revision = about.revision.into();
                Trouble::lasting(Error::RevisionNotFound { repository, revision })
            }
            (_, "RepoNotFound") => Trouble::lasting(Error::RepositoryNotFound { repository, host }),
            (401 | 403, _) => Trouble::lasting(Error::Unauthorized { repository, host }),
            (404, _) if about.file.is_none() => {
                Trouble::lasting(Error::RepositoryNotFound { repository, host })
            }
            _ => Trouble::lasting(says(&format!("answers with status {status}"))),
        }
    }

    /// Tries again, with growing pauses, while the trouble may pass.
    fn patiently<T>(
        &self,
        attempts: u32,
        mut attempt: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<T> {
        for failures in 1.. {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(trouble) => {
                    self.cancel.check()?;
                    self.cancel.pause(trouble.pause(failures, attempts)?)?;
                }
            }
        }
        Err(Error::Internal("as many attempts as there are numbers".into()))
    }

    /// A connection that could not be made or did not last.
    pub(super) fn broken(&self, address: &Uri, why: &dyn fmt::Display) -> Trouble {
        Trouble::passing(match self.cancel.check() {
            Ok(()) => Error::Network { host: shown(address), reason: reason(&why.to_string()) },
            Err(cancelled) => cancelled,
        })
    }

    pub(super) fn server(&self, address: &Uri, reason: String) -> Error {
        Error::Server { host: shown(address), reason }
    }

    fn wrong(&self, reason: &str) -> Error {
        Error::Server { host: self.origin.to_string(), reason: reason.into() }
    }
}

/// What failed, in the words of people instead of the system's resolver and sockets.
fn reason(technical: &str) -> String {
    const WORDS: [(&str, &str); 7] = [
        ("lookup address", "DNS"),
        ("host not found", "DNS"),
        ("Name or service not known", "DNS"),
        ("onnection refused", "connection refused"),
        ("onnection reset", "connection reset"),
        ("timeout", "timeout"),
        ("timed out", "timeout"),
    ];
    let words = WORDS.iter().find(|(sign, _)| technical.contains(sign));
    let rest = technical.strip_prefix("io: ").unwrap_or(technical);
    words.map_or(rest, |(_, words)| words).into()
}

/// What a request is about, for errors.
#[derive(Clone, Copy)]
struct About<'a> {
    revision: &'a str,
    file: Option<&'a str>,
}

/// The host of an address; the rest of it may be a secret.
fn shown(address: &Uri) -> String {
    Origin::of(address).map_or_else(|| "an unknown host".into(), |origin| origin.to_string())
}

fn is_https(address: &Uri) -> bool {
    address.scheme_str() == Some("https")
}

fn text(response: &Response<Body>, header: &str) -> Option<String> {
    Some(response.headers().get(header)?.to_str().ok()?.trim().to_string())
}

/// Reads a short body to its end, so that its connection can be used again.
fn drain(response: Response<Body>) {
    let body = response.into_body().into_reader();
    std::io::copy(&mut body.take(16 << 10), &mut std::io::sink()).ok();
}

/// `bytes 0-99/1234` or `bytes 0-99/*`.
fn content_range(header: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, size) = header.strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    let end = last.checked_add(1)?;
    (first < end && size.is_none_or(|size| end <= size)).then_some((first..end, size))
}

/// Where a `Location` leads from here.
fn joined(from: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let absolute = if location.contains("://") {
        location.to_string()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let absolute = absolute.split('#').next().unwrap_or_default();
    let address: Uri = absolute.parse().ok()?;
    Origin::of(&address).map(|_| address)
}

/// A name as a part of an address, where only unreserved characters and `kept` stay.
fn encoded(name: &str, kept: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-_.~".contains(c) || kept.contains(c) {
            out.push(c);
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_connection_is_explained_in_words() {
        for (technical, expected) in [
            ("io: failed to lookup address information: Name or service not known", "DNS"),
            ("host not found", "DNS"),
            ("io: Connection refused (os error 111)", "connection refused"),
            ("timeout: connect", "timeout"),
            ("io: something else", "something else"),
            ("the connection ended early", "the connection ended early"),
        ] {
            assert_eq!(reason(technical), expected);
        }
        let error =
            Error::Network { host: "huggingface.co".into(), reason: reason("host not found") };
        assert_eq!(
            error.to_string(),
            "cannot reach huggingface.co (DNS); check the connection or use offline mode"
        );
    }

    #[test]
    fn redirects_lead_where_browsers_go() {
        let from: Uri = "https://hub.org:8443/a/b/c?x=1".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.org/f?sig=%2F", "https://cdn.org/f?sig=%2F"),
            ("//cdn.org/f", "https://cdn.org/f"),
            ("/d?y", "https://hub.org:8443/d?y"),
            ("d#part", "https://hub.org:8443/a/b/d"),
        ] {
            assert_eq!(joined(&from, location).unwrap().to_string(), expected);
        }
        for location in ["file:///etc/passwd", "ftp://x/", "https://", "http://a b/"] {
            assert_eq!(joined(&from, location), None, "{location}");
        }
    }

    #[test]
    fn hosts_differ_by_scheme_and_port_too() {
        let origin = |address: &str| Origin::of(&address.parse().unwrap()).unwrap();
        assert_eq!(origin("https://Hub.org/a"), origin("https://hub.org:443/b?c"));
        assert_ne!(origin("https://hub.org"), origin("http://hub.org:443"));
        assert_ne!(origin("http://hub.org"), origin("http://hub.org:8080"));
        assert_ne!(origin("http://hub.org"), origin("http://cdn.hub.org"));
        assert_eq!(origin("http://me:secret@hub.org:81/a").to_string(), "hub.org:81");
    }

    #[test]
    fn ranges_of_answers_are_checked() {
        assert_eq!(content_range("bytes 0-9/10"), Some((0..10, Some(10))));
        assert_eq!(content_range("bytes 5-5/*"), Some((5..6, None)));
        for wrong in ["", "bytes */10", "bytes 5-4/10", "bytes 0-10/10", "0-9/10", "bytes 0-x/9"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
        assert_eq!(content_range(&format!("bytes 0-{}/*", u64::MAX)), None);
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(encoded("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(encoded("a b/ü#?.json", "/"), "a%20b/%C3%BC%23%3F.json");
    }

    #[test]
    fn a_list_of_files_is_believed_only_where_it_makes_sense() {
        let source = Source::new("org/name").unwrap();
        let client = Client::new(&source, &Cancel::default()).unwrap();
        let (sha, git, lfs) = ("c".repeat(40), "a".repeat(40), "b".repeat(64));
        let list = |files: &str| {
            client.read_listing(
                format!(r#"{{"sha": "{sha}", "gated": "auto", "siblings": [{files}]}}"#).as_bytes(),
            )
        };
        let config = format!(r#"{{"rfilename": "config.json", "size": 7, "blobId": "{git}"}}"#);
        let weights = format!(
            r#"{{"rfilename": "model.safetensors", "size": 9, "blobId": "{git}",
                "lfs": {{"sha256": "{lfs}", "size": 9, "pointerSize": 130}}}}"#
        );
        let listing =
            list(&format!(r#"{config}, {weights}, {{"rfilename": "README.md"}}"#)).unwrap();
        let names: Vec<_> = listing.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["config.json", "model.safetensors"]);
        assert_eq!((listing.commit.as_str(), listing.gated), (sha.as_str(), true));
        assert_eq!(listing.files[1].hash, lfs);

        for wrong in [
            config.replace(&git, "../../../../etc"),
            config.replace("\"size\": 7", "\"size\": null"),
            config.replace("\"size\": 7", "\"size\": 1000000000000"),
            weights.replace(&lfs, &git),
            config.replace("config.json", "../x/model.safetensors"),
            config.replace("config.json", "/etc/model.safetensors"),
        ] {
            assert!(list(&wrong).is_err(), "{wrong}");
        }
        let page = client.read_listing(b" <html>Log in</html>").err().unwrap().to_string();
        assert!(page.contains("web page"), "{page}");
    }
}
