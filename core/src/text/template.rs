//! Chat templates: a conversation as the text that its model was trained on.
//!
//! The reference is `apply_chat_template` of transformers 5.

use super::tokenizer::Config;
use super::{Tokenizer, python};
use crate::error::{Error, Result};
use crate::files::Files;
use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// One message of a conversation, in the shape of the OpenAI API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The name of the speaker or of the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the assistant thought before it spoke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The calls that the assistant makes: `{"type": "function", "function": {"name", "arguments"}}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<Json>>,
    /// The call that a tool answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Every other key, as the template will see it.
    #[serde(flatten)]
    pub other: Map<String, Json>,
}

/// Text, or text between media.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Text and media in their order.
    Parts(Vec<Part>),
    /// Anything else, as the template will see it.
    Other(Json),
}

/// One part of a [`Content`], such as `{"type": "text", "text": "…"}` or `{"type": "image"}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// `text`, `image`, `audio`, `video`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a text part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Every other key, as the template will see it.
    #[serde(flatten)]
    pub other: Map<String, Json>,
}

impl Message {
    /// A message with text.
    pub fn new(role: &str, text: &str) -> Self {
        let content = Some(Content::Text(text.into()));
        Message { role: role.into(), content, ..Default::default() }
    }

    /// Instructions for the whole conversation.
    pub fn system(text: &str) -> Self {
        Message::new("system", text)
    }

    /// What the user says.
    pub fn user(text: &str) -> Self {
        Message::new("user", text)
    }

    /// What the assistant said.
    pub fn assistant(text: &str) -> Self {
        Message::new("assistant", text)
    }
}

/// How to render a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateOptions {
    /// End with the header of an assistant's message, so that the model answers. On by default.
    pub add_generation_prompt: bool,
    /// End inside of the last message, so that the model goes on with it. This turns
    /// `add_generation_prompt` off.
    pub continue_final_message: bool,
    /// JSON schemas of the functions that the model may call; an empty list means no tools.
    pub tools: Vec<Json>,
    /// More variables for the template, such as `enable_thinking` or `reasoning_effort`. They
    /// replace special tokens of the same name.
    pub variables: Map<String, Json>,
    /// Which of several templates, such as `rag`. By default `tool_use` when there are tools,
    /// otherwise `default`.
    pub name: Option<String>,
    /// Seconds since 1970-01-01 00:00 on the clock of the user's time zone, for templates that
    /// write the date. By default the clock of the system, in UTC.
    pub local_time: Option<i64>,
}

impl Default for TemplateOptions {
    fn default() -> Self {
        TemplateOptions {
            add_generation_prompt: true,
            continue_final_message: false,
            tools: Vec::new(),
            variables: Map::new(),
            name: None,
            local_time: None,
        }
    }
}

/// The chat template of a checkpoint, or several with names. Clones share them.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    special_tokens: Map<String, Json>,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, or else `chat_template.json`, or else `chat_template` in
    /// `tokenizer_config.json`, and the special tokens that templates name.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when it does not parse, [`Error::Config`] when it is no template,
    /// [`Error::Io`].
    pub fn load(files: &Files) -> Result<Option<Self>> {
        let config = Config::load(files)?;
        let mut sources = source_files(files)?;
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

    /// Parses one template, which sees no special tokens but those in
    /// [`TemplateOptions::variables`] and of [`with_special_tokens`](Self::with_special_tokens).
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when it does not parse.
    pub fn from_source(source: &str) -> Result<Self> {
        Self::new(vec![(DEFAULT.into(), source.into())], Map::new())
    }

    /// Shows the template the special tokens of a tokenizer, such as `bos_token`.
    #[must_use]
    pub fn with_special_tokens(mut self, tokenizer: &Tokenizer) -> Self {
        self.special_tokens = tokenizer.special_tokens().clone();
        self
    }

    fn new(sources: Vec<(String, String)>, special_tokens: Map<String, Json>) -> Result<Self> {
        let mut environment = python::environment();
        for (name, source) in sources {
            environment.add_template_owned(name, python::translate(&source)).map_err(error)?;
        }
        Ok(ChatTemplate { environment: Arc::new(environment), special_tokens })
    }

    /// The text of a conversation. It holds its special tokens: encode it without adding any.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when the template raises one or cannot render these messages.
    pub fn render(&self, messages: &[Message], options: &TemplateOptions) -> Result<String> {
        if messages.is_empty() {
            return Err(refused("there are no messages"));
        }
        let template = self.select(options)?;
        let messages = messages.iter().map(visible).collect::<Result<Vec<_>>>()?;
        if options.continue_final_message {
            return continue_final(messages, template.source(), |messages| {
                template.render(self.variables(messages, false, options)).map_err(error)
            });
        }
        let variables = self.variables(&messages, options.add_generation_prompt, options);
        template.render(variables).map_err(error)
    }

    fn select(&self, options: &TemplateOptions) -> Result<minijinja::Template<'_, '_>> {
        let has = |name: &str| self.environment.get_template(name).is_ok();
        let name = match &options.name {
            Some(name) => name,
            None if !options.tools.is_empty() && has(TOOL_USE) => TOOL_USE,
            None => DEFAULT,
        };
        self.environment.get_template(name).map_err(|_| {
            let mut names: Vec<_> = self.environment.templates().map(|(name, _)| name).collect();
            names.sort_unstable();
            refused(format!("there is no template `{name}`, only {}", names.join(", ")))
        })
    }

    fn variables(&self, messages: &[Json], prompt: bool, options: &TemplateOptions) -> Value {
        let mut variables = BTreeMap::from([("documents".to_string(), Value::from(()))]);
        for (name, value) in self.special_tokens.iter().chain(&options.variables) {
            variables.insert(name.clone(), Value::from(Serde(value)));
        }
        let tools = Some(&options.tools).filter(|tools| !tools.is_empty());
        variables.insert("messages".into(), Value::from(Serde(messages)));
        variables.insert("tools".into(), Value::from(Serde(tools)));
        variables.insert("add_generation_prompt".into(), prompt.into());
        let now = options.local_time.unwrap_or_else(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            since.as_secs() as i64
        });
        let strftime = move |pattern: &str| python::strftime(pattern, now);
        variables.insert("strftime_now".into(), Value::from_function(strftime));
        Value::from(variables)
    }
}

