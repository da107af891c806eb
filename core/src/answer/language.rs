//! Literals of the languages in which calls are written: Python's, and braces with bare keys.

use serde_json::{Map, Value as Json};

/// The deepest nesting of lists and objects.
const DEEPEST: usize = 64;

/// How literals and calls are written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Language {
    /// `name(key='value', …)`.
    Python,
    /// `call:name{key:value,…}` with a mark around strings.
    Braces { quote: &'static str },
}

/// Splits literals and reads them.
impl Language {
    /// The end of a literal: the first of `ends`, or of the brackets that close, outside strings and
    /// brackets.
    pub fn end(self, text: &str, ends: &[char]) -> Option<usize> {
        let (mut at, mut depth) = (0, 0_usize);
        while let Some(c) = text[at..].chars().next() {
            if depth == 0 && (ends.contains(&c) || ")]}".contains(c)) {
                // A mark of strings may begin with what is no bracket, so this is the end.
                return Some(at);
            }
            match self.string(&text[at..]) {
                Quoted::Whole { length, .. } => {
                    at += length;
                    continue;
                }
                Quoted::Open => return None,
                Quoted::No => {}
            }
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth -= 1,
                _ => {}
            }
            at += c.len_utf8();
        }
        None
    }

    /// The string at the beginning of a text.
    fn string(self, text: &str) -> Quoted {
        match self {
            Language::Braces { quote } => match text.strip_prefix(quote) {
                Some(inner) => match inner.find(quote) {
                    Some(end) => Quoted::Whole {
                        length: end + 2 * quote.len(),
                        value: inner[..end].to_string(),
                    },
                    None => Quoted::Open,
                },
                None if text.len() < quote.len() && quote.starts_with(text) => Quoted::Open,
                None => Quoted::No,
            },
            Language::Python => python_string(text),
        }
    }

    pub fn key(self, text: &str) -> String {
        match self.string(text) {
            Quoted::Whole { value, .. } => value,
            _ => text.to_string(),
        }
    }

    /// The value of a whole literal.
    pub fn value(self, text: &str) -> Option<Json> {
        self.nested(text, 0)
    }

    fn nested(self, text: &str, depth: usize) -> Option<Json> {
        let text = text.trim();
        if depth > DEEPEST {
            return None;
        }
        if let Quoted::Whole { length, value } = self.string(text) {
            return (length == text.len()).then_some(Json::String(value));
        }
        let inner = |open: char, close: char| text.strip_prefix(open)?.strip_suffix(close);
        let list = inner('[', ']')
            .or_else(|| inner('(', ')').filter(|_| matches!(self, Language::Python)));
        if let Some(inner) = list {
            let items = self.items(inner)?;
            return items.into_iter().map(|item| self.nested(item, depth + 1)).collect();
        }
        if let Some(inner) = inner('{', '}') {
            let mut fields = Map::new();
            for item in self.items(inner)? {
                let at = self.end(item, &[':'])?;
                let value = self.nested(item.get(at + 1..)?, depth + 1)?;
                fields.insert(self.key(item[..at].trim()), value);
            }
            return Some(Json::Object(fields));
        }
        match text {
            "True" => Some(Json::Bool(true)),
            "False" => Some(Json::Bool(false)),
            "None" => Some(Json::Null),
            _ => serde_json::from_str(text).ok().or_else(|| self.bare(text)),
        }
    }

    /// A word without quotes, which is a string in braces only.
    fn bare(self, text: &str) -> Option<Json> {
        match self {
            Language::Python => text.parse().ok().map(|number: f64| number.into()),
            Language::Braces { .. } => Some(text.into()),
        }
    }

    /// The items between commas.
    fn items(self, text: &str) -> Option<Vec<&str>> {
        let (mut items, mut rest) = (Vec::new(), text.trim());
        while !rest.is_empty() {
            let end = self.end(rest, &[',']).unwrap_or(rest.len());
            items.push(rest[..end].trim());
            rest = rest[end..].strip_prefix(',').or(rest[end..].is_empty().then_some(""))?.trim();
        }
        Some(items)
    }
}

