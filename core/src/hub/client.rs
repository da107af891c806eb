//! The requests to a hub and their responses. Addresses and headers follow `huggingface_hub`
//! (`hf_api.py`, `file_download.py`, `utils/_http.py`).
//!
//! This file follows redirects itself, and not the HTTP library, so that the token is sent to the
//! hub's own host only.

use crate::error::{Error, Result};
use crate::hub::{
    AccessToken, Cancel, Repository, Source,
    address::{Origin, host, is_https, percent_encode, resolve_location},
    at_once::for_each_at_once,
    http::{self, HttpBody, HttpClient},
    listing::{Announced, ListedFile, Listing, RemoteFile, hash},
    pauses,
    response::{
        FailedAttempt, MAX_WAIT, Response, Subject, Want, announcement, drain, header_text, reason,
        retry_after, success,
    },
    select,
    source::{check_path, is_commit},
};
use jiff::Timestamp;
use serde::Deserialize;
use std::{
    fmt,
    io::Read,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};
use ureq::http::{Response as HttpResponse, Uri};

/// The longest list of files that is accepted, in bytes.
const MAX_LISTING: u64 = 16 << 20;
/// The largest accepted size of a file that is not weights, in bytes; some are read into memory.
const MAX_SMALL_FILE: u64 = 256 << 20;

/// The HTTP client for one repository of one hub.
pub(crate) struct Client {
    http: Arc<dyn HttpClient>,
    endpoint: String,
    origin: Origin,
    token: Option<AccessToken>,
    repository: Repository,
    cancel: Cancel,
}

impl Client {
    /// A client whose connections close when `cancel` is cancelled.
    ///
    /// # Errors
    /// [`Error::Option`] when the endpoint is not an HTTP or HTTPS address.
    pub(crate) fn new(source: &Source, cancel: &Cancel) -> Result<Self> {
        let origin = source.endpoint().parse().ok().and_then(|address| Origin::of(&address));
        Ok(Client {
            http: http::client(cancel),
            origin: origin.ok_or_else(|| {
                Error::option("endpoint", "must be an http:// or https:// address")
            })?,
            endpoint: source.endpoint().into(),
            token: source.token().cloned(),
            repository: source.repository().clone(),
            cancel: cancel.clone(),
        })
    }

