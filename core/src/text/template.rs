//! Chat templates: a list of messages to the text format that a model was trained on.
//!
//! The reference is `apply_chat_template` of transformers 5.

use crate::checkpoint::files::Files;
use crate::error::{Error, Result};
use crate::text::Tokenizer;
use crate::text::content_form::ContentForm;
use crate::text::jinja::{Failure, Template, Text, Value, from_json};
use crate::text::message::{Content, Message};
use crate::text::tokenizer::{Config, ControlTokens};
use jiff::{Zoned, civil::DateTime};
use serde_json::{Map, Value as Json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
const NAMED: &str = "additional_chat_templates";

/// The roles that every template may get, whether it knows them or not.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// The field names of the assistant's reasoning, in order of precedence.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Templates that a config selects by name (`chat_template_type`); mlx-lm has them as Python code.
const TYPES: [(&str, &str); 1] = [("deepseek_v32", DEEPSEEK_V32)];

/// The template of DeepSeek V3.2, whose checkpoints have none.
pub(crate) const DEEPSEEK_V32: &str = include_str!("deepseek_v32.jinja");

/// Options of [`ChatTemplate::render`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TemplateOptions {
    /// Ends with the header of an assistant's message, so that the model answers. On by default.
    pub add_generation_prompt: bool,
    /// End inside the last message, so that the model continues its content, or its reasoning if it
    /// has no content. This turns `add_generation_prompt` off.
    pub continue_final_message: bool,
    /// Encodes control tokens that stand in messages, tools, documents and variables as plain text, so that only those of
    /// the template itself have a meaning. On by default. Trusted are the names of roles and the variables that
    /// replace special tokens (`bos_token`).
    pub sanitize_control_tokens: bool,
    /// JSON schemas of the functions that the model may call; an empty list means no tools.
    pub tools: Vec<Json>,
    /// More variables for the template, such as `enable_thinking` or `reasoning_effort`. They
    /// replace special tokens of the same name.
    pub variables: Map<String, Json>,
    /// The name of one of several templates, such as `rag`. The default is `tool_use` when there are
    /// tools, else `default`.
    pub name: Option<String>,
    /// The user's local time, for templates that write the date. By default that of the system.
    pub local_time: Option<DateTime>,
}

setters! {
    TemplateOptions:
    add_generation_prompt: bool,
    continue_final_message: bool,
    sanitize_control_tokens: bool,
    tools: Vec<Json>,
    variables: Map<String, Json>;
    optional
    name: String,
    local_time: DateTime,
}

impl Default for TemplateOptions {
    fn default() -> Self {
        TemplateOptions {
            add_generation_prompt: true,
            continue_final_message: false,
            sanitize_control_tokens: true,
            tools: Vec::new(),
            variables: Map::new(),
            name: None,
            local_time: None,
        }
    }
}

