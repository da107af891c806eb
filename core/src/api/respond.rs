//! Answers that call tools: the model asks for calls, the application's functions run, and their results
//! go back to the model until it answers.

use crate::{
    answer::{RejectedToolCall, Tool, ToolCall, ToolChoice},
    api::{prompt::Prompt, session::Session},
    engine::{Answer, Event},
    error::Result,
    generate::GenerateOptions,
    text::{Message, TemplateOptions},
};
use serde_json::{Map, Value as Json};
use std::{
    error,
    future::poll_fn,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// A future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a tool failed. The model reads it.
pub type ToolError = Box<dyn error::Error + Send + Sync>;

/// A function of the application that a model may call.
pub trait CallTool: Send + Sync {
    /// The name, the description and the schema of the arguments.
    fn tool(&self) -> &Tool;

    /// Calls the function with arguments that fit the schema. The model reads the result: a string as
    /// it is, any other value as JSON.
    fn call(&self, arguments: Map<String, Json>) -> BoxFuture<'_, Result<Json, ToolError>>;
}

/// A tool that is a closure.
struct Closure<F> {
    tool: Tool,
    call: F,
}

impl<F, R> CallTool for Closure<F>
where
    F: Fn(Map<String, Json>) -> R + Send + Sync,
    R: Future<Output = Result<Json, ToolError>> + Send + 'static,
{
    fn tool(&self) -> &Tool {
        &self.tool
    }

    fn call(&self, arguments: Map<String, Json>) -> BoxFuture<'_, Result<Json, ToolError>> {
        Box::pin((self.call)(arguments))
    }
}

/// Decides whether a call may run.
type Approve = dyn Fn(ToolCall) -> BoxFuture<'static, bool> + Send + Sync;

/// The tools of [`Session::respond`].
///
/// ```
/// use mynah::{Tool, Tools};
/// use serde_json::json;
///
/// let add = Tool::new("add", "Adds two numbers.", json!({
///     "type": "object",
///     "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
///     "required": ["a", "b"],
/// }));
/// let tools = Tools::new().with(add, |arguments| async move {
///     let number = |name: &str| arguments[name].as_f64().unwrap_or(0.0);
///     Ok(json!(number("a") + number("b")))
/// });
/// ```
#[derive(Clone)]
pub struct Tools {
    tools: Vec<Arc<dyn CallTool>>,
    approve: Option<Arc<Approve>>,
    max_rounds: usize,
}

impl Default for Tools {
    fn default() -> Self {
        Tools { tools: Vec::new(), approve: None, max_rounds: 8 }
    }
}

impl Tools {
    /// No tools.
    pub fn new() -> Self {
        Tools::default()
    }

    /// Adds a tool.
    #[must_use]
    pub fn with_tool(mut self, tool: impl CallTool + 'static) -> Self {
        self.tools.push(Arc::new(tool));
        self
    }

    /// Adds a tool that is a closure.
    #[must_use]
    pub fn with<R>(
        self,
        tool: Tool,
        call: impl Fn(Map<String, Json>) -> R + Send + Sync + 'static,
    ) -> Self
    where
        R: Future<Output = Result<Json, ToolError>> + Send + 'static,
    {
        self.with_tool(Closure { tool, call })
    }

    /// Asks before each call whether it may run. The model learns of a refusal.
    #[must_use]
    pub fn approve<R>(mut self, approve: impl Fn(ToolCall) -> R + Send + Sync + 'static) -> Self
    where
        R: Future<Output = bool> + Send + 'static,
    {
        self.approve = Some(Arc::new(move |call| Box::pin(approve(call))));
        self
    }

    /// How often results may go back to the model; by default 8 times. The calls of the answer after
    /// that are not run.
    #[must_use]
    pub fn max_rounds(mut self, rounds: usize) -> Self {
        self.max_rounds = rounds;
        self
    }

    /// Runs a call. A failure becomes a result that the model reads.
    async fn run(&self, call: &ToolCall) -> ToolResult {
        let result = |text: String, is_error| ToolResult { call: call.clone(), text, is_error };
        if let Some(approve) = &self.approve
            && !approve(call.clone()).await
        {
            return result("Error: the user did not allow this call.".into(), true);
        }
        let Some(tool) = self.tools.iter().find(|tool| tool.tool().name == call.name) else {
            return result(format!("Error: there is no tool `{}`.", call.name), true);
        };
        match tool.call(call.arguments.clone()).await {
            Ok(Json::String(text)) => result(text, false),
            Ok(value) => result(value.to_string(), false),
            Err(error) => result(format!("Error: {error}"), true),
        }
    }
}

/// The result of a call.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ToolResult {
    /// The call.
    pub call: ToolCall,
    /// What the model reads.
    pub text: String,
    /// Whether the tool failed, or the call was refused.
    pub is_error: bool,
}

