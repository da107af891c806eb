//! Writes Lark grammars: literals with special tokens, JSON under a schema, text without a mark.

use crate::{
    answer::{grammar::schema::Prepared, schema},
    text::SpecialToken,
};
use serde_json::{Value as Json, json};
use std::fmt::Write;

/// The rules of a grammar.
pub(super) struct Rules<'a> {
    /// The special tokens of the vocabulary, which literals name by their id.
    special: &'a [SpecialToken],
    text: String,
    count: usize,
}

/// An argument as its format writes it.
pub(super) struct Item {
    pub expression: String,
    pub is_required: bool,
}

/// What ends a text: a mark, on a line of its own if the text is padded.
#[derive(Clone, Copy)]
pub(super) struct End<'a> {
    pub is_padded: bool,
    pub mark: &'a str,
}

impl End<'_> {
    fn whole(&self) -> String {
        format!("{}{}", if self.is_padded { "\n" } else { "" }, self.mark)
    }
}

impl<'a> Rules<'a> {
    pub fn new(special: &'a [SpecialToken]) -> Self {
        Rules { special, text: String::new(), count: 0 }
    }

    /// The grammar of the texts that an expression matches.
    pub fn grammar(self, start: &str) -> String {
        format!("start: {start}\n{}", self.text)
    }

    /// A rule for an expression.
    pub fn rule(&mut self, expression: &str) -> String {
        self.define("r", expression)
    }

    fn define(&mut self, prefix: &str, expression: &str) -> String {
        let name = format!("{prefix}{}", self.count);
        self.count += 1;
        writeln!(self.text, "{name}: {expression}").ok();
        name
    }

    /// A text as it is. Special tokens in it are tokens.
    pub fn literal(&self, text: &str) -> String {
        let (mut parts, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let begins = |at: usize| {
                let here = self.special.iter().filter(|token| rest[at..].starts_with(&token.text));
                here.max_by_key(|token| token.text.len())
            };
            let mut places = rest.char_indices().map(|(at, _)| at);
            let found = places.find_map(|at| begins(at).map(|token| (at, token)));
            let end = found.map_or(rest.len(), |(at, _)| at);
            if end > 0 {
                parts.push(Json::from(&rest[..end]).to_string());
            }
            rest = match found {
                Some((at, token)) => {
                    parts.push(format!("<[{}]>", token.id));
                    &rest[at + token.text.len()..]
                }
                None => "",
            };
        }
        if parts.is_empty() { "\"\"".into() } else { parts.join(" ") }
    }

    /// JSON that is valid under a part of a schema.
    ///
    /// # Errors
    /// The keyword that no grammar holds to, with its JSON pointer.
    pub fn json(&mut self, part: &Json, root: &Json) -> Result<String, String> {
        let mut whole = part.clone();
        if let (Json::Object(fields), Json::Object(root)) = (&mut whole, root) {
            for name in ["$defs", "definitions"] {
                if let Some(definitions) = root.get(name) {
                    fields.entry(name).or_insert(definitions.clone());
                }
            }
        }
        let prepared = Prepared::of(&whole)?;
        Ok(self.rule(&format!("%json {}", prepared.schema)))
    }

    /// Text of a string argument, and the mark that ends it behind a line break or nothing.
    ///
    /// # Errors
    /// The keyword that no grammar of the text holds to.
    pub fn text(&mut self, part: &Json, root: &Json, end: End) -> Result<String, String> {
        let part = schema::target(part, root);
        let field = |name: &str| part.get(name);
        let listed = field("enum").and_then(Json::as_array).cloned();
        let listed = listed.or_else(|| field("const").map(|value| vec![value.clone()]));
        if let Some(values) = listed {
            let texts = values.iter().map(|value| match value {
                Json::String(text) => self.literal(text),
                value => self.literal(&value.to_string()),
            });
            let texts = texts.collect::<Vec<_>>().join(" | ");
            return Ok(format!("({texts}) {}", self.literal(&end.whole())));
        }
        for name in ["format", "allOf", "anyOf", "oneOf"] {
            if field(name).is_some() {
                return Err(format!(
                    "`{name}` of a text cannot be enforced in this format of calls"
                ));
            }
        }
        let mut terminal = "/(?s:.*)/".to_string();
        if field("minLength").or(field("maxLength")).is_some() {
            let bound = |name: &str| field(name).and_then(Json::as_u64);
            let most = bound("maxLength").map(|most| most.to_string()).unwrap_or_default();
            terminal = format!("/(?s:.{{{},{most}}})/", bound("minLength").unwrap_or(0));
        }
        if let Some(pattern) = field("pattern").and_then(Json::as_str) {
            let inner = pattern.strip_prefix('^').unwrap_or(pattern);
            let before = if inner.len() < pattern.len() { "" } else { "(?s:.*)" };
            let is_closed = inner.ends_with('$') && !inner.ends_with("\\$");
            let after = if is_closed { "" } else { "(?s:.*)" };
            let inner = inner.strip_suffix('$').filter(|_| is_closed).unwrap_or(inner);
            let inner = llguidance::regex_to_lark(inner, "dw");
            write!(terminal, " & /{before}(?:{inner}){after}/").ok();
        }
        // What a text ends with is the first part of the mark that is no token of its own.
        let first = |text: &str| {
            let special =
                |at: &usize| self.special.iter().any(|t| text[*at..].starts_with(&t.text));
            let places = text.char_indices().map(|(at, _)| at);
            text[..places.clone().find(special).unwrap_or(text.len())].to_string()
        };
        let (own, behind) = (first(end.mark), first(&end.whole()));
        let kept = if own.is_empty() { end.mark } else { &own };
        let excluded: String = kept.chars().map(quoted).collect();
        write!(terminal, " & ~/(?s:.*){excluded}(?s:.*)/").ok();
        let terminal = self.define("T", &terminal);
        if behind.is_empty() {
            return Ok(format!("{terminal} {}", self.literal(end.mark)));
        }
        // The shortest text in front of its end.
        let text = format!("r{}", self.count);
        self.count += 1;
        let ending = Json::from(behind.as_str());
        writeln!(self.text, "{text}[suffix={ending}]: {terminal}").ok();
        let rest = &end.whole()[behind.len()..];
        Ok(if rest.is_empty() { text } else { format!("{text} {}", self.literal(rest)) })
    }

