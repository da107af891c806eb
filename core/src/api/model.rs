//! The handle that applications hold.

use crate::{
    api::{defaults::end_tokens, prompt::Prompt, session_options::SessionOptions},
    checkpoint::files::Files,
    engine::{
        Engine, Generation, Request,
        engine_model::{self, EngineModel, ModelMemory, Place, find, unload},
        prefix_cache::Slot,
    },
    error::{Error, Result},
    families,
    generate::{GenerateOptions, Score, next_logits, score},
    mlx,
    text::{ChatTemplate, Message, TemplateOptions, Tokenizer, text_only},
};
use std::sync::Arc;

/// A language model in memory. Handles are cheap to clone and may be used from any thread; the
/// last one that is dropped frees the memory.
#[derive(Clone)]
pub struct Model(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub place: Arc<Place>,
    pub info: ModelInfo,
    /// Or why there is none.
    pub tokenizer: Result<Tokenizer, String>,
    pub template: Option<ChatTemplate>,
    pub end_tokens: Vec<u32>,
    /// Those that hold whatever the tokenizer.
    pub configured_ends: Vec<u32>,
    pub defaults: GenerateOptions,
    /// What holds where nobody says otherwise.
    pub session: SessionOptions,
    /// Whether a cache of its own choice can go back to any position.
    pub rewinds: bool,
}

/// What is known of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The `model_type` of its config.
    pub model_type: String,
    /// The longest sequence that it was made for, if it says so, or that it was loaded for.
    pub context: Option<usize>,
    /// How many tokens it has embeddings for.
    pub vocabulary: u32,
}