    /// The files of a branch, tag or commit. Temporary errors are retried up to `attempts` times.
    ///
    /// # Errors
    /// [`Error::RepositoryNotFound`], [`Error::RevisionNotFound`], [`Error::Gated`],
    /// [`Error::Unauthorized`], [`Error::RateLimited`], [`Error::Network`], [`Error::Server`],
    /// [`Error::Cancelled`].
    pub(crate) fn listing(&self, revision: &str, attempts: u32) -> Result<Listing> {
        let encoded_revision = percent_encode(revision, "");
        let address = format!(
            "{}/api/models/{}/revision/{encoded_revision}?blobs=true",
            self.endpoint, self.repository
        );
        let host = self.origin.to_string();
        let pause = pauses::remaining(&host);
        if attempts == 1 && !pause.is_zero() {
            // The caller has something else and does not wait.
            return Err(Error::RateLimited { host, after: Some(pause) });
        }
        let bytes = self.with_retries(attempts, || {
            let subject = Subject { revision, file: None };
            let response = self.send(&address, &Want::Body(None), subject)?;
            let from = response.address.clone();
            let mut bytes = Vec::new();
            let read = response.body.take(MAX_LISTING + 1).read_to_end(&mut bytes);
            read.map_err(|error| self.connection_failed(&from, &error))?;
            Ok(bytes)
        })?;
        if bytes.len() as u64 > MAX_LISTING {
            return Err(self.hub_error("its list of files is too long"));
        }
        let (mut listing, files) = self.read_listing(&bytes)?;
        let found = Mutex::new(&mut listing.files);
        for_each_at_once(&files, |file| {
            let file = self.announced(&listing.commit, file)?;
            found.lock().unwrap_or_else(PoisonError::into_inner).push(file);
            Ok(())
        })?;
        listing.files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    /// A file of a commit, after asking for what the list has not said of it.
    fn announced(&self, commit: &str, file: &ListedFile) -> Result<RemoteFile> {
        let name = &file.name;
        let mut announced = file.announced.clone();
        if !announced.is_complete() {
            let address = self.address(commit, name);
            let subject = Subject { revision: "", file: Some(name) };
            let ask = || self.send(&address, &Want::Announcement, subject);
            announced = announced.or(self.with_retries(super::ATTEMPTS, ask)?.announced);
        }
        let Announced { size: Some(size), hash: Some(hash) } = announced else {
            return Err(self.hub_error(&format!(
                "it announced no size or no hash for {name}, without which a download cannot be verified"
            )));
        };
        if select::is_small(name) && size > MAX_SMALL_FILE {
            return Err(self
                .hub_error(&format!("it announced {size} bytes for {name}, which is too large")));
        }
        Ok(RemoteFile { name: name.clone(), size, hash })
    }

    /// The listing without the files that a model may need, and these as the hub lists them.
    fn read_listing(&self, bytes: &[u8]) -> Result<(Listing, Vec<ListedFile>)> {
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
            sha256: Option<String>,
            size: Option<u64>,
        }
        let revision: Revision = serde_json::from_slice(bytes).map_err(|error| {
            let is_html = bytes.trim_ascii_start().starts_with(b"<");
            self.hub_error(&if is_html {
                "answered with a web page instead of a list of files; check whether the network requires a login"
                    .into()
            } else {
                format!("its list of files is not valid: {error}")
            })
        })?;
        if !is_commit(&revision.sha) {
            return Err(self.hub_error("its list of files has no valid commit hash"));
        }
        let (mut files, mut others) = (Vec::new(), Vec::new());
        for sibling in revision.siblings {
            let name = sibling.rfilename;
            let is_usual = select::may_need(&name);
            let is_named = check_path(&name);
            let announced = match sibling.lfs {
                Some(Lfs { sha256, size }) => {
                    let sha256 = sha256.filter(|hash| hash.len() == 64);
                    Announced { size, hash: sha256.and_then(|text| hash(&text)) }
                }
                None => {
                    let git = sibling.blob_id.filter(|id| id.len() == 40);
                    Announced { size: sibling.size, hash: git.and_then(|id| hash(&id)) }
                }
            };
            if is_usual {
                is_named?;
                files.push(ListedFile { name, announced });
            } else if let (Ok(()), Announced { size: Some(size), hash: Some(hash) }) =
                (is_named, announced)
            {
                others.push(RemoteFile { name, size, hash });
            }
        }
        let gated = revision.gated.as_str().is_some() || revision.gated == true;
        let listing = Listing { commit: revision.sha, gated, files: Vec::new(), others };
        Ok((listing, files))
    }

    /// The address of a file at a commit.
    pub(crate) fn address(&self, commit: &str, name: &str) -> String {
        format!(
            "{}/{}/resolve/{commit}/{}",
            self.endpoint,
            self.repository,
            percent_encode(name, "/")
        )
    }

