//! The handle that applications hold.

use crate::{
    answer::{Compiler, Dialect},
    api::{
        defaults::{end_tokens, tool_parser_type},
        preparation::{EncodedPrompt, Preparation},
        prompt::Prompt,
        session_options::SessionOptions,
    },
    checkpoint::files::Files,
    engine::{
        Answering, Engine, Generation, Request,
        engine_model::{self, EngineModel, ModelMemory, Place, find, unload},
        prefix_cache::Slot,
    },
    error::{Error, Result},
    families,
    generate::{Constraint, GenerateOptions, Score, Speculation, next_logits, score},
    mlx,
    text::{ChatTemplate, Layout, Message, TemplateOptions, Tokenizer},
};
use std::sync::Arc;

/// A language model in memory. Handles are cheap to clone and may be used from any thread. Dropping
/// the last handle frees the memory.
#[derive(Clone)]
pub struct Model(pub(crate) Arc<Inner>);

#[derive(Clone)]
pub(crate) struct Inner {
    pub place: Arc<Place>,
    pub info: ModelInfo,
    pub tokenizer: Option<Tokenizer>,
    pub template: Option<ChatTemplate>,
    /// How it prepares pictures; none for a model that reads none.
    pub preparation: Option<Arc<Preparation>>,
    /// How the model writes its answers.
    pub dialect: Arc<Dialect>,
    /// Compiles the grammars of answers over the tokenizer's vocabulary.
    pub compiler: Option<Arc<Compiler>>,
    pub end_tokens: Vec<u32>,
    /// The end tokens of the config and the generation config, whatever the tokenizer.
    pub configured_ends: Vec<u32>,
    pub defaults: GenerateOptions,
    /// The default options of sessions.
    pub session: SessionOptions,
    /// Whether its default cache can rewind to any position.
    pub rewinds: bool,
    /// The draft model.
    pub draft: Option<Arc<Place>>,
}

/// The facts of a loaded model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The `model_type` of the config.
    pub model_type: String,
    /// The maximum length of a sequence in tokens: that of the config, or a shorter one of
    /// [`LoadOptions::context`](crate::LoadOptions::context).
    pub context: Option<usize>,
    /// The size of the vocabulary in tokens.
    pub vocabulary: u32,
}

