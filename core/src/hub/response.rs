//! The responses of a hub, and what failed attempts mean.

use crate::error::{Error, Result};
use crate::hub::{
    http::HttpBody,
    listing::{Announced, hash},
};
use jiff::Timestamp;
use std::{io::Read, ops::Range, time::Duration};
use ureq::http::{Response as HttpResponse, Uri};

/// The longest `Retry-After` that is obeyed; a longer one ends the download.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(60);

/// Why an attempt of a request failed, and whether to retry it.
#[derive(Debug)]
pub(super) struct FailedAttempt {
    pub error: Error,
    /// The shortest wait before a retry; `None` if a retry cannot succeed.
    pub retry: Option<Duration>,
}

impl FailedAttempt {
    /// An error that a retry may not meet again.
    pub(super) fn temporary(error: Error) -> Self {
        FailedAttempt { error, retry: Some(Duration::ZERO) }
    }

    /// An error that every retry would meet.
    pub(super) fn permanent(error: Error) -> Self {
        FailedAttempt { error, retry: None }
    }

    /// How long to wait before the next attempt, after `failures` failed ones in a row: the server's
    /// `Retry-After` or an exponential back-off, whichever is longer. Returns the error when a retry
    /// cannot succeed or `max_failures` is reached.
    pub(super) fn back_off(self, failures: u32, max_failures: u32) -> Result<Duration> {
        match self.retry {
            Some(asked) if failures < max_failures && asked <= MAX_WAIT => {
                let back_off = Duration::from_millis(125) * 2u32.saturating_pow(failures.min(7));
                let wait = asked.max(back_off);
                tracing::debug!(error = %self.error, ?wait, "a request failed; it is repeated");
                Ok(wait)
            }
            _ => Err(self.error),
        }
    }
}

/// A successful response whose body is still to be read.
pub(super) struct Response {
    /// The address after all redirects.
    pub address: Uri,
    /// The range of a partial response (status 206).
    pub part: Option<ContentRange>,
    /// The `Content-Length` of the body.
    pub length: Option<u64>,
    /// The `ETag`, which identifies the version of the file.
    pub version: Option<String>,
    /// What the headers say of the file.
    pub announced: Announced,
    pub body: HttpBody,
}

/// A parsed `Content-Range` header.
#[derive(Debug, PartialEq)]
pub(super) struct ContentRange {
    /// The bytes of the response.
    pub range: Range<u64>,
    /// The size of the whole file.
    pub size: Option<u64>,
}

/// What a request asks for, named in errors.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub revision: &'a str,
    pub file: Option<&'a str>,
}

/// What a request is sent for.
pub(super) enum Want {
    /// A file or a range of it.
    Body(Option<Range<u64>>),
    /// The headers that announce a file.
    Announcement,
}

pub(super) fn success(
    address: Uri,
    response: HttpResponse<HttpBody>,
    want: &Want,
    announced: Announced,
) -> Response {
    let length = header_text(&response, "content-length").and_then(|length| length.parse().ok());
    let part = (response.status() == 206).then(|| {
        let stated = header_text(&response, "content-range");
        // Some servers send the range that was asked for without saying so. The hash decides.
        let asked = match want {
            Want::Body(Some(range)) => Some(range.clone()),
            _ => None,
        };
        let asked =
            asked.filter(|range| length.is_none_or(|length| length == range.end - range.start));
        stated
            .and_then(|range| content_range(&range))
            .or(asked.map(|range| ContentRange { range, size: None }))
    });
    let version = header_text(&response, "etag");
    let version = version.map(|etag| etag.trim_start_matches("W/").to_string());
    let (part, body) = (part.flatten(), response.into_body());
    let announced = announced.or(Announced { size: length.filter(|_| part.is_none()), hash: None });
    Response { address, part, length, version, announced, body }
}

/// What the hub's headers say of a file, which may be on another host.
pub(super) fn announcement(response: &HttpResponse<HttpBody>) -> Announced {
    let tag = |header| {
        let text = header_text(response, header)?;
        hash(text.trim_start_matches("W/").trim_matches('"'))
    };
    let size = header_text(response, "x-linked-size").and_then(|size| size.parse().ok());
    let hash = tag("x-linked-etag").or_else(|| tag("x-checksum-sha256")).or_else(|| tag("etag"));
    Announced { size, hash }
}

pub(super) fn header_text(response: &HttpResponse<HttpBody>, header: &str) -> Option<String> {
    Some(response.headers().get(header)?.to_str().ok()?.trim().to_string())
}

/// Reads a short body to its end, so that its connection can be reused.
pub(super) fn drain(response: HttpResponse<HttpBody>) {
    let body = response.into_body();
    std::io::copy(&mut body.take(16 << 10), &mut std::io::sink()).ok();
}

/// Parses `bytes 0-99/1234` or `bytes 0-99/*`.
pub(super) fn content_range(header: &str) -> Option<ContentRange> {
    let (range, size) = header.strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    let end = last.checked_add(1)?;
    (first < end && size.is_none_or(|size| end <= size))
        .then_some(ContentRange { range: first..end, size })
}

/// The wait of a `Retry-After` header, which holds seconds or a date.
pub(super) fn retry_after(header: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = header.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(header).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// What failed, in the words of people instead of the system's resolver and sockets.
pub(super) fn reason(technical: &str) -> String {
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
    fn content_ranges_are_checked() {
        assert_eq!(
            content_range("bytes 0-9/10"),
            Some(ContentRange { range: 0..10, size: Some(10) })
        );
        assert_eq!(content_range("bytes 5-5/*"), Some(ContentRange { range: 5..6, size: None }));
        for wrong in ["", "bytes */10", "bytes 5-4/10", "bytes 0-10/10", "0-9/10", "bytes 0-x/9"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
        assert_eq!(content_range(&format!("bytes 0-{}/*", u64::MAX)), None);
    }

    #[test]
    fn a_retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:49:07Z".parse().unwrap();
        assert_eq!(retry_after("7", now), Some(Duration::from_secs(7)));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(retry_after(date, now), Some(Duration::from_secs(30)));
        let later = now + Duration::from_secs(60);
        assert_eq!(retry_after(date, later), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
    }
}