/// The chat template of a checkpoint, or several named ones. Clones share them.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    /// The templates by name.
    templates: Arc<BTreeMap<String, Template>>,
    special_tokens: Map<String, Json>,
    control_tokens: Option<Arc<ControlTokens>>,
    /// The form of messages with media.
    form: ContentForm,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja` and the folder `additional_chat_templates`, or else
    /// `chat_template.json`, or else `chat_template` in `tokenizer_config.json`, and the special
    /// tokens that templates use. A `chat_template_type` takes precedence over all of them.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when it does not parse, [`Error::Config`] when it is not a template,
    /// [`Error::Io`].
    pub fn load(files: &Files) -> Result<Option<Self>> {
        let config = Config::load(files)?;
        let mut sources = match config.get("chat_template_type").and_then(Json::as_str) {
            Some(name) => typed(name)?,
            None => source_files(files)?,
        };
        if sources.is_empty() {
            let legacy = files.json("chat_template.json")?;
            let legacy = legacy.as_ref().and_then(|json| json.get("chat_template"));
            let (file, template) = match (legacy, config.get("chat_template")) {
                (Some(template), _) => ("chat_template.json", template),
                (None, Some(Json::Null) | None) => return Ok(None),
                (None, Some(template)) => ("tokenizer_config.json", template),
            };
            sources = configured(file, template)?;
        }
        Self::new(sources, config.special_tokens()).map(Some)
    }

    /// Parses one template. Its special tokens come from [`TemplateOptions::variables`] and
    /// [`with_special_tokens`](Self::with_special_tokens) only.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when it does not parse.
    pub fn from_source(source: &str) -> Result<Self> {
        Self::new(vec![(DEFAULT.into(), source.into())], Map::new())
    }

    /// Passes the special tokens of a tokenizer, such as `bos_token`, to the template.
    #[must_use]
    pub fn with_special_tokens(mut self, tokenizer: &Tokenizer) -> Self {
        self.special_tokens = tokenizer.special_tokens().clone();
        self.control_tokens = Some(Arc::new(self.control_tokens(tokenizer)));
        self
    }

    /// The template for a model that reads pictures, for which it writes this marker or for which the
    /// marker is written in its place.
    pub(crate) fn for_media(mut self, marker: &str) -> Self {
        self.form = ContentForm::default();
        self.form = ContentForm::of(marker, |content| {
            let content = serde_json::from_value(content).ok();
            let message = Message { content, ..Message::user("") };
            self.render(&[message], &TemplateOptions::default()).ok()
        });
        self
    }

    /// The special tokens of a tokenizer, and its added tokens that a template writes.
    pub(crate) fn control_tokens(&self, tokenizer: &Tokenizer) -> ControlTokens {
        let writes = |text: &str| self.templates.values().any(|template| template.writes(text));
        ControlTokens::of(tokenizer, writes)
    }

    fn new(sources: Vec<(String, String)>, special_tokens: Map<String, Json>) -> Result<Self> {
        let parse = |(name, source): (String, String)| Ok((name, Template::parse(&source)?));
        let templates = sources.into_iter().map(parse).collect::<Result<_, _>>().map_err(error)?;
        Ok(ChatTemplate {
            templates: Arc::new(templates),
            special_tokens,
            control_tokens: None,
            form: ContentForm::default(),
        })
    }

    /// The sources of all templates.
    pub(crate) fn source(&self) -> String {
        self.templates.values().map(Template::source).collect::<Vec<_>>().join("\n")
    }

    /// The names that the templates read: variables, and what they set themselves.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.templates.values().flat_map(Template::names).collect()
    }

    /// Renders messages to text. The text contains its special tokens: encode it without adding any. What a user
    /// writes may look like a control token in it; [`encode`](Self::encode) tells them apart.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when the template raises one or cannot render these messages,
    /// [`Error::UnknownRole`] when it leaves out the message of a role that it does not know.
    pub fn render(&self, messages: &[Message], options: &TemplateOptions) -> Result<String> {
        self.rendered(messages, options).map(|text| text.as_str().into())
    }

    /// Renders messages to token ids. Unless [`TemplateOptions::sanitize_control_tokens`] is off, a control token has
    /// a meaning only where the template itself writes all of it: the same characters in a message are plain text, also
    /// where the template trims, splits or joins them. Plain text may still be words that a model obeys.
    ///
    /// # Errors
    /// Those of [`render`](Self::render); [`Error::Tokenizer`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &TemplateOptions,
    ) -> Result<Vec<u32>> {
        self.encode_text(tokenizer, &self.rendered(messages, options)?)
    }

    /// The ids of a rendered text or of a part of it.
    pub(crate) fn encode_text(&self, tokenizer: &Tokenizer, text: &Text) -> Result<Vec<u32>> {
        match &self.control_tokens {
            Some(control) => tokenizer.encode_rendered(text, control),
            None => tokenizer.encode_rendered(text, &self.control_tokens(tokenizer)),
        }
    }

    pub(crate) fn rendered(&self, messages: &[Message], options: &TemplateOptions) -> Result<Text> {
        if messages.is_empty() {
            return Err(refused("there are no messages"));
        }
        let template = self.select(options)?;
        let now = options.local_time.unwrap_or_else(|| Zoned::now().datetime());
        let render = |messages: &[Json], prompt: bool| {
            template.render(&self.variables(messages, prompt, options), now).map_err(error)
        };
        let json = messages.iter().map(to_json).collect::<Result<Vec<_>>>()?;
        let rendered = if options.continue_final_message {
            continue_final(json, template.source(), |messages| render(messages, false))?
        } else {
            render(&json, options.add_generation_prompt)?
        };
        for message in messages.iter().filter(|message| !ROLES.contains(&&*message.role)) {
            if let Some(Content::Text(text)) = &message.content
                && !rendered.as_str().contains(text.trim())
            {
                return Err(Error::UnknownRole(message.role.clone()));
            }
        }
        Ok(rendered)
    }

    fn select(&self, options: &TemplateOptions) -> Result<&Template> {
        let name = match &options.name {
            Some(name) => name,
            None if !options.tools.is_empty() && self.templates.contains_key(TOOL_USE) => TOOL_USE,
            None => DEFAULT,
        };
        self.templates.get(name).ok_or_else(|| {
            let names: Vec<_> = self.templates.keys().map(String::as_str).collect();
            refused(format!("the checkpoint has no template `{name}`; it has {}", names.join(", ")))
        })
    }

    fn variables(
        &self,
        messages: &[Json],
        prompt: bool,
        options: &TemplateOptions,
    ) -> HashMap<String, Value> {
        let is_given = options.sanitize_control_tokens;
        let mut variables = HashMap::from([("documents".to_string(), Value::None)]);
        for (name, value) in &self.special_tokens {
            variables.insert(name.clone(), from_json(value, false));
        }
        for (name, value) in &options.variables {
            let is_given = is_given && !name.ends_with("_token");
            variables.insert(name.clone(), from_json(value, is_given));
        }
        let mut pictures = 0;
        let messages = messages.iter().map(|message| {
            let content = message.get("content");
            let content = content.and_then(|it| self.form.apply(it, is_given, &mut pictures));
            message_value(message, content, is_given)
        });
        variables.insert("messages".into(), Value::list(messages.collect()));
        let tools = options.tools.iter().map(|tool| from_json(tool, is_given));
        let tools =
            if options.tools.is_empty() { Value::None } else { Value::list(tools.collect()) };
        variables.insert("tools".into(), tools);
        variables.insert("add_generation_prompt".into(), prompt.into());
        variables
    }
}

/// A message as a template sees it, with another content if there is one. A role is a name that the application chose, of which templates make control tokens
/// (`<|user|>`).
fn message_value(message: &Json, content: Option<Value>, is_given: bool) -> Value {
    let value = from_json(message, is_given);
    let Value::Dict(dict) = &value else { return value };
    let is_name = |role: &&str| role.chars().all(|c| c.is_alphanumeric() || "_-".contains(c));
    let role = message.get("role").and_then(Json::as_str).filter(is_name).map(Value::written);
    let mut dict = (**dict).clone();
    for (key, value) in [("role", role), ("content", content)] {
        if let Some(value) = value {
            dict.insert(Value::written(key), value);
        }
    }
    dict.into()
}

/// The parts of rendered conversations that do not depend on what the user says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layout {
    /// The text before the first message of the user: what all conversations with these opening
    /// messages, tools and variables share.
    pub prefix: Text,
    /// The header of the answer after a message of the user; empty without a generation prompt, and
    /// for templates that do not write it at the end.
    pub header: Text,
}

impl Layout {
    /// The layout of conversations that begin with these messages, such as a system prompt.
    ///
    /// Templates are programs, so two short conversations are rendered and compared: they differ from
    /// the first character of the user's message on, and the generation prompt is the header.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`].
    pub fn of(
        template: &ChatTemplate,
        opening: &[Message],
        options: &TemplateOptions,
    ) -> Result<Self> {
        let ask = |text: &str| [opening, &[Message::user(text)]].concat();
        let unprompted = options.clone().add_generation_prompt(false);
        let (one, other) =
            (template.rendered(&ask("0"), options)?, template.rendered(&ask("a"), options)?);
        let unprompted = template.rendered(&ask("0"), &unprompted)?;
        let header = one.as_str().strip_prefix(unprompted.as_str()).unwrap_or_default();
        let mut pairs = one.as_str().char_indices().zip(other.as_str().chars());
        let end = pairs.find(|((_, a), b)| a != b).map_or(one.as_str().len(), |((at, _), _)| at);
        let start = one.as_str().len() - header.len();
        let header = one.slice(start..one.as_str().len());
        Ok(Layout { prefix: one.slice(0..end), header })
    }
}