/// What stands at the beginning of a text.
enum Quoted {
    Whole {
        length: usize,
        value: String,
    },
    /// A string that has not ended.
    Open,
    No,
}

/// Whether a quote before this text ends a string. Templates write quotes inside strings without a
/// backslash.
fn ends_string(after: &str) -> bool {
    after.trim_start().chars().next().is_none_or(|c| ",)]}:".contains(c))
}

/// A string of Python: in single or double quotes, one or three of them.
fn python_string(text: &str) -> Quoted {
    let Some(quote) = ['\'', '"'].into_iter().find(|quote| text.starts_with(*quote)) else {
        return Quoted::No;
    };
    let triple = quote.to_string().repeat(3);
    let quotes = if text.starts_with(&triple) { &triple } else { &triple[..1] };
    let inner = &text[quotes.len()..];
    let (mut value, mut at) = (String::new(), 0);
    while let Some(c) = inner[at..].chars().next() {
        if inner[at..].starts_with(quotes) && ends_string(&inner[at + quotes.len()..]) {
            return Quoted::Whole { length: 2 * quotes.len() + at, value };
        }
        at += c.len_utf8();
        if c != '\\' {
            value.push(c);
            continue;
        }
        let Some(escaped) = inner[at..].chars().next() else { break };
        at += escaped.len_utf8();
        let digits = match escaped {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        if digits > 0 {
            let code = |digits: &str| u32::from_str_radix(digits, 16).ok();
            let Some(hex) = inner.get(at..at + digits) else { break };
            let mut code = code(hex);
            at += digits;
            // Two escapes of a surrogate pair, as JSON writes them.
            if let (Some(high @ 0xd800..0xdc00), Some(next)) = (code, inner.get(at..at + 6))
                && let Some(low) = next.strip_prefix("\\u")
                && let Ok(low @ 0xdc00..0xe000) = u32::from_str_radix(low, 16)
            {
                code = Some(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00));
                at += 6;
            }
            value.push(code.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER));
            continue;
        }
        match escaped {
            'n' => value.push('\n'),
            't' => value.push('\t'),
            'r' => value.push('\r'),
            'b' => value.push('\u{8}'),
            'f' => value.push('\u{c}'),
            '0' => value.push('\0'),
            '\n' => {}
            '\\' | '\'' | '"' | '/' => value.push(escaped),
            other => value.extend(['\\', other]),
        }
    }
    Quoted::Open
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_are_read_as_their_languages_do() {
        let python = Language::Python;
        for (text, expected) in [
            ("'a\\'b\"c\\n\\u00e9\\x41'", json!("a'b\"c\né\u{41}")),
            ("\"\\ud83d\\ude00\"", json!("😀")),
            ("'''a'b'''", json!("a'b")),
            ("[1, 2.5, -3, True, None, false]", json!([1, 2.5, -3, true, null, false])),
            ("{'a': {'b': [(1, 2), 'x, y: }']}}", json!({"a": {"b": [[1, 2], "x, y: }"]}})),
            ("''", json!("")),
            ("{}", json!({})),
        ] {
            assert_eq!(python.value(text), Some(expected), "{text}");
        }
        assert_eq!(python.value("bare"), None);
        assert_eq!(python.value("'open"), None);
        let braces = Language::Braces { quote: "<|\"|>" };
        for (text, expected) in [
            ("<|\"|>a{b,c:\"<|\"|>", json!("a{b,c:\"")),
            (
                "{a:<|\"|>x<|\"|>,b:[1,true],<|\"|>c d<|\"|>:null}",
                json!({"a": "x", "b": [1, true], "c d": null}),
            ),
            ("word", json!("word")),
        ] {
            assert_eq!(braces.value(text), Some(expected), "{text}");
        }
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(python.value(&deep), None);
    }
}