impl Model {
    /// Frees its memory, whoever still has a handle. Generations that run end with
    /// [`Error::Unloaded`], and so does whatever is asked of the model or its sessions from then on,
    /// but for what its tokenizer and its chat template answer.
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
        // Between the two, the generations have had their last turn.
        self.engine().run_at_once(mlx::release_memory).await
    }

    /// What it takes now, apart from other models and from what is being computed.
    ///
    /// # Errors
    /// [`Error::Unloaded`].
    pub async fn memory(&self) -> Result<ModelMemory> {
        let id = self.id();
        self.engine().run_at_once(move || Ok(find(id)?.memory())).await
    }

    /// What is known of it.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the checkpoint has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        let missing = |reason: &String| Error::Tokenizer {
            file: "tokenizer.json".into(),
            reason: reason.clone(),
        };
        self.0.tokenizer.as_ref().map_err(missing)
    }

    /// The same model in memory with the tokenizer and the chat template of other files, such as
    /// those of the repository that a checkpoint without a tokenizer was made from. Without a
    /// template there, this model's own stays.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when there is no tokenizer or it is damaged, and those of the template.
    pub fn with_tokenizer(&self, files: impl Into<Files>) -> Result<Self> {
        let files = files.into();
        let tokenizer = Tokenizer::load(&files)?;
        let template = ChatTemplate::load(&files)?.or_else(|| self.0.template.clone());
        let recommended = families::find(&self.0.info.model_type)?.recommended;
        let end_tokens = end_tokens(&self.0.configured_ends, &recommended, Some(&tokenizer));
        Ok(Model(Arc::new(Inner {
            place: self.0.place.clone(),
            info: self.0.info.clone(),
            template: template.map(|template| template.with_special_tokens(&tokenizer)),
            tokenizer: Ok(tokenizer),
            end_tokens,
            configured_ends: self.0.configured_ends.clone(),
            defaults: self.0.defaults.clone(),
            session: self.0.session,
            rewinds: self.0.rewinds,
        })))
    }

    /// The options that its generation config recommends, or else its family's model cards.
    pub fn default_options(&self) -> GenerateOptions {
        self.0.defaults.clone()
    }

    /// The ids that end a text: those of the config, the generation config, the tokenizer and the family.
    pub fn end_tokens(&self) -> &[u32] {
        &self.0.end_tokens
    }

    /// A conversation as the text that the model sees.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`], [`Error::ChatTemplate`], [`Error::UnknownRole`],
    /// [`Error::UnsupportedPart`].
    pub fn render(&self, messages: &[Message], options: &TemplateOptions) -> Result<String> {
        let template = self.0.template.as_ref().ok_or(Error::NoChatTemplate)?;
        template.render(&text_only(messages)?, options)
    }

    /// The tokens of a prompt.
    ///
    /// # Errors
    /// Those of [`Model::render`] and [`Model::tokenizer`]; [`Error::EmptyPrompt`],
    /// [`Error::TokenOutOfVocabulary`], [`Error::ContextOverflow`].
    pub fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        self.tokens_within(prompt, self.0.info.context)
    }

    fn tokens_within(&self, prompt: &Prompt, limit: Option<usize>) -> Result<Vec<u32>> {
        let tokens = self.encode(prompt)?;
        match limit.filter(|limit| tokens.len() > *limit) {
            Some(limit) => Err(Error::ContextOverflow { tokens: tokens.len(), limit }),
            None => Ok(tokens),
        }
    }

    /// As [`Model::tokens`], however many they are.
    pub(crate) fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let tokens = match prompt {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Text(text) if text.is_empty() => Vec::new(),
            Prompt::Text(text) => self.tokenizer()?.encode(text, true)?,
            Prompt::Chat(messages, options) => {
                self.tokenizer()?.encode(&self.render(messages, options)?, false)?
            }
        };
        let vocabulary = self.0.info.vocabulary;
        if let Some(&id) = tokens.iter().find(|id| **id >= vocabulary) {
            return Err(Error::TokenOutOfVocabulary { id, vocabulary });
        }
        if tokens.is_empty() { Err(Error::EmptyPrompt) } else { Ok(tokens) }
    }

    /// Starts to continue a prompt, from nothing: see [`Model::session`] for conversations. The
    /// stream yields progress, tokens, and a summary last.
    ///
    /// # Errors
    /// Those of [`Model::tokens`] and [`GenerateOptions::check`]; [`Error::Tokenizer`] for stop texts
    /// without a tokenizer.
    pub fn generate(
        &self,
        prompt: impl Into<Prompt>,
        options: &GenerateOptions,
    ) -> Result<Generation> {
        self.check(options)?;
        let (id, session) = (self.id(), self.0.session);
        let limit = session.limit(self.0.info.context);
        let request = self.request(self.tokens_within(&prompt.into(), limit)?, options, limit);
        Ok(request.start(move || {
            let loaded = find(id)?;
            let slot =
                Slot::passing(loaded.prompt_cache(session.plan(), session.checkpoint_bytes)?);
            Ok((loaded, slot))
        }))
    }

    /// Whether it can do what the options ask for.
    pub(crate) fn check(&self, options: &GenerateOptions) -> Result<()> {
        options.check(self.0.info.vocabulary)?;
        if options.stop.is_empty() { Ok(()) } else { self.tokenizer().map(drop) }
    }

    /// A request that goes no further than `limit` tokens in all.
    pub(crate) fn request(
        &self,
        prompt: Vec<u32>,
        options: &GenerateOptions,
        limit: Option<usize>,
    ) -> Request {
        let room = limit.unwrap_or(i32::MAX as usize).saturating_sub(prompt.len());
        Request {
            engine: self.engine(),
            prompt,
            media: Vec::new(),
            marks: Vec::new(),
            dropped_messages: 0,
            options: GenerateOptions {
                max_tokens: options.max_tokens.min(room),
                ..options.clone()
            },
            end_tokens: self.0.end_tokens.clone(),
            tokenizer: self.0.tokenizer.clone().ok(),
        }
    }

    /// How its sessions remember where nobody says otherwise, and how [`Model::generate`] does.
    pub fn session_options(&self) -> SessionOptions {
        self.0.session
    }

    /// How likely a text is, with the `top` likeliest tokens after each of its own.
    ///
    /// # Errors
    /// Those of [`Model::tokens`]; [`Error::NotANumber`].
    pub async fn score(&self, text: impl Into<Prompt>, top: usize) -> Result<(Vec<u32>, Score)> {
        let tokens = self.tokens(&text.into())?;
        self.compute(move |loaded| {
            let score = score(&**loaded.language()?, &tokens, top)?;
            Ok((tokens, score))
        })
        .await
    }

    /// The logits of the token that comes after a prompt, as many as the vocabulary has tokens.
    ///
    /// # Errors
    /// Those of [`Model::tokens`].
    pub async fn next_logits(&self, prompt: impl Into<Prompt>) -> Result<Vec<f32>> {
        let tokens = self.tokens(&prompt.into())?;
        self.compute(move |loaded| next_logits(&**loaded.language()?, &tokens)).await
    }

    /// Computes something with the model, which stays in memory until that is done.
    pub(super) async fn compute<T: Send + 'static>(
        &self,
        compute: impl FnOnce(&EngineModel) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let handle = self.clone();
        self.engine().run(move || compute(&*find(handle.id())?)).await
    }
}

impl Model {
    pub(crate) fn id(&self) -> u64 {
        self.0.place.id
    }

    pub(crate) fn engine(&self) -> &'static Engine {
        self.0.place.engine
    }

    /// Whether a cache of its own choice can go back to any position.
    pub(crate) fn rewinds(&self) -> bool {
        self.0.rewinds
    }
}

/// Gives back at once what can be computed again: buffers that are free, and the positions that
/// sessions could have gone back to. This is for a system that is short of memory, and works while
/// the engine is paused.
///
/// # Errors
/// [`Error::Mlx`].
pub async fn shrink_caches() -> Result<()> {
    let shrink = || {
        for loaded in engine_model::all() {
            for slot in loaded.sessions.borrow().values() {
                slot.prefix_cache.borrow_mut().clear_checkpoints();
            }
        }
        mlx::release_memory()
    };
    Engine::get()?.run_at_once(shrink).await
}