/// The sources of `chat_template.jinja` and of the named templates beside it.
fn source_files(files: &Files) -> Result<Vec<(String, String)>> {
    let named = files.names(NAMED)?.into_iter();
    let named = named.filter_map(|file| {
        let name = file.strip_suffix(".jinja").filter(|name| !name.is_empty())?;
        Some((name.to_string(), format!("{NAMED}/{file}")))
    });
    let default = (DEFAULT.to_string(), "chat_template.jinja".to_string());
    let mut sources = Vec::new();
    for (name, path) in named.chain([default]) {
        if let Some(bytes) = files.read(&path)? {
            let source = String::from_utf8(bytes.into_owned());
            let source = source.map_err(|_| refused(format!("{path} is not UTF-8")))?;
            sources.push((name, source));
        }
    }
    Ok(sources)
}

fn typed(name: &str) -> Result<Vec<(String, String)>> {
    let source = TYPES.iter().find(|(known, _)| *known == name);
    let (_, source) = source.ok_or_else(|| Error::Unsupported {
        file: "tokenizer_config.json".into(),
        field: "chat_template_type".into(),
        reason: format!("the type `{name}` is not supported"),
    })?;
    Ok(vec![(DEFAULT.into(), source.to_string())])
}

/// The sources of a template in JSON: a string, or a list of `{"name", "template"}`.
fn configured(file: &str, template: &Json) -> Result<Vec<(String, String)>> {
    let named = |entry: &Json| {
        Some((entry.get("name")?.as_str()?.into(), entry.get("template")?.as_str()?.into()))
    };
    let sources = match template {
        Json::String(source) => Some(vec![(DEFAULT.into(), source.clone())]),
        Json::Array(entries) => entries.iter().map(named).collect(),
        _ => None,
    };
    sources.ok_or_else(|| Error::Config {
        file: file.into(),
        field: "chat_template".into(),
        reason: "must be a string or a list of names and templates".into(),
    })
}

