//! The error of the engine.

/// Why a template does not parse or render.
#[derive(Debug)]
pub struct Failure {
    pub line: Option<usize>,
    pub reason: String,
}

/// A result with this error.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure whose line is not known yet.
    pub fn of(reason: impl Into<String>) -> Self {
        Failure { line: None, reason: reason.into() }
    }
}
