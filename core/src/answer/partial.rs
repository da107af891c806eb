//! JSON that is still being written.

use serde_json::{Map, Value as Json};

/// The deepest nesting of lists and objects.
const DEEPEST: usize = 128;

/// The value of an unfinished JSON text: unfinished strings and lists are closed, and an object has the
/// fields whose value has begun. None before a value begins, and for a text that is no JSON from its
/// start.
///
/// ```
/// use serde_json::json;
///
/// let value = mynah::partial_json(r#"{"name": "Ada", "born": 1815, "works": ["Not"#);
/// assert_eq!(value, Some(json!({"name": "Ada", "born": 1815, "works": ["Not"]})));
/// ```
pub fn partial_json(text: &str) -> Option<Json> {
    Partial { rest: text }.value(0)
}

struct Partial<'a> {
    rest: &'a str,
}

impl<'a> Partial<'a> {
    fn value(&mut self, depth: usize) -> Option<Json> {
        self.skip_space();
        match self.rest.chars().next().filter(|_| depth < DEEPEST)? {
            '{' => Some(Json::Object(self.object(depth))),
            '[' => Some(Json::Array(self.list(depth))),
            '"' => self.string().map(Json::String),
            _ => {
                let end = self.rest.find(|c: char| ",]}".contains(c) || c.is_whitespace());
                let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
                self.rest = rest;
                serde_json::from_str(word).ok()
            }
        }
    }

    fn object(&mut self, depth: usize) -> Map<String, Json> {
        let mut fields = Map::new();
        self.rest = &self.rest[1..];
        while self.goes_on('}') {
            let is_whole = self.string_end().is_some();
            let Some(key) = self.string().filter(|_| is_whole) else { break };
            self.skip_space();
            let Some(rest) = self.rest.strip_prefix(':') else { break };
            self.rest = rest;
            let Some(value) = self.value(depth + 1) else { break };
            fields.insert(key, value);
        }
        fields
    }

    fn list(&mut self, depth: usize) -> Vec<Json> {
        let mut items = Vec::new();
        self.rest = &self.rest[1..];
        while self.goes_on(']') {
            let Some(item) = self.value(depth + 1) else { break };
            items.push(item);
        }
        items
    }

    /// Whether a list or object has more, which may be incomplete.
    fn goes_on(&mut self, close: char) -> bool {
        self.skip_space();
        if let Some(rest) = self.rest.strip_prefix(',') {
            self.rest = rest;
            self.skip_space();
        }
        match self.rest.strip_prefix(close) {
            Some(rest) => {
                self.rest = rest;
                false
            }
            None => !self.rest.is_empty(),
        }
    }

    /// The end of the string at the beginning, behind its quote.
    fn string_end(&self) -> Option<usize> {
        let mut is_escaped = false;
        let inner = self.rest.strip_prefix('"')?;
        let end = inner.char_indices().find(|(_, c)| {
            let is_end = *c == '"' && !is_escaped;
            is_escaped = *c == '\\' && !is_escaped;
            is_end
        });
        end.map(|(at, _)| at + 2)
    }

    /// A string, as far as it goes.
    fn string(&mut self) -> Option<String> {
        if let Some(end) = self.string_end() {
            let (string, rest) = self.rest.split_at(end);
            self.rest = rest;
            return serde_json::from_str(string).ok();
        }
        let mut inner = std::mem::take(&mut self.rest).strip_prefix('"')?;
        // An escape that is incomplete is left out; two make one character.
        loop {
            if let Ok(text) = serde_json::from_str(&format!("\"{inner}\"")) {
                return Some(text);
            }
            inner = &inner[..inner.rfind('\\')?];
        }
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_beginning_of_a_text_has_a_value_that_grows() {
        let whole = json!({"a\"b": ["x\n\u{e9}😀", -1.5e3, true, null, {}], "c": {"d": []}});
        let text =
            r#" {"a\"b" : ["x\n\u00e9\ud83d\ude00", -1.5e3, true, null, {}], "c": {"d": []}} "#;
        for (end, _) in text.char_indices() {
            let value = partial_json(&text[..end]);
            assert_eq!(value.is_some(), end > 1, "{:?}", &text[..end]);
            if let Some(list) = value.as_ref().and_then(|value| value["a\"b"].as_array()) {
                let first = list.first().and_then(Json::as_str).unwrap_or_default();
                assert!("x\né😀".starts_with(first), "{first:?}");
            }
        }
        assert_eq!(partial_json(text), Some(whole));
        for (text, expected) in [
            ("\"ab", Some(json!("ab"))),
            ("12", Some(json!(12))),
            ("[1, 2", Some(json!([1, 2]))),
            ("[tru", Some(json!([]))),
            ("{\"a\"", Some(json!({}))),
            ("{\"a\": ", Some(json!({}))),
            ("-", None),
            ("", None),
            ("word", None),
        ] {
            assert_eq!(partial_json(text), expected, "{text}");
        }
        assert!(partial_json(&"[".repeat(100_000)).is_some());
    }
}