impl Model {
    /// Frees the memory of the model at once, although handles remain. Running generations end with
    /// [`Error::Unloaded`], as does every later request to the model or its sessions. The tokenizer
    /// and the chat template still work.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub async fn unload(&self) -> Result<()> {
        let id = self.id();
        let free = move || {
            unload(id);
            Ok(())
        };
        self.engine().run_at_once(free).await?;
        // Between the two jobs, the generations take their last turn.
        self.engine().run_at_once(mlx::release_memory).await
    }

    /// The memory of this model: its weights and the KV caches of its sessions.
    ///
    /// # Errors
    /// [`Error::Unloaded`].
    pub async fn memory(&self) -> Result<ModelMemory> {
        let id = self.id();
        self.engine().run_at_once(move || Ok(find(id)?.memory())).await
    }

    /// The facts of the model.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// The tokenizer of the model.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`] when the checkpoint has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.0.tokenizer.as_ref().ok_or(Error::NoTokenizer)
    }

    /// The same weights in memory with the tokenizer and the chat template of other files, such as
    /// those of the base model of a checkpoint without a tokenizer. Where those files have no chat
    /// template, this model's own stays.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when there is no tokenizer or it is damaged, and those of the template.
    pub fn with_tokenizer(&self, files: impl Into<Files>) -> Result<Self> {
        let files = files.into();
        let tokenizer = Tokenizer::load(&files)?;
        let template = ChatTemplate::load(&files)?.or_else(|| self.0.template.clone());
        let recommended = families::find(&self.0.info.model_type)?.recommended;
        let preparation =
            self.0.preparation.as_ref().map(|it| Arc::new(it.with_tokenizer(&tokenizer)));
        let template = template.map(|template| template.with_special_tokens(&tokenizer));
        let template = match &preparation {
            Some(preparation) => template.map(|template| preparation.template(template)),
            None => template,
        };
        let end_tokens =
            end_tokens(&self.0.configured_ends, &recommended, Some(&tokenizer), template.as_ref());
        let parser = tool_parser_type(&files)?;
        let dialect = Dialect::of(template.as_ref(), Some(&tokenizer), parser.as_deref());
        Ok(Model(Arc::new(Inner {
            template,
            preparation,
            dialect: Arc::new(dialect),
            compiler: Some(Arc::new(Compiler::new(tokenizer.clone()))),
            tokenizer: Some(tokenizer),
            end_tokens,
            ..(*self.0).clone()
        })))
    }

    /// The same weights in memory with a draft model: a smaller model with the same vocabulary, whose
    /// tokens this model verifies, several in one pass. It changes no token, only the time that they
    /// take. A generation whose options speculate uses it; see [`Speculation`]. The draft model stays in memory as long as this handle.
    ///
    /// # Errors
    /// [`Error::Option`] when the vocabularies differ.
    pub fn with_draft(&self, draft: &Model) -> Result<Self> {
        if let Some(reason) = self.vocabulary_apart(draft) {
            return Err(Error::option("draft", reason));
        }
        let place = draft.0.place.clone();
        Ok(Model(Arc::new(Inner { draft: Some(place), ..(*self.0).clone() })))
    }

    /// How the vocabulary of a draft model differs. Sizes differ where embeddings are padded or tokens
    /// were added, so with tokenizers it is the tokens that decide.
    fn vocabulary_apart(&self, draft: &Model) -> Option<String> {
        let (own, other) = (&self.0, &draft.0);
        let (Some(ours), Some(theirs)) = (&own.tokenizer, &other.tokenizer) else {
            let sizes = (own.info.vocabulary, other.info.vocabulary);
            return (sizes.0 != sizes.1).then(|| {
                let (ours, theirs) = sizes;
                format!("has a vocabulary of {theirs} tokens, and the model one of {ours}")
            });
        };
        let count = ours.vocabulary_size().min(theirs.vocabulary_size());
        let differs = |id: &u32| match (ours.token(*id), theirs.token(*id)) {
            (Some(a), Some(b)) => a != b,
            _ => false,
        };
        (0..count as u32).find(differs).map(|id| {
            format!("has another vocabulary than the model: token {id} differs; choose one of its family")
        })
    }

    /// The options that the generation config recommends, or else the model card of the family. With a
    /// draft model, they speculate.
    pub fn default_options(&self) -> GenerateOptions {
        let defaults = self.0.defaults.clone();
        match self.0.draft {
            Some(_) => defaults.speculation(Speculation::Auto),
            None => defaults,
        }
    }

    /// The ids that end a text: those of the config, the generation config, the tokenizer and the family, and those with
    /// which the chat template closes an assistant's turn.
    pub fn end_tokens(&self) -> &[u32] {
        &self.0.end_tokens
    }

    /// Renders a conversation with the chat template.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`], [`Error::ChatTemplate`], [`Error::UnknownRole`],
    /// [`Error::UnsupportedPart`].
    pub fn render(&self, messages: &[Message], options: &TemplateOptions) -> Result<String> {
        self.template()?.render(&self.messages(messages)?, options)
    }

    /// The chat template of the model.
    pub(crate) fn template(&self) -> Result<&ChatTemplate> {
        self.0.template.as_ref().ok_or(Error::NoChatTemplate)
    }

    /// The layout of conversations with this opening.
    pub(crate) fn layout(&self, opening: &[Message], options: &TemplateOptions) -> Result<Layout> {
        Layout::of(self.template()?, &self.messages(opening)?, options)
    }

    /// The tokens of a prompt, as [`Model::generate`] continues them: a picture has one for each position
    /// that it takes.
    ///
    /// # Errors
    /// Those of [`Model::render`] and [`Model::tokenizer`]; [`Error::EmptyPrompt`],
    /// [`Error::TokenOutOfVocabulary`], [`Error::ContextOverflow`]; [`Error::Image`],
    /// [`Error::MediaCount`] and [`Error::TextOnly`].
    pub fn tokens(&self, prompt: impl Into<Prompt>) -> Result<Vec<u32>> {
        Ok(self.encode_within(&self.resolve(prompt), self.0.info.context)?.tokens)
    }

    /// The prompt with [`Prompt::Text`] replaced by a message, or by raw text without a template.
    pub(crate) fn resolve(&self, prompt: impl Into<Prompt>) -> Prompt {
        prompt.into().resolved(self.0.template.is_some())
    }

    fn encode_within(&self, prompt: &Prompt, limit: Option<usize>) -> Result<EncodedPrompt> {
        let prompt = self.encode(prompt)?;
        let tokens = prompt.tokens.len();
        match limit.filter(|limit| tokens > *limit) {
            Some(limit) => Err(Error::ContextOverflow { tokens, limit }),
            None => Ok(prompt),
        }
    }

    /// Starts a generation and returns its stream of events. A string is a message of the user, see
    /// [`Prompt`]. For conversations, [`Model::session`] keeps the KV cache between requests.
    ///
    /// The call renders and tokenizes the prompt on the calling thread and waits for nothing; the
    /// engine thread computes. An error of the prompt or the options is therefore the result of the
    /// call, once and before anything is computed, and the stream yields only errors of the
    /// computation. An async server with very long prompts calls it in `spawn_blocking`.
    ///
    /// # Errors
    /// Those of [`Model::tokens`] and [`GenerateOptions::check`]; [`Error::NoTokenizer`] for stop
    /// texts and grammars without a tokenizer; [`Error::Grammar`]; [`Error::Tool`] and
    /// [`Error::NoTools`].
    pub fn generate(
        &self,
        prompt: impl Into<Prompt>,
        options: &GenerateOptions,
    ) -> Result<Generation> {
        self.generate_within(prompt.into(), options, None)
    }

    /// As [`Model::generate`], with a constraint on the tokens.
    ///
    /// # Errors
    /// Those of [`Model::generate`]; the stream ends with [`Error::NothingAllowed`] where no token
    /// is possible.
    #[doc(hidden)]
    pub fn generate_within(
        &self,
        prompt: Prompt,
        options: &GenerateOptions,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<Generation> {
        self.check(options)?;
        let (id, session) = (self.id(), self.0.session);
        let limit = session.limit(self.0.info.context);
        let prompt = self.prepare(prompt, options)?;
        let encoded = self.encode_within(&prompt, limit)?;
        let mut answering = self.answering(&prompt, &encoded.tokens, options)?;
        answering.constraint = constraint.or(answering.constraint);
        let request = self.request(encoded, answering, options, limit);
        Ok(request.start(move || {
            let loaded = find(id)?;
            let slot =
                Slot::passing(loaded.prompt_cache(session.plan(), session.checkpoint_bytes)?);
            Ok((loaded, slot))
        }))
    }

    /// Checks the options for this model.
    pub(crate) fn check(&self, options: &GenerateOptions) -> Result<()> {
        options.check(self.0.info.vocabulary)?;
        if options.stop.is_empty() { Ok(()) } else { self.tokenizer().map(drop) }
    }

    /// A request for at most `limit` tokens with the prompt.
    pub(crate) fn request(
        &self,
        prompt: EncodedPrompt,
        answering: Answering,
        options: &GenerateOptions,
        limit: Option<usize>,
    ) -> Request {
        let room = limit.unwrap_or(i32::MAX as usize).saturating_sub(prompt.tokens.len());
        Request {
            engine: self.engine(),
            prompt: prompt.tokens,
            media: prompt.media,
            marks: Vec::new(),
            dropped_messages: 0,
            options: GenerateOptions {
                max_tokens: options.max_tokens.min(room),
                ..options.clone()
            },
            draft: self.0.draft.as_ref().map(|draft| draft.id),
            answering,
            end_tokens: self.0.end_tokens.clone(),
            tokenizer: self.0.tokenizer.clone(),
        }
    }

    /// The default options of sessions, which [`Model::generate`] uses too.
    pub fn session_options(&self) -> SessionOptions {
        self.0.session
    }

    /// The log-probabilities of the tokens of a text, with the `top` most probable tokens at each
    /// position. A string is raw text here, as [`Prompt::Raw`].
    ///
    /// # Errors
    /// Those of [`Model::tokens`]; [`Error::NotANumber`].
    pub async fn score(&self, text: impl Into<Prompt>, top: usize) -> Result<(Vec<u32>, Score)> {
        let prompt = self.encode_within(&text.into().raw(), self.0.info.context)?;
        self.compute(move |loaded| {
            let network = &**loaded.language()?;
            let prompt = loaded.prompt(prompt.tokens, &prompt.media)?;
            let chunk = |from, most| prompt.next_chunk(network, from, most);
            let score = score(network, &prompt.tokens, top, chunk)?;
            Ok((prompt.tokens, score))
        })
        .await
    }

    /// The logits of the token after a prompt, one for each token of the vocabulary.
    ///
    /// # Errors
    /// Those of [`Model::tokens`].
    pub async fn next_logits(&self, prompt: impl Into<Prompt>) -> Result<Vec<f32>> {
        let prompt = self.encode_within(&self.resolve(prompt), self.0.info.context)?;
        self.compute(move |loaded| {
            let network = &**loaded.language()?;
            let prompt = loaded.prompt(prompt.tokens, &prompt.media)?;
            let chunk = |from, most| prompt.next_chunk(network, from, most);
            next_logits(network, prompt.tokens.len(), chunk)
        })
        .await
    }

    /// Runs a job with the model on the engine thread. The model stays in memory until it is done.
    pub(super) async fn compute<T: Send + 'static>(
        &self,
        compute: impl FnOnce(&EngineModel) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let handle = self.clone();
        self.engine().compute(move || compute(&*find(handle.id())?)).await
    }
}

impl Model {
    pub(crate) fn id(&self) -> u64 {
        self.0.place.id
    }

    pub(crate) fn engine(&self) -> &'static Engine {
        self.0.place.engine
    }

    /// Whether its default cache can rewind to any position.
    pub(crate) fn rewinds(&self) -> bool {
        self.0.rewinds
    }
}

/// Frees memory that can be computed again: free buffers of MLX, the features of pictures, and the
/// checkpoints that sessions keep of recurrent states and windows. Call it when the system is short of memory; it works while
/// the engine is suspended.
///
/// # Errors
/// [`Error::Mlx`].
pub async fn shrink_caches() -> Result<()> {
    let shrink = || {
        for loaded in engine_model::all() {
            for slot in loaded.sessions.borrow().values() {
                slot.prefix_cache.borrow_mut().clear_checkpoints();
            }
            loaded.forget_media();
        }
        mlx::release_memory()
    };
    Engine::get()?.run_at_once(shrink).await
}
