//! Grammars of calls, in the wire format of a model: the names of the tools, and their arguments under
//! the schemas.

use crate::{
    answer::{
        Dialect, Tool, Toolbox,
        formats::{Format, NameForm, Named, Syntax, Tags},
        grammar::{
            lark::{Argument, End, Item, Rules, arguments},
            source::{Kind, Source},
        },
        schema,
    },
    error::{Error, Result},
    text::SpecialToken,
};
use serde_json::Value as Json;

/// Writes the grammars of calls of tools.
pub(crate) struct CallGrammars<'a> {
    pub dialect: &'a Dialect,
    pub tools: &'a Toolbox,
    /// The special tokens of the vocabulary.
    pub special: &'a [SpecialToken],
    /// The tokens that end an answer, which no grammar contains.
    pub ends: &'a [u32],
}

impl CallGrammars<'_> {
    /// An answer of calls: a single one of the tool of this name, or one or more of any tool.
    ///
    /// # Errors
    /// [`Error::Tool`] for arguments that no grammar of the format holds to; [`Error::NoTools`] and
    /// [`Error::Option`] for models whose calls cannot be forced.
    pub fn answer(&self, name: Option<&str>) -> Result<Source> {
        let format = self.dialect.format.ok_or(Error::NoTools)?;
        let is_header =
            |syntax| matches!(syntax, &Syntax::Named(Named { form: NameForm::Message, .. }));
        if self.dialect.messages.is_some() && !is_header(self.syntax(format)) {
            let reason = "the calls of this model stand in messages, which cannot be forced";
            return Err(Error::option("tool_choice", reason));
        }
        let mut rules = Rules::new(self.special);
        let block = self.block(&mut rules, format, name)?;
        let block = match self.mark(format) {
            Some(mark) => format!("{} {block}", rules.literal(mark)),
            None => block,
        };
        let is_one = name.is_some() || self.dialect.messages.is_some();
        let start = if is_one { block } else { format!("{block} (\"\\n\"? {block})*") };
        Ok(Source::lark(Kind::Calls, rules.grammar(&start)))
    }

    /// The calls behind the mark that opens them.
    ///
    /// # Errors
    /// Those of [`CallGrammars::answer`].
    pub fn behind_mark(&self) -> Result<Source> {
        let format = self.dialect.format.ok_or(Error::NoTools)?;
        let mut rules = Rules::new(self.special);
        let block = self.block(&mut rules, format, None)?;
        Ok(Source::lark(Kind::Calls, rules.grammar(&block)))
    }

    /// The mark that opens a block of calls, unless it is the beginning of a call itself.
    pub fn mark(&self, format: &Format) -> Option<&'static str> {
        if format.opens_call() || self.dialect.calls_are_bare {
            return None;
        }
        let known = format.open.iter().find(|open| self.dialect.source.contains(**open));
        known.or(format.open.first()).copied()
    }

    /// A block of calls behind its opening mark.
    fn block(&self, rules: &mut Rules, format: &Format, name: Option<&str>) -> Result<String> {
        let syntax = self.syntax(format);
        let is_wanted = |tool: &&Tool| name.is_none_or(|name| tool.name == name);
        let mut calls = Vec::new();
        for tool in self.tools.iter().filter(is_wanted) {
            let call = self.call(rules, format, syntax, tool);
            calls.push(call.map_err(|reason| Error::Tool {
                name: tool.name.clone(),
                reason: format!("cannot be called under a grammar: {reason}"),
            })?);
        }
        let call = rules.rule(&calls.join(" | "));
        let more = |separator: &str| match name {
            Some(_) => call.clone(),
            None => format!("{call} ({separator} {call})*"),
        };
        let calls = if matches!(syntax, Syntax::Python) || format.is_list() {
            format!("\"[\" {} \"]\"", more("\", \""))
        } else if format.close.is_empty() || is_alone(syntax) {
            call.clone()
        } else {
            more("\"\\n\"?")
        };
        let close = format.close.iter().find(|close| self.dialect.source.contains(**close));
        let close = close.or(format.close.first()).filter(|close| !self.ends_with(close));
        let lines = !format.open.is_empty() && format.open.iter().all(|open| open.ends_with('>'));
        Ok(match close {
            Some(close) if lines => {
                format!("\"\\n\"? {calls} \"\\n\"? {}", rules.literal(close))
            }
            Some(close) => format!("{calls} {}", rules.literal(close)),
            None => calls,
        })
    }

    /// Whether a mark is a token that ends an answer.
    fn ends_with(&self, mark: &str) -> bool {
        self.special.iter().any(|token| token.text == mark && self.ends.contains(&token.id))
    }

    /// The syntax whose marks the chat template has, or else the first without marks of its own.
    fn syntax(&self, format: &Format) -> &'static Syntax {
        let known = |mark: &str| !mark.is_empty() && self.dialect.source.contains(mark);
        let is_known = |syntax: &&Syntax| match syntax {
            Syntax::Named(named) if named.open.is_empty() => {
                named.name_end.iter().any(|end| end.starts_with('[') && known(end))
            }
            Syntax::Named(named) => known(named.open),
            Syntax::Tags(tags) if tags.open.is_empty() => known(tags.key_open),
            Syntax::Tags(tags) => known(tags.open),
            _ => false,
        };
        let is_plain = |syntax: &&Syntax| !matches!(syntax, Syntax::Tags(_) | Syntax::Named(_));
        let found = format.syntaxes.iter().find(is_known);
        found.or(format.syntaxes.iter().find(is_plain)).unwrap_or(&format.syntaxes[0])
    }

    fn call(
        &self,
        rules: &mut Rules,
        format: &Format,
        syntax: &Syntax,
        tool: &Tool,
    ) -> Result<String, String> {
        let parameters = &closed(&tool.parameters);
        let name = tool.name.as_str();
        match syntax {
            Syntax::Json => {
                let arguments = rules.json(parameters, parameters)?;
                let [before, between] = format.json_keys();
                let open = rules.literal(&format!("{{{before}\"{name}\", {between}"));
                Ok(format!("{open} {arguments} \"}}\""))
            }
            Syntax::JsonByName => {
                let arguments = rules.json(parameters, parameters)?;
                Ok(format!("{} {arguments} \"}}\"", rules.literal(&format!("{{\"{name}\": "))))
            }
            Syntax::Named(named) => {
                let arguments = rules.json(parameters, parameters)?;
                Ok(self.named(rules, named, name, &arguments))
            }
            Syntax::Tags(tags) => tagged(rules, tags, name, parameters),
            Syntax::Python => {
                let mut items = Vec::new();
                for argument in listed(parameters)? {
                    let value = rules.json(argument.schema, parameters)?;
                    let key = rules.literal(&format!("{}=", argument.name));
                    let expression = format!("{key} {value}");
                    items.push(Item { expression, is_required: argument.is_required });
                }
                let items = rules.separated(&items, "\", \"");
                Ok(format!("{} {items} \")\"", rules.literal(&format!("{name}("))))
            }
            Syntax::Braces { quote } => {
                listed(parameters)?;
                let object = rules.braced_object(parameters, parameters, quote)?;
                Ok(format!("{} {object}", rules.literal(&format!("call:{name}"))))
            }
        }
    }

    /// A name with the id of the call where the format has one, and the arguments.
    fn named(&self, rules: &Rules, named: &Named, name: &str, arguments: &str) -> String {
        let knows = |text: &str| self.dialect.source.contains(text);
        let literal = |text: &str| rules.literal(text);
        let end = named.name_end[named.name_end.len() - 1];
        let close = named.close.first().map(|close| literal(close)).unwrap_or_default();
        let id = "/[a-zA-Z0-9]{9}/";
        let head = match named.form {
            NameForm::Message => {
                let header = "<|channel|>commentary to=functions.";
                let start = literal("<|start|>assistant");
                format!("({start})? {}", literal(&format!("{header}{name} <|constrain|>json")))
            }
            NameForm::Numbered => format!("{} /[0-9]/", literal(&format!("functions.{name}:"))),
            NameForm::BehindId => {
                format!("{id} {}", literal(&format!("<|tool_call:name|>{name}")))
            }
            NameForm::BeforeId if knows("[CALL_ID]") => {
                format!("{} {id}", literal(&format!("{name}[CALL_ID]")))
            }
            NameForm::BehindKind if knows("```json") => {
                let head = literal(&format!("{}function{end}{name}\n```json\n", named.open));
                return format!(
                    "{head} {arguments} {}",
                    literal(&format!("\n```{}", named.close[0]))
                );
            }
            NameForm::Alone | NameForm::BeforeId | NameForm::BehindKind => literal(name),
        };
        let open = if named.open.is_empty() { String::new() } else { literal(named.open) };
        format!("{open} {head} {} {arguments} {close}", literal(end))
    }
}

