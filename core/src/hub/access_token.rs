//! The credential of a hub.

use crate::error::{Error, Result};
use std::fmt;

/// A secret that a hub admits its user by. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(String);

impl AccessToken {
    /// A token; white space around it is dropped.
    ///
    /// # Errors
    /// [`Error::Option`] when it is empty or holds what no token does.
    pub fn new(secret: &str) -> Result<Self> {
        let secret = secret.trim();
        if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::option("token", "is empty or holds characters that no token does"));
        }
        Ok(AccessToken(secret.into()))
    }

    /// The value of the header `Authorization`.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("AccessToken(…)")
    }
}
