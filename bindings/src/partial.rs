//! JSON that is still being written.

/// The JSON value of which a text is the beginning, with what is there of it, as JSON text.
#[uniffi::export]
pub fn partial_json(text: &str) -> Option<String> {
    mynah::partial_json(text).map(|value| value.to_string())
}
