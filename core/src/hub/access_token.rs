//! The credential of a hub.

use crate::error::{Error, Result};
use std::fmt;

/// The secret that authenticates a user to a hub. `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(String);

impl AccessToken {
    /// A token; white space around it is removed.
    ///
    /// # Errors
    /// [`Error::Option`] when it is empty or contains characters that no token contains.
    pub fn new(secret: &str) -> Result<Self> {
        let secret = secret.trim();
        if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            let reason = "the access token is empty or contains spaces or control characters";
            return Err(Error::option("token", reason));
        }
        Ok(AccessToken(secret.into()))
    }

    /// The value of the `Authorization` header.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("AccessToken(…)")
    }
}