/// Whether a block has a single call in this syntax.
fn is_alone(syntax: &Syntax) -> bool {
    match syntax {
        Syntax::Json | Syntax::Braces { .. } => true,
        Syntax::Tags(tags) => tags.close.is_empty(),
        _ => false,
    }
}

/// The schema of arguments without others than it lists.
fn closed(parameters: &Json) -> Json {
    let mut parameters = parameters.clone();
    if let Json::Object(fields) = &mut parameters
        && fields
            .get("properties")
            .and_then(Json::as_object)
            .is_some_and(|listed| !listed.is_empty())
    {
        fields.entry("additionalProperties").or_insert(false.into());
    }
    parameters
}

/// The arguments of a format that writes them one by one.
fn listed(parameters: &Json) -> Result<Vec<Argument<'_>>, String> {
    for name in ["anyOf", "oneOf", "allOf", "patternProperties", "minProperties", "maxProperties"] {
        if parameters.get(name).is_some() {
            return Err(format!("`/{name}` cannot be enforced in this format of calls"));
        }
    }
    let listed = arguments(parameters, parameters);
    let required = parameters.get("required").and_then(Json::as_array).into_iter().flatten();
    for name in required.filter_map(Json::as_str) {
        if !listed.iter().any(|argument| argument.name == name) {
            return Err(format!("`/required` names `{name}`, which `properties` does not have"));
        }
    }
    Ok(listed)
}

