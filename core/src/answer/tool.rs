//! The tools that a model may call.

use crate::answer::schema::{self, Subschema};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

/// The longest definitions of all tools in bytes of JSON.
const LONGEST: usize = 1_000_000;

/// A function that a model may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// The name: letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// What the tool does and when to call it, for the model.
    #[serde(default)]
    pub description: String,
    /// The JSON schema of the arguments, an object.
    #[serde(default = "no_parameters")]
    pub parameters: Json,
}

/// Whether a model calls tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// The model learns of no tool and calls none.
    None,
    /// The model calls one tool or more.
    Required,
    /// The model calls this tool.
    Named(String),
}

impl Tool {
    /// A tool with a name, a description and the JSON schema of its arguments.
    pub fn new(name: impl Into<String>, description: impl Into<String>, parameters: Json) -> Self {
        Tool { name: name.into(), description: description.into(), parameters }
    }

    /// The tool as [`TemplateOptions::tools`](crate::TemplateOptions::tools) holds it.
    pub fn to_json(&self) -> Json {
        json!({"type": "function", "function": self})
    }
}

impl From<Tool> for Json {
    fn from(tool: Tool) -> Self {
        tool.to_json()
    }
}

fn no_parameters() -> Json {
    json!({"type": "object", "properties": {}})
}

/// The tools of one request, whose definitions were checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Toolbox(Vec<Tool>);

impl Toolbox {
    /// Checks definitions of tools in the shape of the OpenAI API, with or without the outer
    /// `{"type": "function", "function": …}`.
    ///
    /// # Errors
    /// [`Error::Tool`] for a definition without a name, a name that occurs twice, or a schema that is
    /// none.
    pub fn new(definitions: &[Json]) -> Result<Self> {
        let refused = |name: &str, reason: String| Error::Tool { name: name.into(), reason };
        let mut tools: Vec<Tool> = Vec::new();
        let mut length = 0;
        for (index, definition) in definitions.iter().enumerate() {
            let function = definition.get("function").unwrap_or(definition);
            let name = function.get("name").and_then(Json::as_str).unwrap_or_default();
            let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            if name.is_empty() || name.len() > 128 || !name.chars().all(allowed) {
                let reason = "has no `name` of letters, digits, `_`, `-` and `.`".to_string();
                return Err(refused(&format!("{name} (number {})", index + 1), reason));
            }
            if tools.iter().any(|tool| tool.name == name) {
                return Err(refused(name, "has the name of another tool".into()));
            }
            let described = function.get("description").and_then(Json::as_str);
            let mut parameters = function.get("parameters").cloned().unwrap_or(Json::Null);
            if parameters.as_object().is_none_or(Map::is_empty) && !parameters.is_boolean() {
                let is_absent = parameters.is_null() || parameters.is_object();
                parameters = if is_absent { no_parameters() } else { parameters };
            }
            length += definition.to_string().len();
            if length > LONGEST {
                let reason = format!("the tools take more than {LONGEST} bytes; pass fewer");
                return Err(refused(name, reason));
            }
            schema::check_schema(&parameters)
                .map_err(|reason| refused(name, format!("has no valid `parameters`: {reason}")))?;
            if !schema::admits(&parameters, "object") {
                return Err(refused(
                    name,
                    "has `parameters` that are no schema of an object".into(),
                ));
            }
            tools.push(Tool::new(name, described.unwrap_or_default(), parameters));
        }
        Ok(Toolbox(tools))
    }

    /// The tools.
    pub fn iter(&self) -> impl Iterator<Item = &Tool> {
        self.0.iter()
    }

    /// The schema of the arguments of a tool.
    pub fn schema(&self, name: &str) -> Option<&Json> {
        self.0.iter().find(|tool| tool.name == name).map(|tool| &tool.parameters)
    }

    /// The schema of one argument of a tool.
    pub(super) fn argument(&self, name: &str, argument: &str) -> Option<Subschema<'_>> {
        let root = self.schema(name)?;
        Some(Subschema { schema: schema::property(root, argument, root)?, root })
    }

    /// Checks the arguments of a call.
    pub fn check(&self, name: &str, arguments: &Map<String, Json>) -> Result<(), String> {
        let Some(schema) = self.schema(name) else {
            let names: Vec<_> = self.0.iter().map(|tool| tool.name.as_str()).collect();
            return Err(format!("there is no tool `{name}`; there are {}", names.join(", ")));
        };
        schema::check(&Json::Object(arguments.clone()), schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_checked_before_they_are_used() {
        let tool = |name: &str, parameters: Json| Tool::new(name, "", parameters).to_json();
        let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
        let toolbox = Toolbox::new(&[tool("a", schema.clone()), json!({"name": "b"})]).unwrap();
        assert_eq!(toolbox.schema("b"), Some(&no_parameters()));
        for (tools, expected) in [
            (vec![tool("a", schema.clone()), tool("a", schema.clone())], "name of another"),
            (vec![tool("a b", schema.clone())], "has no `name`"),
            (vec![json!({"type": "function"})], "number 1"),
            (vec![tool("a", json!([]))], "`parameters`"),
            (vec![tool("a", json!("object"))], "`parameters`"),
            (vec![tool("a", json!({"type": "objekt"}))], "`type`"),
            (vec![tool("a", json!({"type": "string"}))], "schema of an object"),
            (vec![tool("a", json!({"properties": {"x": {"$ref": "#/$defs/no"}}}))], "`$ref`"),
            (vec![tool("a", json!({"$ref": "#"}))], "refers to itself"),
            (vec![tool("a", json!({"description": "x".repeat(LONGEST)}))], "bytes"),
        ] {
            let message = Toolbox::new(&tools).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
