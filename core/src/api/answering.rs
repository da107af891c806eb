//! How the answer to a prompt is read and steered: what the options of a request and the header of the
//! answer say about thoughts and tools.

use crate::{
    answer::{Reader, ToolChoice, Toolbox},
    api::{model::Model, prompt::Prompt},
    engine::Answering,
    error::{Error, Result},
    generate::{Constraint, GenerateOptions, Guide},
    text::{Content, Message, TemplateOptions},
};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

impl Model {
    /// The prompt as the chat template gets it, with what the options say about thoughts and tools.
    ///
    /// # Errors
    /// [`Error::Tool`], [`Error::NoTools`], and [`Error::Option`] for a choice that is impossible.
    pub(crate) fn prepare(
        &self,
        prompt: impl Into<Prompt>,
        options: &GenerateOptions,
    ) -> Result<Prompt> {
        let mut prompt = self.resolve(prompt);
        let mut has_tools = false;
        if let Prompt::Chat(_, template) = &mut prompt {
            let dialect = &self.0.dialect;
            if options.tool_choice == ToolChoice::None {
                template.tools.clear();
            }
            has_tools = !template.tools.is_empty();
            if has_tools && !dialect.knows_tools() {
                return Err(Error::NoTools);
            }
            let mut variables = dialect.reasoning_variables(options.reasoning);
            if options.tool_choice == ToolChoice::Required && dialect.reads("tool_choice") {
                variables.insert("tool_choice".into(), "required".into());
            }
            for (name, value) in variables {
                template.variables.entry(name).or_insert(value);
            }
        }
        match &options.tool_choice {
            ToolChoice::Required | ToolChoice::Named(_) if !has_tools => {
                Err(Error::option("tool_choice", "a call is required, and the prompt has no tools"))
            }
            _ => Ok(prompt),
        }
    }

    /// How the answer to a prepared prompt with these tokens is read and steered.
    pub(crate) fn answering(
        &self,
        prompt: &Prompt,
        tokens: &[u32],
        options: &GenerateOptions,
    ) -> Result<Answering> {
        let dialect = self.0.dialect.clone();
        let Prompt::Chat(messages, template) = prompt else {
            return Ok(Answering { reader: Reader::default(), constraint: None });
        };
        let toolbox = match template.tools.as_slice() {
            [] => None,
            tools => Some(Arc::new(Toolbox::new(tools)?)),
        };
        if let (ToolChoice::Named(name), Some(toolbox)) = (&options.tool_choice, &toolbox)
            && toolbox.schema(name).is_none()
        {
            let reason = format!("the prompt has no tool `{name}`");
            return Err(Error::option("tool_choice", reason));
        }
        let mut hasher = DefaultHasher::new();
        tokens.hash(&mut hasher);
        let header = match dialect.has_headers() {
            true => self.header(messages, template)?,
            false => String::new(),
        };
        let reader = Reader::new(dialect.clone(), toolbox, &header, hasher.finish());
        let budget = dialect.thought_budget(options.reasoning);
        let constraint: Option<Box<dyn Constraint>> = match (budget, &self.0.tokenizer) {
            (Some(_), Some(tokenizer)) if dialect.has_thoughts() => {
                Some(Box::new(Guide::new(dialect, tokenizer.clone(), budget, reader.phase())?))
            }
            _ => None,
        };
        Ok(Answering { reader, constraint })
    }

    /// The header of the answer: what the chat template writes after the last message, or what the
    /// model continues.
    fn header(&self, messages: &[Message], options: &TemplateOptions) -> Result<String> {
        if options.continue_final_message {
            let last = messages.last();
            let content = last.and_then(|last| last.content.as_ref());
            return Ok(match (content, last.and_then(|last| last.reasoning_content.as_ref())) {
                (Some(Content::Text(text)), _) => text.clone(),
                (None, Some(_)) => self.0.dialect.opening(),
                _ => String::new(),
            });
        }
        if !options.add_generation_prompt {
            return Ok(String::new());
        }
        let whole = self.render(messages, options)?;
        let unprompted = self.render(messages, &options.clone().add_generation_prompt(false))?;
        // A template that writes something else without a header still ends with the header.
        let start = whole.strip_prefix(&unprompted).map_or_else(
            || whole.char_indices().rev().nth(100).map_or(0, |(at, _)| at),
            |header| whole.len() - header.len(),
        );
        Ok(whole[start..].to_string())
    }
}