/// A call with tags around each argument.
fn tagged(rules: &mut Rules, tags: &Tags, name: &str, parameters: &Json) -> Result<String, String> {
    let attributes = if tags.is_indexed {
        format!("{} /[0-9]/ \"\\\"\"", rules.literal(" index=\""))
    } else {
        String::new()
    };
    let mut call =
        format!("{} {attributes}", rules.literal(&format!("{}{name}{}", tags.open, tags.name_end)));
    if !tags.attributes_end.is_empty() {
        call += &format!(" {}", rules.literal(tags.attributes_end));
    }
    if !tags.open.is_empty() {
        call += if tags.padded { " \"\\n\"" } else { " \"\\n\"?" };
    }
    for argument in listed(parameters)? {
        let is_string = schema::is_string(argument.schema, parameters);
        let close = tags.value_close.replace("{key}", argument.name);
        let value = if schema::types(argument.schema, parameters, 0).contains(&"string") {
            rules.text(argument.schema, parameters, End { is_padded: tags.padded, mark: &close })?
        } else {
            let value = rules.json(argument.schema, parameters)?;
            let before = if tags.padded { "\"\\n\"" } else { "" };
            format!("{value} {before} {}", rules.literal(&close))
        };
        let kind = match tags.attributes {
            Some([text, other]) => {
                if is_string {
                    text
                } else {
                    other
                }
            }
            None => "",
        };
        let open = format!(
            "{}{}{}{kind}{}",
            tags.key_open, argument.name, tags.key_end, tags.attributes_end
        );
        let value_open = if tags.value_open.is_empty() {
            String::new()
        } else {
            format!("\"\\n\"? {}", rules.literal(tags.value_open))
        };
        let before = if tags.padded { "\"\\n\"" } else { "" };
        let open = rules.literal(&open);
        let rule = rules.rule(&format!("{open} {value_open} {before} {value} \"\\n\"?"));
        let optional = if argument.is_required { "" } else { "?" };
        call += &format!(" {rule}{optional}");
    }
    if !tags.close.is_empty() {
        call += &format!(" {}", rules.literal(tags.close));
    }
    Ok(call)
}