    /// Items with a separator between those that are there.
    pub fn separated(&mut self, items: &[Item], separator: &str) -> String {
        let (mut behind, mut first) = (String::new(), String::new());
        for item in items.iter().rev() {
            let Item { expression, is_required } = item;
            let rest =
                |rule: &str| if rule.is_empty() { String::new() } else { format!(" {rule}") };
            let own = self.rule(&format!("{expression}{}", rest(&behind)));
            let next = self.rule(&format!("{separator} {expression}"));
            first = match (is_required, first.is_empty()) {
                (true, _) => own,
                (false, true) => self.rule(&format!("{own}?")),
                (false, false) => self.rule(&format!("{own} | {first}")),
            };
            let next = if *is_required { next } else { format!("{next}?") };
            behind = self.rule(&format!("{next}{}", rest(&behind)));
        }
        first
    }

    /// A value of an object in braces, with marks around strings.
    ///
    /// # Errors
    /// The schema that no grammar of this form holds to.
    fn braced(&mut self, part: &Json, root: &Json, quote: &str) -> Result<String, String> {
        let part = schema::target(part, root);
        let types = schema::types(part, root, 0);
        let is_bounded = part.get("minItems").or(part.get("maxItems")).is_some();
        let mut forms = Vec::new();
        if types.contains(&"string") {
            let text = self.text(part, root, End { is_padded: false, mark: quote })?;
            forms.push(format!("{} {text}", self.literal(quote)));
        }
        let scalars = types.iter().filter(|name| !["string", "array", "object"].contains(name));
        let scalars: Vec<_> = scalars.collect();
        if let (false, Json::Object(fields)) = (scalars.is_empty(), part) {
            let mut fields = fields.clone();
            fields.insert("type".into(), json!(scalars));
            forms.push(self.json(&fields.into(), root)?);
        }
        if types == ["array"] && !is_bounded {
            let any = json!({"type": ["string", "number", "boolean", "null"]});
            let item = self.braced(part.get("items").unwrap_or(&any), root, quote)?;
            let item = self.rule(&item);
            forms.push(format!("\"[\" ({item} (\",\" {item})*)? \"]\""));
        }
        if types == ["object"] && part.get("properties").is_some() {
            forms.push(self.braced_object(part, root, quote)?);
        }
        match forms.is_empty() {
            true => Err(format!("the schema {part} cannot be enforced in this format of calls")),
            false => Ok(self.rule(&forms.join(" | "))),
        }
    }

    /// An object in braces.
    ///
    /// # Errors
    /// Those of [`Rules::braced`].
    pub fn braced_object(
        &mut self,
        part: &Json,
        root: &Json,
        quote: &str,
    ) -> Result<String, String> {
        let mut items = Vec::new();
        for argument in arguments(part, root) {
            let value = self.braced(argument.schema, root, quote)?;
            let key = self.literal(&format!("{}:", argument.name));
            let expression = format!("{key} {value}");
            items.push(Item { expression, is_required: argument.is_required });
        }
        let fields = self.separated(&items, "\",\"");
        Ok(format!("\"{{\" {fields} \"}}\""))
    }
}

/// An argument of a tool.
pub(super) struct Argument<'a> {
    pub name: &'a str,
    pub schema: &'a Json,
    pub is_required: bool,
}

/// The arguments that a schema lists.
pub(super) fn arguments<'a>(schema: &'a Json, root: &'a Json) -> Vec<Argument<'a>> {
    let schema = schema::target(schema, root);
    let required = schema.get("required").and_then(Json::as_array);
    let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|n| n == name));
    let listed = schema.get("properties").and_then(Json::as_object).into_iter().flatten();
    let argument = |(name, schema): (&'a String, &'a Json)| Argument {
        name,
        schema,
        is_required: is_required(name),
    };
    listed.map(argument).collect()
}

/// A character in a regular expression of Lark.
fn quoted(c: char) -> String {
    if c.is_alphanumeric() || c == '_' || c == '\n' || !c.is_ascii() {
        return if c == '\n' { "\\n".into() } else { c.to_string() };
    }
    format!("\\x{{{:x}}}", c as u32)
}
