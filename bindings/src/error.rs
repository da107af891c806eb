//! What a caller can do about an error.

use mynah::{Error, ErrorKind};

/// Something went wrong. The variant says what can be done about it, `reason` what it was.
#[derive(Debug, thiserror::Error, uniffi::Error)]
pub enum MynahError {
    /// There is no such model, revision or file: look for the name.
    #[error("{reason}")]
    NotFound {
        /// What it was.
        reason: String,
    },
    /// A licence must be accepted, or a token be given.
    #[error("{reason}")]
    AccessDenied {
        /// What it was.
        reason: String,
    },
    /// A host cannot be reached or refuses to answer now: try again later.
    #[error("{reason}")]
    Network {
        /// What it was.
        reason: String,
        /// When it may be tried again, if the host says so.
        retry_after_seconds: Option<u64>,
    },
    /// No request may be made, and the model is not on the disk.
    #[error("{reason}")]
    Offline {
        /// What it was.
        reason: String,
    },
    /// The disk is too small: make room.
    #[error("{reason}")]
    DiskFull {
        /// What it was.
        reason: String,
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A file cannot be read or is not what it should be: fetch or save it again.
    #[error("{reason}")]
    Damaged {
        /// What it was.
        reason: String,
    },
    /// This library does not run such a model: take another one.
    #[error("{reason}")]
    Unsupported {
        /// What it was.
        reason: String,
    },
    /// The memory does not suffice: unload something, or take a smaller model.
    #[error("{reason}")]
    OutOfMemory {
        /// What it was.
        reason: String,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are available.
        available: u64,
    },
    /// The prompt is too long: shorten it.
    #[error("{reason}")]
    ContextOverflow {
        /// What it was.
        reason: String,
        /// Length of the prompt in tokens.
        tokens: u64,
        /// Tokens that the context holds.
        limit: u64,
    },
    /// The model cannot make sense of a prompt or an option: correct the request.
    #[error("{reason}")]
    InvalidRequest {
        /// What it was.
        reason: String,
    },
    /// Somebody cancelled it.
    #[error("{reason}")]
    Cancelled {
        /// What it was.
        reason: String,
    },
    /// The model has been unloaded: load it again.
    #[error("{reason}")]
    Unloaded {
        /// What it was.
        reason: String,
    },
    /// Models cannot run here at all.
    #[error("{reason}")]
    Unavailable {
        /// Why not.
        reason: String,
    },
    /// The device, this library or a foreign callback has failed. Nothing is known to help.
    #[error("{reason}")]
    Internal {
        /// What it was.
        reason: String,
    },
}

impl From<Error> for MynahError {
    fn from(error: Error) -> Self {
        let (kind, reason) = (error.kind(), error.to_string());
        match kind {
            ErrorKind::NotFound => MynahError::NotFound { reason },
            ErrorKind::AccessDenied => MynahError::AccessDenied { reason },
            ErrorKind::Network => {
                let after = match error.cause() {
                    Error::RateLimited { after, .. } => *after,
                    _ => None,
                };
                let retry_after_seconds = after.map(|after| after.as_secs());
                MynahError::Network { reason, retry_after_seconds }
            }
            ErrorKind::Offline => MynahError::Offline { reason },
            ErrorKind::DiskFull => {
                let (needed, free) = match error.cause() {
                    Error::DiskFull { needed, free, .. } => (*needed, *free),
                    _ => (0, 0),
                };
                MynahError::DiskFull { reason, needed, free }
            }
            ErrorKind::Damaged => MynahError::Damaged { reason },
            ErrorKind::Unsupported => MynahError::Unsupported { reason },
            ErrorKind::OutOfMemory => {
                let (needed, available) = match error.cause() {
                    Error::MemoryLimit { needed, used, limit } => {
                        (*needed as u64, limit.saturating_sub(*used) as u64)
                    }
                    _ => (0, 0),
                };
                MynahError::OutOfMemory { reason, needed, available }
            }
            ErrorKind::ContextOverflow => {
                let (tokens, limit) = match error.cause() {
                    Error::ContextOverflow { tokens, limit } => (*tokens as u64, *limit as u64),
                    _ => (0, 0),
                };
                MynahError::ContextOverflow { reason, tokens, limit }
            }
            ErrorKind::InvalidRequest => MynahError::InvalidRequest { reason },
            ErrorKind::Cancelled => MynahError::Cancelled { reason },
            ErrorKind::Unloaded => MynahError::Unloaded { reason },
            ErrorKind::Unavailable => MynahError::Unavailable { reason },
            ErrorKind::Internal => MynahError::Internal { reason },
        }
    }
}

impl From<uniffi::UnexpectedUniFFICallbackError> for MynahError {
    fn from(error: uniffi::UnexpectedUniFFICallbackError) -> Self {
        MynahError::Internal { reason: error.reason }
    }
}