/// A message as JSON for a template: without nulls, with its reasoning under every name in use, and with the arguments
/// of calls as objects.
fn to_json(message: &Message) -> Result<Json> {
    let json = serde_json::to_value(message).map_err(|e| Error::Internal(e.to_string()))?;
    let Json::Object(mut fields) = json else { return Ok(json) };
    fields.retain(|_, value| !value.is_null());
    if let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() {
        if !fields.contains_key("thinking") {
            fields.shift_insert(0, "thinking".into(), reasoning.clone());
        }
        fields.insert("reasoning_content".into(), reasoning);
    }
    let calls = fields.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten();
    for call in calls {
        let call = if call.get("function").is_some() { &mut call["function"] } else { call };
        if let Some(arguments) = call.get_mut("arguments") {
            as_object(arguments);
        }
    }
    Ok(Json::Object(fields))
}

/// Replaces the JSON of an object by the object, and what is empty by an empty one.
fn as_object(arguments: &mut Json) {
    let parsed = match &*arguments {
        Json::Null => Some(Json::Object(Map::new())),
        Json::String(text) if text.trim().is_empty() => Some(Json::Object(Map::new())),
        Json::String(text) => serde_json::from_str(text).ok().filter(Json::is_object),
        _ => None,
    };
    if let Some(object) = parsed {
        *arguments = object;
    }
}