/// What happens during [`Session::respond`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RespondEvent {
    /// An event of a generation.
    Generation(Event),
    /// The result of a call, before it goes back to the model.
    ToolResult(ToolResult),
}

/// The answer of [`Session::respond`].
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Response {
    /// The last answer. It has calls only where [`Tools::max_rounds`] left them.
    pub answer: Answer,
    /// The messages that the transcript gains: answers with calls, results, and the last answer.
    pub messages: Vec<Message>,
}

impl Session {
    /// Answers a conversation, and calls the tools for which the model asks. Calls of one answer run
    /// at the same time. Dropping the future stops the generation and the calls.
    ///
    /// [`GenerateOptions::tool_choice`] holds for the first answer; later ones may call tools or not.
    ///
    /// # Errors
    /// Those of [`Session::generate`] and of the computation. A tool that fails is no error: the model
    /// reads what went wrong.
    pub async fn respond(
        &self,
        messages: Vec<Message>,
        tools: &Tools,
        options: &GenerateOptions,
        mut on_event: impl FnMut(&RespondEvent) + Send,
    ) -> Result<Response> {
        let definitions = tools.tools.iter().map(|tool| tool.tool().to_json()).collect();
        let template = TemplateOptions::default().tools(definitions);
        let (mut transcript, mut options) = (messages, options.clone());
        let mut response = Response::default();
        for round in 0.. {
            let prompt = Prompt::Chat(transcript.clone(), template.clone());
            let mut generation = self.generate(prompt, &options)?;
            let mut answer = Answer::default();
            while let Some(event) = generation.next().await {
                let event = event?;
                on_event(&RespondEvent::Generation(event.clone()));
                answer.push(event);
            }
            let rejected = mem::take(&mut answer.rejected_tool_calls);
            let asked = !answer.tool_calls.is_empty() || rejected.iter().any(is_answerable);
            if !asked || round == tools.max_rounds || answer.is_cancelled() {
                answer.rejected_tool_calls = rejected;
                response.messages.push(answer.message());
                response.answer = answer;
                return Ok(response);
            }
            let mut results = together(answer.tool_calls.iter().map(|call| tools.run(call))).await;
            let rejected = rejected.iter().filter(|call| is_answerable(call));
            results.extend(rejected.enumerate().map(|(index, call)| refusal(index, call)));
            answer.tool_calls = results.iter().map(|result| result.call.clone()).collect();
            response.messages.push(answer.message());
            transcript.push(answer.message());
            for result in results {
                let message = Message::tool(&result.call.id, &result.call.name, &result.text);
                on_event(&RespondEvent::ToolResult(result));
                response.messages.push(message.clone());
                transcript.push(message);
            }
            options.tool_choice = ToolChoice::Auto;
        }
        Ok(response)
    }
}

/// Whether the model can be told what is wrong with a call.
fn is_answerable(call: &RejectedToolCall) -> bool {
    call.name.is_some()
}

/// The result of a call whose arguments do not fit.
fn refusal(index: usize, rejected: &RejectedToolCall) -> ToolResult {
    let name = rejected.name.clone().unwrap_or_default();
    let call = ToolCall::new(format!("rejected{index}"), name, Map::new());
    ToolResult { call, text: format!("Error: {}.", rejected.reason), is_error: true }
}

/// Waits for futures that run at the same time.
async fn together<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|context: &mut Context| {
        for (future, done) in running.iter_mut().zip(&mut done) {
            if done.is_none()
                && let Poll::Ready(output) = future.as_mut().poll(context)
            {
                *done = Some(output);
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}