    /// Reads a range of a file at a commit into memory.
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
        self.with_retries(super::ATTEMPTS, || {
            let part = (range != (0..file.size)).then(|| range.clone());
            let response = self.open(&address, part, &file.name)?;
            let from = response.address.clone();
            // A server that does not support ranges sends the file from its start.
            let skipped = response.part.map_or(range.start, |part| range.start - part.range.start);
            let mut body = response.body.take(skipped + wanted);
            let mut bytes = Vec::new();
            let read = std::io::copy(&mut (&mut body).take(skipped), &mut std::io::sink())
                .and_then(|_| body.read_to_end(&mut bytes));
            read.map_err(|error| self.connection_failed(&from, &error))?;
            if bytes.len() as u64 == wanted {
                Ok(bytes)
            } else {
                Err(self.connection_failed(&from, &"the connection ended early"))
            }
        })
    }

    /// Requests a file or a range of it.
    pub(super) fn open(
        &self,
        address: &str,
        range: Option<Range<u64>>,
        file: &str,
    ) -> Result<Response, FailedAttempt> {
        let start = range.as_ref().map_or(0, |range| range.start);
        let subject = Subject { revision: "", file: Some(file) };
        let response = self.send(address, &Want::Body(range), subject)?;
        match &response.part {
            Some(part) if part.range.start != start => {
                let found = part.range.start;
                let reason = format!("sent {file} from byte {found} instead of byte {start}");
                Err(FailedAttempt::permanent(self.server_error(&response.address, reason)))
            }
            _ => Ok(response),
        }
    }

    /// Sends one request and follows its redirects.
    fn send(
        &self,
        address: &str,
        want: &Want,
        subject: Subject,
    ) -> Result<Response, FailedAttempt> {
        self.cancel.check().map_err(FailedAttempt::permanent)?;
        let invalid = || FailedAttempt::permanent(self.hub_error("its address is not valid"));
        let mut address: Uri = address.parse().map_err(|_| invalid())?;
        let (mut is_hub, mut announced) = (true, Announced::default());
        for _ in 0..10 {
            let origin = Origin::of(&address).ok_or_else(invalid)?;
            is_hub &= origin == self.origin;
            let pause = pauses::remaining(&origin.to_string());
            self.cancel.sleep(pause).map_err(FailedAttempt::permanent)?;
            let mut headers = vec![("accept-encoding", "identity".to_string())];
            if let Want::Body(Some(Range { start, end })) = want {
                headers.push(("range", format!("bytes={start}-{}", end - 1)));
            }
            if let Some(token) = self.token.as_ref().filter(|_| is_hub) {
                headers.push(("authorization", token.authorization()));
            }
            let response = http::get(&*self.http, &address, &headers, &self.cancel)
                .map_err(|error| self.connection_failed(&address, &error))?;
            let status = response.status().as_u16();
            if is_hub {
                announced = announced.or(announcement(&response));
            }
            let is_enough = matches!(want, Want::Announcement) && announced.is_complete();
            match status {
                300..400 if is_enough => return Ok(success(address, response, want, announced)),
                200 | 206 => return Ok(success(address, response, want, announced)),
                301 | 302 | 303 | 307 | 308 => {
                    let location = header_text(&response, "location");
                    let next = location.as_deref().and_then(|to| resolve_location(&address, to));
                    let is_safe =
                        |next: &Uri| address.scheme_str() == Some("http") || is_https(next);
                    let Some(next) = next.filter(is_safe) else {
                        let reason = "redirected to an address that is not https";
                        return Err(FailedAttempt::permanent(
                            self.server_error(&address, reason.into()),
                        ));
                    };
                    drain(response);
                    address = next;
                }
                _ => return Err(self.status_error(&address, response, is_hub, subject)),
            }
        }
        Err(FailedAttempt::permanent(self.server_error(&address, "redirected too often".into())))
    }

    /// The error of a response that is neither a success nor a redirect.
    fn status_error(
        &self,
        address: &Uri,
        response: HttpResponse<HttpBody>,
        is_hub: bool,
        subject: Subject,
    ) -> FailedAttempt {
        let status = response.status().as_u16();
        let code = header_text(&response, "x-error-code").unwrap_or_default();
        let after = header_text(&response, "retry-after");
        let after = after.and_then(|after| retry_after(&after, Timestamp::now()));
        if let Some(after) = after.filter(|after| *after <= MAX_WAIT) {
            pauses::begin(host(address), after);
        }
        drain(response);
        let (repository, hub) = (self.repository.to_string(), self.origin.to_string());
        let unexpected = || {
            let file = subject.file.map(|file| format!(" for {file}")).unwrap_or_default();
            self.server_error(address, format!("answered with status {status}{file}"))
        };
        match (status, code.as_str()) {
            (429, _) => FailedAttempt {
                error: Error::RateLimited { host: host(address), after },
                retry: Some(after.unwrap_or_default()),
            },
            (408 | 500.., _) => {
                FailedAttempt { error: unexpected(), retry: Some(after.unwrap_or_default()) }
            }
            (416, _) => FailedAttempt::permanent(Error::Changed {
                file: subject.file.unwrap_or_default().into(),
            }),
            // The links that a hub redirects to expire; a retry asks the hub for a new one.
            (401 | 403 | 404 | 410, _) if !is_hub => FailedAttempt::temporary(unexpected()),
            (_, "GatedRepo") => {
                let address = format!("{}/{repository}", self.endpoint);
                FailedAttempt::permanent(Error::Gated { repository, address })
            }
            (_, "RevisionNotFound") => {
                let revision = subject.revision.into();
                FailedAttempt::permanent(Error::RevisionNotFound { repository, revision })
            }
            (_, "RepoNotFound") => {
                FailedAttempt::permanent(Error::RepositoryNotFound { repository, host: hub })
            }
            (401 | 403, _) => {
                FailedAttempt::permanent(Error::Unauthorized { repository, host: hub })
            }
            (404, _) if subject.file.is_none() => {
                FailedAttempt::permanent(Error::RepositoryNotFound { repository, host: hub })
            }
            _ => FailedAttempt::permanent(unexpected()),
        }
    }

    /// Repeats `attempt` with back-off while its error may be temporary.
    fn with_retries<T>(
        &self,
        attempts: u32,
        mut attempt: impl FnMut() -> Result<T, FailedAttempt>,
    ) -> Result<T> {
        for failures in 1.. {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(failure) => {
                    self.cancel.check()?;
                    self.cancel.sleep(failure.back_off(failures, attempts)?)?;
                }
            }
        }
        Err(Error::Internal("the number of attempts overflowed".into()))
    }

    /// The failure of a connection that could not be opened or that broke.
    pub(super) fn connection_failed(&self, address: &Uri, why: &dyn fmt::Display) -> FailedAttempt {
        FailedAttempt::temporary(match self.cancel.check() {
            Ok(()) => Error::Network { host: host(address), reason: reason(&why.to_string()) },
            Err(cancelled) => cancelled,
        })
    }

    pub(super) fn server_error(&self, address: &Uri, reason: String) -> Error {
        Error::Server { host: host(address), reason }
    }

    fn hub_error(&self, reason: &str) -> Error {
        Error::Server { host: self.origin.to_string(), reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_list_of_files_is_refused() {
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
        let (listing, files) =
            list(&format!(r#"{config}, {weights}, {{"rfilename": "README.md"}}"#)).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["config.json", "model.safetensors"]);
        assert_eq!((listing.commit.as_str(), listing.gated), (sha.as_str(), true));
        assert_eq!(files[1].announced, Announced { size: Some(9), hash: Some(lfs.clone()) });
        let huge = list(&config.replace("\"size\": 7", "\"size\": 1000000000000")).unwrap();
        assert!(client.announced(&sha, &huge.1[0]).is_err());
        // What is missing or wrong is asked for.
        for odd in [
            config.replace(&git, "../../../../etc"),
            config.replace("\"size\": 7", "\"size\": null"),
            weights.replace(&lfs, "abc"),
            r#"{"rfilename": "config.json"}"#.into(),
        ] {
            assert!(!list(&odd).unwrap().1[0].announced.is_complete(), "{odd}");
        }

        for wrong in [
            config.replace("config.json", "../x/model.safetensors"),
            config.replace("config.json", "/etc/model.safetensors"),
        ] {
            assert!(list(&wrong).is_err(), "{wrong}");
        }
        let page = client.read_listing(b" <html>Log in</html>").err().unwrap().to_string();
        assert!(page.contains("web page"), "{page}");
    }
}