/// Renders with a mark at the end of the last message and truncates the text there.
fn continue_final(
    mut messages: Vec<Json>,
    source: &str,
    render: impl FnOnce(&[Json]) -> Result<Text>,
) -> Result<Text> {
    const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
    let mut last = messages.last_mut();
    let content = last.as_ref().and_then(|message| message.get("content"));
    // Without content the reasoning is continued, under all its names.
    let fields = if content.is_some() { &["content"][..] } else { &REASONING };
    if !fields.iter().any(|field| source.contains(field)) {
        let field = fields[0];
        return Err(refused(format!(
            "the template does not use `{field}`, which is to be continued"
        )));
    }
    let mut text = None;
    for field in fields {
        let value = last.as_mut().and_then(|message| message.get_mut(*field));
        let value = match value {
            Some(Json::Array(parts)) => {
                parts.iter_mut().rev().find_map(|part| part.get_mut("text"))
            }
            value => value,
        };
        if let Some(Json::String(value)) = value
            && text.as_ref().is_none_or(|text| text == value)
        {
            text = Some(value.clone());
            value.push_str(MARK);
        }
    }
    let Some(text) = text else {
        return Err(refused("the final message has no text to continue"));
    };
    let mut rendered = render(&messages)?;
    let whole = rendered.as_str();
    let mark = whole.rfind(MARK.trim_end()).filter(|_| whole.contains(text.trim()));
    let Some(mark) = mark else {
        return Err(refused("the template leaves out the final message, which is to be continued"));
    };
    let is_trimmed = !whole[mark..].starts_with(MARK);
    let end = if is_trimmed { whole[..mark].trim_end().len() } else { mark };
    rendered.truncate(end);
    Ok(rendered)
}

fn refused(reason: impl Into<String>) -> Error {
    Error::ChatTemplate { line: None, reason: reason.into() }
}

