//! Addresses of a hub: origins, redirects and percent-encoding.

use std::fmt;
use ureq::http::{Uri, uri::Authority};

/// Scheme, host and port: the part of an address that decides who may see the token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of an HTTP or HTTPS address.
    pub fn of(address: &Uri) -> Option<Self> {
        let scheme = address.scheme_str()?;
        let port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let host = address.host().filter(|host| !host.is_empty())?.to_lowercase();
        let port = address.authority().and_then(Authority::port_u16).unwrap_or(port);
        Some(Origin { scheme: scheme.into(), host, port })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.host)?;
        match (self.scheme.as_str(), self.port) {
            ("http", 80) | ("https", 443) => Ok(()),
            (_, port) => write!(f, ":{port}"),
        }
    }
}

/// The host of an address, for messages. The rest of a redirect may be a signed link, so it is not
/// shown.
pub(super) fn host(address: &Uri) -> String {
    Origin::of(address).map_or_else(|| "an unknown host".into(), |origin| origin.to_string())
}

pub(super) fn is_https(address: &Uri) -> bool {
    address.scheme_str() == Some("https")
}

/// The address of a `Location` header, which may be relative to the request's address.
pub(super) fn resolve_location(from: &Uri, location: &str) -> Option<Uri> {
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

/// Percent-encodes a name; unreserved characters and those in `kept` stay.
pub(super) fn percent_encode(name: &str, kept: &str) -> String {
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
    fn redirects_resolve_as_in_a_browser() {
        let from: Uri = "https://hub.org:8443/a/b/c?x=1".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.org/f?sig=%2F", "https://cdn.org/f?sig=%2F"),
            ("//cdn.org/f", "https://cdn.org/f"),
            ("/d?y", "https://hub.org:8443/d?y"),
            ("d#part", "https://hub.org:8443/a/b/d"),
        ] {
            assert_eq!(resolve_location(&from, location).unwrap().to_string(), expected);
        }
        for location in ["file:///etc/passwd", "ftp://x/", "https://", "http://a b/"] {
            assert_eq!(resolve_location(&from, location), None, "{location}");
        }
    }

    #[test]
    fn origins_differ_by_scheme_and_port() {
        let origin = |address: &str| Origin::of(&address.parse().unwrap()).unwrap();
        assert_eq!(origin("https://Hub.org/a"), origin("https://hub.org:443/b?c"));
        assert_ne!(origin("https://hub.org"), origin("http://hub.org:443"));
        assert_ne!(origin("http://hub.org"), origin("http://hub.org:8080"));
        assert_ne!(origin("http://hub.org"), origin("http://cdn.hub.org"));
        assert_eq!(origin("http://me:secret@hub.org:81/a").to_string(), "hub.org:81");
    }

    #[test]
    fn names_are_percent_encoded() {
        assert_eq!(percent_encode("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(percent_encode("a b/ü#?.json", "/"), "a%20b/%C3%BC%23%3F.json");
    }
}
