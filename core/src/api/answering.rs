//! How the answer to a prompt is read and steered: what the options of a request and the header of the
//! answer say about thoughts and tools.

use crate::{
    answer::{CallGrammars, Compiler, Dialect, Grammar, Reader, ToolChoice, Toolbox},
    api::{model::Model, prompt::Prompt},
    engine::Answering,
    error::{Error, Result},
    generate::{GenerateOptions, Guide, Guided, Wishes},
    text::{Content, Message, TemplateOptions},
};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// How the model of a request writes, and which tools it may call.
#[derive(Default)]
struct Asked {
    dialect: Arc<Dialect>,
    toolbox: Option<Arc<Toolbox>>,
}

/// The grammars of calls of a request.
#[derive(Default)]
struct AskedCalls {
    /// That of an answer of calls, if a call is required.
    answer: Option<Grammar>,
    is_required: bool,
    /// That of calls behind the mark that opens them, if the model decides.
    behind_mark: Option<Grammar>,
    /// The marks that may open calls in place of a text.
    openings: Vec<String>,
}

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
            return self.steered(Asked::default(), Reader::default(), options);
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
        let reader = Reader::new(dialect.clone(), toolbox.clone(), &header, hasher.finish());
        self.steered(Asked { dialect, toolbox }, reader, options)
    }

    /// An answer that is steered to what the options ask for.
    fn steered(
        &self,
        asked: Asked,
        reader: Reader,
        options: &GenerateOptions,
    ) -> Result<Answering> {
        let budget = asked.dialect.thought_budget(options.reasoning);
        let budget = budget.filter(|_| asked.dialect.has_thoughts());
        let ends = self.ends(options);
        let calls = self.call_grammars(&asked, options, &ends)?;
        let text = match (options.output.source()?, calls.is_required) {
            (Some(source), false) => Some(self.compiler()?.compile(&source)?),
            _ => None,
        };
        // The tokens of a grammar have the bytes that they add to a text that has begun.
        let continues = text.is_some() || calls.answer.is_some();
        let reader = if text.is_some() { reader.literal() } else { reader };
        let is_free = budget.is_none() && text.is_none();
        if is_free && calls.answer.is_none() && calls.behind_mark.is_none() {
            return Ok(Answering { reader, constraint: None, continues });
        }
        let thoughts = asked.dialect.thought_openings();
        let thoughts = if budget == Some(0) { Vec::new() } else { thoughts };
        let openings = match text {
            Some(_) => [asked.dialect.text_openings(), calls.openings].concat(),
            None => Vec::new(),
        };
        let has_header = text.is_none() && asked.dialect.messages.is_some();
        let answer = text.or(calls.answer);
        let calls = calls.behind_mark;
        let wishes = Wishes { budget, answer, has_header, calls, thoughts, openings, ends };
        let tokenizer = self.tokenizer()?.clone();
        let vocabulary = self.info().vocabulary;
        let model = Guided { dialect: asked.dialect, tokenizer, vocabulary };
        let guide = Guide::new(model, wishes, reader.phase())?;
        Ok(Answering { reader, constraint: Some(Box::new(guide)), continues })
    }

    /// The grammars of the calls that the options ask for or allow.
    fn call_grammars(
        &self,
        asked: &Asked,
        options: &GenerateOptions,
        ends: &[u32],
    ) -> Result<AskedCalls> {
        let (Some(tools), Some(format)) = (&asked.toolbox, asked.dialect.format) else {
            return Ok(AskedCalls::default());
        };
        let special = self.tokenizer()?.all_special_tokens();
        let dialect = &*asked.dialect;
        let grammars = CallGrammars { dialect, tools, special: &special, ends };
        let compile = |source| self.compiler()?.compile(&source);
        let name = match &options.tool_choice {
            ToolChoice::Named(name) => Some(name.as_str()),
            ToolChoice::Required => None,
            ToolChoice::Auto | ToolChoice::None => {
                // Where the marks say nothing, a text may look like a call. What no grammar holds to
                // is checked when the call is complete.
                let is_marked = !format.is_plain() && dialect.messages.is_none();
                let source = is_marked.then(|| grammars.behind_mark()).transpose();
                let behind_mark = source.ok().flatten().and_then(|source| compile(source).ok());
                let mark = grammars.mark(format).filter(|_| behind_mark.is_some());
                let openings = mark.map(String::from).into_iter().collect();
                return Ok(AskedCalls { behind_mark, openings, ..AskedCalls::default() });
            }
        };
        let answer = Some(compile(grammars.answer(name)?)?);
        Ok(AskedCalls { answer, is_required: true, ..AskedCalls::default() })
    }

    fn compiler(&self) -> Result<&Compiler> {
        self.0.compiler.as_deref().ok_or(Error::NoTokenizer)
    }

    /// The tokens that end an answer.
    fn ends(&self, options: &GenerateOptions) -> Vec<u32> {
        let own = if options.ignore_end { &[] } else { self.end_tokens() };
        [own, &options.end_tokens].concat()
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
