//! Errors with a kind, which says what a caller can do.

use mynah::Error;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum ErrorKind {
    /// The model, revision or file does not exist: check the name.
    NotFound,
    /// The hub refuses access: accept the licence or pass an access token.
    AccessDenied,
    /// A host cannot be reached or refuses to answer now: try again later.
    Network,
    /// Offline mode is on and the model is not on the disk: download it first.
    Offline,
    /// The disk has too little free space: free some.
    DiskFull,
    /// A file cannot be read or has wrong content: download or save it again.
    Damaged,
    /// Mynah does not support this model or this feature: choose another model.
    Unsupported,
    /// The memory does not suffice: unload a model or choose a smaller one.
    OutOfMemory,
    /// The prompt is longer than the context: shorten it.
    ContextOverflow,
    /// A prompt or an option is invalid: correct the request.
    InvalidRequest,
    /// The caller cancelled the operation.
    Cancelled,
    /// The model has been unloaded: load it again.
    Unloaded,
    /// This device cannot run models.
    Unavailable,
    /// The device, this library or a foreign callback failed: report a bug.
    Internal,
}

/// Numbers that belong to some kinds of errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, uniffi::Record)]
pub struct ErrorDetails {
    /// Bytes that the operation still needs, on the disk or in memory.
    pub needed: Option<u64>,
    /// Bytes that are available there.
    pub available: Option<u64>,
    /// When the host accepts requests again, if it says so.
    pub retry_after_seconds: Option<u64>,
    /// Length of the prompt in tokens.
    pub tokens: Option<u64>,
    /// Tokens that the context holds.
    pub limit: Option<u64>,
}

/// Every error of the bindings.
#[derive(Debug, thiserror::Error, uniffi::Error)]
pub enum MynahError {
    /// The only variant: callers look at the kind.
    #[error("{reason}")]
    Failed {
        /// What the caller can do.
        kind: ErrorKind,
        /// What is wrong, where, and what to do.
        reason: String,
        /// Numbers that belong to the kind.
        details: ErrorDetails,
    },
}

impl MynahError {
    /// An error without numbers.
    pub(crate) fn new(kind: ErrorKind, reason: impl Into<String>) -> Self {
        MynahError::Failed { kind, reason: reason.into(), details: ErrorDetails::default() }
    }

    /// An error about a request.
    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        MynahError::new(ErrorKind::InvalidRequest, reason)
    }
}

impl From<mynah::ErrorKind> for ErrorKind {
    fn from(kind: mynah::ErrorKind) -> Self {
        match kind {
            mynah::ErrorKind::NotFound => ErrorKind::NotFound,
            mynah::ErrorKind::AccessDenied => ErrorKind::AccessDenied,
            mynah::ErrorKind::Network => ErrorKind::Network,
            mynah::ErrorKind::Offline => ErrorKind::Offline,
            mynah::ErrorKind::DiskFull => ErrorKind::DiskFull,
            mynah::ErrorKind::Damaged => ErrorKind::Damaged,
            mynah::ErrorKind::Unsupported => ErrorKind::Unsupported,
            mynah::ErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
            mynah::ErrorKind::ContextOverflow => ErrorKind::ContextOverflow,
            mynah::ErrorKind::InvalidRequest => ErrorKind::InvalidRequest,
            mynah::ErrorKind::Cancelled => ErrorKind::Cancelled,
            mynah::ErrorKind::Unloaded => ErrorKind::Unloaded,
            mynah::ErrorKind::Unavailable => ErrorKind::Unavailable,
            mynah::ErrorKind::Internal => ErrorKind::Internal,
        }
    }
}

impl From<Error> for MynahError {
    fn from(error: Error) -> Self {
        let mut details = ErrorDetails::default();
        match error.cause() {
            Error::RateLimited { after, .. } => {
                details.retry_after_seconds = after.map(|after| after.as_secs());
            }
            Error::DiskFull { needed, free, .. } => {
                (details.needed, details.available) = (Some(*needed), Some(*free));
            }
            Error::MemoryLimit { needed, used, limit } => {
                details.needed = Some(*needed as u64);
                details.available = Some(limit.saturating_sub(*used) as u64);
            }
            Error::ContextOverflow { tokens, limit } => {
                (details.tokens, details.limit) = (Some(*tokens as u64), Some(*limit as u64));
            }
            _ => {}
        }
        MynahError::Failed { kind: error.kind().into(), reason: error.to_string(), details }
    }
}

impl From<uniffi::UnexpectedUniFFICallbackError> for MynahError {
    fn from(error: uniffi::UnexpectedUniFFICallbackError) -> Self {
        MynahError::new(ErrorKind::Internal, error.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_values_are_not_damaged_and_damaged_files_are_not_requests() {
        let kind = |error: Error| ErrorKind::from(error.kind());
        assert_eq!(kind(Error::unsupported("loops", "only 2")), ErrorKind::Unsupported);
        assert_eq!(kind(Error::config("loops", "missing")), ErrorKind::Damaged);
        let tokenizer = Error::Tokenizer { file: "tokenizer.json".into(), reason: "cut".into() };
        assert_eq!(kind(tokenizer), ErrorKind::Damaged);
    }

    #[test]
    fn numbers_of_an_error_reach_the_caller() {
        let MynahError::Failed { kind, details, .. } =
            Error::MemoryLimit { needed: 7, used: 2, limit: 5 }.into();
        assert_eq!(kind, ErrorKind::OutOfMemory);
        assert_eq!((details.needed, details.available), (Some(7), Some(3)));
        let MynahError::Failed { kind, details, .. } =
            Error::ContextOverflow { tokens: 9, limit: 8 }.into();
        assert_eq!(kind, ErrorKind::ContextOverflow);
        assert_eq!((details.tokens, details.limit), (Some(9), Some(8)));
    }
}