/// `chat_template.jinja`, and the named ones beside it.
fn source_files(files: &Files) -> Result<Vec<(String, String)>> {
    let mut sources = Vec::new();
    for (name, path) in [
        (DEFAULT, "chat_template.jinja"),
        (TOOL_USE, "additional_chat_templates/tool_use.jinja"),
        ("rag", "additional_chat_templates/rag.jinja"),
    ] {
        if let Some(bytes) = files.read(path)? {
            let source = String::from_utf8(bytes.into_owned());
            let source = source.map_err(|_| refused(format!("{path} is not UTF-8")))?;
            sources.push((name.to_string(), source));
        }
    }
    Ok(sources)
}

/// A template as JSON: a string, or a list of `{"name", "template"}`.
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
        reason: "neither a string nor a list of names and templates".into(),
    })
}

/// A message as templates see it: without nulls, and its reasoning under every name that is used.
fn visible(message: &Message) -> Result<Json> {
    let json = serde_json::to_value(message).map_err(|e| Error::Internal(e.to_string()))?;
    let Json::Object(mut fields) = json else { return Ok(json) };
    fields.retain(|_, value| !value.is_null());
    let names = ["reasoning_content", "thinking", "reasoning"];
    if let Some(reasoning) = names.iter().find_map(|name| fields.get(*name)).cloned() {
        if !fields.contains_key("thinking") {
            fields.shift_insert(0, "thinking".into(), reasoning.clone());
        }
        fields.insert("reasoning_content".into(), reasoning);
    }
    Ok(Json::Object(fields))
}

/// Marks the end of the last message, renders, and cuts there.
fn continue_final(
    mut messages: Vec<Json>,
    source: &str,
    render: impl FnOnce(&[Json]) -> Result<String>,
) -> Result<String> {
    const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
    if !source.contains("content") {
        return Err(refused("the template does not use `content`, which is to be continued"));
    }
    let content = messages.last_mut().and_then(|message| message.get_mut("content"));
    let text = match content {
        Some(Json::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        content => content,
    };
    let Some(Json::String(text)) = text else {
        return Err(refused("the final message has no text to continue"));
    };
    let last = text.trim().to_string();
    text.push_str(MARK);
    let mut rendered = render(&messages)?;
    let mark = rendered.rfind(MARK.trim_end()).filter(|_| rendered.contains(&last));
    let Some(mark) = mark else {
        return Err(refused("the template leaves out the final message, which is to be continued"));
    };
    let trimmed = !rendered[mark..].starts_with(MARK);
    rendered.truncate(mark);
    if trimmed {
        rendered.truncate(rendered.trim_end().len());
    }
    Ok(rendered)
}

fn refused(reason: impl Into<String>) -> Error {
    Error::ChatTemplate { line: None, reason: reason.into() }
}

fn error(error: minijinja::Error) -> Error {
    let reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    Error::ChatTemplate { line: error.line(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            render(&template, TemplateOptions { name, tools, variables, ..Default::default() })
        };
        assert_eq!(named(None, &[]).unwrap(), "default");
        assert_eq!(named(None, &[json!({})]).unwrap(), "1 tools");
        assert_eq!(named(Some("rag"), &[json!({})]).unwrap(), "2 documents");
        let message = named(Some("other"), &[]).unwrap_err().to_string();
        let expected = "there is no template `other`, only default, rag, tool_use";
        assert_eq!(message, format!("chat template: {expected}"));
    }

    #[test]
    fn errors_name_the_line() {
        let parse = ChatTemplate::from_source("\n{% generation %}\n{{ 1 + }}").unwrap_err();
        assert!(matches!(parse, Error::ChatTemplate { line: Some(3), .. }), "{parse}");
        let raising = "\n{%- if true %}\n{{ raise_exception('Only \"one\" turn!') }}{% endif %}";
        let template = ChatTemplate::from_source(raising).unwrap();
        let message = render(&template, TemplateOptions::default()).unwrap_err().to_string();
        assert_eq!(message, "chat template, line 3: Only \"one\" turn!");
        let nobody = template.render(&[], &TemplateOptions::default()).unwrap_err().to_string();
        assert_eq!(nobody, "chat template: there are no messages");
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
        for source in [&nested, recursive, deep, "{{ '7'.zfill(-1) }}", "{% raw %}", "{{ 'x", "{#"]
        {
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
            assert_eq!(python::strftime("%A %F %j", seconds), expected);
        }
        assert_eq!(python::strftime("%", i64::MAX) + &python::strftime("%-", i64::MIN), "%%-");
    }

    /// What transformers renders for the same templates, or the error that a template raises.
    #[test]
    fn renders_as_transformers_does() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/templates.json");
        let fixture: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut failures = Vec::new();
        for case in fixture["cases"].as_array().unwrap() {
            let name = case["template"].as_str().unwrap();
            let source = fixture["families"].get(name).and_then(Json::as_str).unwrap_or(name);
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
                tools: tools.as_array().unwrap().clone(),
                variables: variables.as_object().unwrap().clone(),
                name: None,
                local_time: fixture["local_time"].as_i64(),
            };
            let rendered =
                ChatTemplate::from_source(source).and_then(|t| t.render(&messages, &options));
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
    }
}
