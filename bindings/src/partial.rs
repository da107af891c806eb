//! JSON that is still being written.

/// Completes an unfinished JSON text: unfinished strings and lists are closed. None before a
/// value begins, and for a text that is no JSON.
#[uniffi::export]
pub fn partial_json(text: &str) -> Option<String> {
    mynah::partial_json(text).map(|value| value.to_string())
}
