//! Calls of tools, as they are read from an answer.

use crate::answer::Toolbox;
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

/// The longest call in bytes. What a model writes beyond it is left out.
pub(super) const LONGEST_CALL: usize = 1 << 20;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Reasoning(String),
    Text(String),
    CallDelta(ToolCallDelta),
    Call(ToolCall),
    Rejected(RejectedToolCall),
}

/// A call of a tool, whose arguments fit the schema of the tool.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ToolCall {
    /// The id that the message with the result repeats.
    pub id: String,
    /// The name of the tool.
    pub name: String,
    /// The arguments by name.
    pub arguments: Map<String, Json>,
}

/// A part of the arguments of a call that is being written. The parts of one call join to the JSON
/// text of its arguments.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ToolCallDelta {
    /// The number of calls before this one in the answer.
    pub index: usize,
    /// The name of the tool.
    pub name: String,
    /// The next part of the JSON text; empty when the call begins.
    pub arguments: String,
}

/// What a model wrote as a call, and what is not one.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RejectedToolCall {
    /// The name of the tool, if the model wrote one.
    pub name: Option<String>,
    /// The text of the model.
    pub raw: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ToolCall {
    /// A call with these arguments.
    pub fn new(
        id: impl Into<String>,
        name: impl Into<String>,
        arguments: Map<String, Json>,
    ) -> Self {
        ToolCall { id: id.into(), name: name.into(), arguments }
    }

    /// The call as [`Message::tool_calls`](crate::Message::tool_calls) holds it.
    pub fn to_json(&self) -> Json {
        let function = json!({"name": self.name, "arguments": self.arguments});
        json!({"id": self.id, "type": "function", "function": function})
    }
}

/// A call of which a part was read.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub name: Option<String>,
    pub id: Option<String>,
    /// The JSON text of the arguments so far.
    pub arguments: String,
    /// How much of the JSON text was given out, once a delta has announced the call.
    given: Option<usize>,
}

impl Draft {
    /// A call whose name comes before its arguments.
    pub fn named(name: &str) -> Self {
        Draft { name: Some(name.to_string()), ..Draft::default() }
    }

    /// The arguments that were not given out yet, if the call is of a tool that exists.
    pub fn delta(&mut self, index: usize, tools: &Toolbox) -> Option<ToolCallDelta> {
        let name = self.name.as_ref().filter(|name| tools.schema(name).is_some())?;
        let new = &self.arguments[self.given.unwrap_or(0)..];
        if self.given.is_some() && new.is_empty() {
            return None;
        }
        let delta = ToolCallDelta { index, name: name.clone(), arguments: new.to_string() };
        self.given = Some(self.arguments.len());
        Some(delta)
    }

    /// The finished call, or what is wrong with it.
    pub fn finish(&self, tools: &Toolbox) -> Result<(String, Map<String, Json>), String> {
        let name = self.name.as_deref().filter(|name| !name.is_empty());
        let name = name.ok_or("the call names no tool")?;
        let text = Some(self.arguments.trim()).filter(|text| !text.is_empty()).unwrap_or("{}");
        let arguments = serde_json::from_str(text)
            .map_err(|error| format!("the arguments are no JSON: {error}"))?;
        let Json::Object(arguments) = arguments else {
            return Err("the arguments are no JSON object".into());
        };
        tools.check(name, &arguments)?;
        Ok((name.to_string(), arguments))
    }
}