fn error(Failure { line, reason }: Failure) -> Error {
    Error::ChatTemplate { line, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::jinja::strftime;
    use serde_json::json;

    fn files(files: &[(&'static str, &str)]) -> Files {
        let leak = |text: &str| -> &'static [u8] { text.to_string().into_bytes().leak() };
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, leak(text))).collect();
        Files::Embedded(files.leak())
    }

    fn render(template: &ChatTemplate, options: TemplateOptions) -> Result<String> {
        template.render(&[Message::user("hi")], &options)
    }

    #[test]
    fn the_newest_kind_of_file_wins() {
        let config = r#"{"chat_template": "config {{ eos_token }}", "eos_token": "<end>"}"#;
        let legacy = r#"{"chat_template": "legacy {{ eos_token }}"}"#;
        let mut found = vec![("tokenizer_config.json", config)];
        for (more, expected) in [
            (("unrelated", ""), "config <end>"),
            (("chat_template.json", legacy), "legacy <end>"),
            (("chat_template.jinja", "file {{ eos_token }}"), "file <end>"),
        ] {
            found.push(more);
            let template = ChatTemplate::load(&files(&found)).unwrap().unwrap();
            assert_eq!(render(&template, TemplateOptions::default()).unwrap(), expected);
        }
        for none in [r#"{}"#, r#"{"chat_template": null}"#] {
            let files = files(&[("tokenizer_config.json", none)]);
            assert!(ChatTemplate::load(&files).unwrap().is_none());
        }
        let number = files(&[("tokenizer_config.json", r#"{"chat_template": 1}"#)]);
        assert!(matches!(ChatTemplate::load(&number), Err(Error::Config { .. })));
    }

    #[test]
    fn several_templates_have_names() {
        let config = json!({"chat_template": [
            {"name": "default", "template": "default"},
            {"name": "tool_use", "template": "{{ tools | length }} tools"},
            {"name": "rag", "template": "{{ documents | length }} documents"},
        ]});
        let files = files(&[("tokenizer_config.json", &config.to_string())]);
        let template = ChatTemplate::load(&files).unwrap().unwrap();
        let named = |name: Option<&str>, tools: &[Json]| {
            let variables = Map::from_iter([("documents".to_string(), json!([1, 2]))]);
            let (name, tools) = (name.map(String::from), tools.to_vec());
            let options = TemplateOptions::default().name(name).tools(tools).variables(variables);
            render(&template, options)
        };
        assert_eq!(named(None, &[]).unwrap(), "default");
        assert_eq!(named(None, &[json!({})]).unwrap(), "1 tools");
        assert_eq!(named(Some("rag"), &[json!({})]).unwrap(), "2 documents");
        let message = named(Some("other"), &[]).unwrap_err().to_string();
        let expected = "the checkpoint has no template `other`; it has default, rag, tool_use";
        assert_eq!(message, format!("chat template: {expected}"));
    }

    #[test]
    fn a_folder_has_templates_by_name() {
        let in_program = files(&[
            ("chat_template.jinja", "default"),
            ("additional_chat_templates/tool_use.jinja", "{{ tools | length }} tools"),
            ("additional_chat_templates/brief.jinja", "brief"),
            ("additional_chat_templates/readme.md", "{% if %}"),
        ]);
        let folder = std::env::temp_dir().join(format!("mynah-templates-{}", std::process::id()));
        let Files::Embedded(contents) = &in_program else { unreachable!() };
        std::fs::create_dir_all(folder.join(NAMED)).unwrap();
        for (name, content) in *contents {
            std::fs::write(folder.join(name), content).unwrap();
        }
        for files in [in_program.clone(), Files::Directory(folder.clone())] {
            let template = ChatTemplate::load(&files).unwrap().unwrap();
            let named = |name: Option<&str>, tools: Vec<Json>| {
                let name = name.map(String::from);
                render(&template, TemplateOptions::default().name(name).tools(tools))
            };
            assert_eq!(named(None, vec![]).unwrap(), "default");
            assert_eq!(named(None, vec![json!({})]).unwrap(), "1 tools");
            assert_eq!(named(Some("brief"), vec![json!({})]).unwrap(), "brief");
            let message = named(Some("readme"), vec![]).unwrap_err().to_string();
            assert!(message.ends_with("it has brief, default, tool_use"), "{message}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_config_may_name_a_type() {
        let load = |name: &str| {
            let config = json!({"chat_template_type": name, "chat_template": "own"}).to_string();
            ChatTemplate::load(&files(&[("tokenizer_config.json", &config)]))
        };
        let template = load("deepseek_v32").unwrap().unwrap();
        let rendered = render(&template, TemplateOptions::default()).unwrap();
        assert_eq!(rendered, "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜><think>");
        let message = load("other").unwrap_err().to_string();
        let expected = "`chat_template_type`: the type `other` is not supported";
        assert_eq!(message, format!("tokenizer_config.json: {expected}"));
    }

    #[test]
    fn a_role_that_the_template_passes_over_is_an_error() {
        let picky =
            "{% for m in messages if m.role in ['user', 'critic'] %}{{ m.content }}{% endfor %}";
        let template = ChatTemplate::from_source(picky).unwrap();
        let talk = |role: &str| {
            let messages = [Message::user("hi"), Message::new(role, " Once. ")];
            template.render(&messages, &TemplateOptions::default())
        };
        assert_eq!(talk("critic").unwrap(), "hi Once. ");
        assert_eq!(talk("assistant").unwrap(), "hi");
        let error = talk("narrator").unwrap_err();
        assert!(matches!(&error, Error::UnknownRole(role) if role == "narrator"), "{error}");
    }

    #[test]
    fn the_clock_is_that_of_the_system() {
        let template = ChatTemplate::from_source("{{ strftime_now('%F %R') }}").unwrap();
        let now = || Zoned::now().strftime("%F %R").to_string();
        let before = now();
        let rendered = render(&template, TemplateOptions::default()).unwrap();
        assert!([before, now()].contains(&rendered), "{rendered}");
    }

    #[test]
    fn errors_name_the_line() {
        let parse = ChatTemplate::from_source("\n{% generation %}\n{{ 1 + }}").unwrap_err();
        assert!(matches!(parse, Error::ChatTemplate { line: Some(3), .. }), "{parse}");
        let raising = "\n{%- if true %}\n{{ raise_exception('Only \"one\" turn!') }}{% endif %}";
        let template = ChatTemplate::from_source(raising).unwrap();
        let message = render(&template, TemplateOptions::default()).unwrap_err().to_string();
        assert_eq!(message, "chat template, line 3: Only \"one\" turn!");
        let empty = template.render(&[], &TemplateOptions::default()).unwrap_err().to_string();
        assert_eq!(empty, "chat template: there are no messages");
    }

    #[test]
    fn messages_keep_what_they_do_not_know() {
        let json = json!({"role": "user", "content": [{"type": "image", "url": "x"}], "weight": 1});
        let message: Message = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&message).unwrap(), json);
        let odd = json!({"role": "tool", "content": {"rain": true}});
        let message: Message = serde_json::from_value(odd.clone()).unwrap();
        assert_eq!(serde_json::to_value(&message).unwrap(), odd);
    }

    #[test]
    fn hostile_templates_are_errors() {
        let nested = format!("{{{{ {} }}}}", "'%s' % (".repeat(50_000));
        let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        let deep = "{% set ns = namespace(x=[]) %}{% for i in range(500) %}{% set ns.x = [ns.x] %}\
                    {% endfor %}{{ ns.x | tojson }}";
        let endless = "{% for i in range(99999) %}{% for i in range(99999) %}{{ '' }}{% endfor %}\
                       {% endfor %}";
        for source in [
            &nested,
            recursive,
            deep,
            endless,
            "{% raw %}",
            "{{ 'x",
            "{#",
            "{{ 'a' * 1000000000000 }}",
            "{{ '%1000000000000d' % 1 }}",
            "{{ '%*d' % (1000000000000, 1) }}",
            "{{ '%.1000000000000f' | format(1) }}",
            "{{ '{:>1000000000000}'.format(1) }}",
            "{{ '{:>{}}'.format(1, 1000000000000) }}",
            "{{ 'a' | indent(1000000000000, true) }}",
            "{{ 'a' | indent(width=1000000000000, first=true) }}",
            "{{ 'a'.center(1000000000000) }}",
            "{{ [1] | batch(1000000000000, 0) | list }}",
            "{{ [1] | slice(1000000000000) | list }}",
            "{{ range(1000000000000) | list }}",
            "{{ 9 ** 9 ** 9 ** 9 }}",
        ] {
            let rendered = ChatTemplate::from_source(source)
                .and_then(|template| render(&template, TemplateOptions::default()));
            assert!(matches!(rendered, Err(Error::ChatTemplate { .. })), "{rendered:?}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "Thursday 1970-01-01 001"),
            (-1, "Wednesday 1969-12-31 365"),
            (951_782_400, "Tuesday 2000-02-29 060"),
            (4_107_542_400, "Monday 2100-03-01 060"),
            (1_798_675_200, "Thursday 2026-12-31 365"),
        ] {
            assert_eq!(strftime("%A %F %j", local_time(seconds)), expected);
        }
    }

    /// What `datetime(2026, 1, 5, 15, 4, 9).strftime` of Python 3 writes in the C locale.
    #[test]
    fn formats_of_time_are_those_of_python() {
        let time = jiff::civil::date(2026, 1, 5).at(15, 4, 9, 0);
        for (pattern, expected) in [
            ("%Y %y %m %d %H %I %M %S %p", "2026 26 01 05 15 03 04 09 PM"),
            ("%-d %-m %-H %-I %-M %-S %-j %-y", "5 1 15 3 4 9 5 26"),
            ("%a %A %b %B %h %j %u %w %U %W %e", "Mon Monday Jan January Jan 005 1 1 01 01  5"),
            ("%F %T %R %D", "2026-01-05 15:04:09 15:04 01/05/26"),
            ("%c|%x|%X", "Mon Jan  5 15:04:09 2026|01/05/26|15:04:09"),
            ("%f|%z|%Z|%%|%n|%t|", "000000|||%|\n|\t|"),
            ("é %d, ü", "é 05, ü"),
            ("", ""),
            ("%", "%"),
            ("%d %", "05 %"),
            ("%-", "%-"),
            ("100%!", "100%!"),
            ("%%d %d", "%d 05"),
        ] {
            assert_eq!(strftime(pattern, time), expected, "{pattern:?}");
        }
        for time in [DateTime::MIN, DateTime::MAX] {
            assert!(!strftime("%c %U %j", time).is_empty());
        }
    }

    fn local_time(seconds: i64) -> DateTime {
        let time = jiff::Timestamp::from_second(seconds).unwrap();
        jiff::tz::Offset::UTC.to_datetime(time)
    }

    /// What transformers renders for the same templates, or the error that a template raises.
    #[test]
    fn renders_as_transformers_does() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/templates.json");
        let fixture: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let (mut failures, mut layouts) = (Vec::new(), 0);
        let (cases, types) = (&fixture["cases"], &fixture["types"]);
        let typed = types.as_array().unwrap().iter().map(|case| (case, true));
        for (case, typed) in cases.as_array().unwrap().iter().map(|case| (case, false)).chain(typed)
        {
            let name = case["template"].as_str().unwrap();
            let source = fixture["families"].get(name).and_then(Json::as_str).unwrap_or(name);
            let template = if typed {
                let config = json!({"chat_template_type": name}).to_string();
                ChatTemplate::load(&files(&[("tokenizer_config.json", &config)]))
                    .map(Option::unwrap)
            } else {
                ChatTemplate::from_source(source)
            };
            let conversation = &fixture["conversations"][case["conversation"].as_str().unwrap()];
            let messages: Vec<Message> = serde_json::from_value(conversation.clone()).unwrap();
            let given = |option: &str| case["options"].get(option);
            let flag = |option: &str| given(option).and_then(Json::as_bool);
            let tools = if flag("tools") == Some(true) { &fixture["tools"] } else { &json!([]) };
            let mut variables = json!({"bos_token": "<s>", "eos_token": "</s>"});
            let more = given("variables").and_then(Json::as_object).cloned().unwrap_or_default();
            variables.as_object_mut().unwrap().extend(more);
            let options = TemplateOptions {
                add_generation_prompt: flag("add_generation_prompt").unwrap_or(true),
                continue_final_message: flag("continue_final_message").unwrap_or(false),
                sanitize_control_tokens: true,
                tools: tools.as_array().unwrap().clone(),
                variables: variables.as_object().unwrap().clone(),
                name: None,
                local_time: fixture["local_time"].as_i64().map(local_time),
            };
            if let Ok(template) = &template {
                layouts += usize::from(check_layout(template, &messages, &options));
            }
            let rendered = template.and_then(|template| template.render(&messages, &options));
            let as_expected = match &rendered {
                Ok(text) => case["expected"] == text.as_str(),
                Err(Error::ChatTemplate { reason, .. }) if case["raised"] == true => {
                    case["error"] == reason.as_str()
                }
                Err(_) => case["error"].is_string(),
            };
            if !as_expected {
                failures.push(format!("{case:#}\n{rendered:#?}"));
            }
        }
        assert!(failures.is_empty(), "{}\n{}", failures.join("\n\n"), failures.len());
        assert!(layouts > 60, "only {layouts} cases have a layout");
    }

    /// Whether a case has a layout and is a question, which begins with its prefix and ends with its
    /// header.
    fn check_layout(
        template: &ChatTemplate,
        messages: &[Message],
        options: &TemplateOptions,
    ) -> bool {
        let end = messages.iter().position(|message| message.role == "user");
        let opening = &messages[..end.unwrap_or(messages.len())];
        let (Ok(layout), Ok(text)) =
            (Layout::of(template, opening, options), template.render(messages, options))
        else {
            return false;
        };
        let is_question = messages.last().is_some_and(|last| last.role == "user");
        if !is_question || options.continue_final_message {
            return false;
        }
        assert!(
            text.ends_with(layout.header.as_str()),
            "{text:?} does not end with {:?}",
            layout.header
        );
        assert!(options.add_generation_prompt || layout.header.as_str().is_empty());
        // Some templates put the opening messages before the last question.
        if !opening.is_empty() && messages.len() == opening.len() + 1 {
            assert!(text.starts_with(layout.prefix.as_str()), "{text:?} and {:?}", layout.prefix);
        }
        true
    }

    #[test]
    fn a_layout_is_the_shared_prefix_and_the_header_of_the_answer() {
        let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";
        let template = ChatTemplate::from_source(template).unwrap();
        let opening = [Message::system("Be brief.")];
        let options = TemplateOptions::default();
        let layout = Layout::of(&template, &opening, &options).unwrap();
        assert_eq!(layout.prefix.as_str(), "<system>Be brief.</><user>");
        assert_eq!(layout.header.as_str(), "<assistant>");
        let unprompted = options.add_generation_prompt(false);
        assert_eq!(Layout::of(&template, &[], &unprompted).unwrap().header.as_str(), "");
        let first = ChatTemplate::from_source("{{ add_generation_prompt }}{{ messages }}").unwrap();
        assert_eq!(
            Layout::of(&first, &[], &TemplateOptions::default()).unwrap().header.as_str(),
            ""
        );
        let picky = ChatTemplate::from_source("{{ raise_exception('no') }}").unwrap();
        assert!(Layout::of(&picky, &[], &TemplateOptions::default()).is_err());
    }
}
