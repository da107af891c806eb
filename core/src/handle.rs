//! The handle that applications hold.

use crate::{
    config::Json,
    error::{Error, Result},
    families::{Convention, convention},
    files::Files,
    generate::{
        Engine, GenerateOptions, Generation, Prompt, Request, Score, Session, SessionOptions, Slot,
        Turn, score,
    },
    hub,
    layer::CachePlan,
    loaded::{Loaded, family, model_type},
    location::{Found, Location},
    mlx,
    text::{ChatTemplate, Message, TemplateOptions, Tokenizer, text_only},
};
use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use tokio::sync::oneshot;

thread_local! {
    /// The models of the engine's thread.
    static MODELS: RefCell<HashMap<u64, Rc<Loaded>>> = RefCell::default();
}

/// A language model in memory. Handles are cheap to clone and may be used from any thread; the
/// last one that is dropped frees the memory.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    place: Arc<Place>,
    info: ModelInfo,
    /// Or why there is none.
    tokenizer: Result<Tokenizer, String>,
    template: Option<ChatTemplate>,
    end_tokens: Vec<u32>,
    /// Those that the configs name, whatever the tokenizer.
    configured_ends: Vec<u32>,
    defaults: GenerateOptions,
    /// Whether a cache of its own choice can go back to any position.
    rewinds: bool,
}

/// What is known of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The `model_type` of its config.
    pub model_type: String,
    /// The longest sequence that it was made for, if it says so.
    pub context: Option<usize>,
    /// How many tokens it has embeddings for.
    pub vocabulary: u32,
}

/// How far the loading of a model is.
#[derive(Clone, Debug, PartialEq)]
pub enum LoadEvent {
    /// Files come from the hub.
    Download(hub::Progress),
    /// So much of the weights is in memory, from 0 to 1.
    Weights(f32),
}

impl Model {
    /// Loads a checkpoint: `"org/name"` or `"org/name@revision"` from a hub by way of the cache, a
    /// directory in the layout that model repositories have, or a [`hub::Source`]. `progress` is
    /// called on other threads, for the download first, if there is one, and for the weights then.
    ///
    /// # Errors
    /// Whatever is wrong with the download, the config, the weights, the tokenizer or the chat
    /// template; see [`Error`]. A checkpoint without a tokenizer loads, and takes and gives tokens
    /// only.
    pub async fn load(
        location: impl Into<Location>,
        progress: impl FnMut(LoadEvent) + Send + 'static,
    ) -> Result<Self> {
        let progress = Arc::new(Mutex::new(progress));
        let tell = move |event| progress.lock().unwrap_or_else(PoisonError::into_inner)(event);
        let files = match location.into().resolve()? {
            Found::Here(files) => files,
            Found::Hub(source) => {
                let tell = tell.clone();
                hub::fetch(&source, move |progress| tell(LoadEvent::Download(progress)))
                    .await?
                    .into()
            }
        };
        let config =
            files.json("config.json")?.ok_or_else(|| Error::config("", "there is no such file"))?;
        let model_type = model_type(&config)?.to_string();
        family(&config)?;
        let convention = convention(&model_type);
        let engine = Engine::get()?;
        let generation = files.json("generation_config.json")?;

        let weights = {
            let (files, config) = (files.clone(), config.clone());
            engine.run_in_turns(Turn::Ready, move || {
                let mut reading =
                    Loaded::read(&files, &config, move |share| tell(LoadEvent::Weights(share)))?;
                Ok(move || {
                    Ok(reading()?.map(|loaded| {
                        let vocabulary = loaded.network.vocabulary();
                        let rewinds = loaded.network.cache(&CachePlan::default()).rewinds();
                        (Place::new(engine, loaded), vocabulary, rewinds)
                    }))
                })
            })
        };
        // A large tokenizer takes as long as the weights do, so both are read at once.
        let (report, text) = oneshot::channel();
        let default = convention.chat_template;
        thread::spawn(move || report.send(read_text(&files, default)));
        let (weights, text) = (weights.await, text.await);
        let lost = |_| Error::Internal("reading the tokenizer panicked".into());
        let ((place, vocabulary, rewinds), (tokenizer, template)) =
            (weights?, text.map_err(lost)??);
        let configured_ends = configured_ends(&config, generation.as_ref());
        Ok(Model(Arc::new(Inner {
            place: Arc::new(place),
            info: ModelInfo { model_type, context: context(&config), vocabulary },
            end_tokens: end_tokens(&configured_ends, &convention, tokenizer.as_ref().ok()),
            configured_ends,
            defaults: defaults(generation.as_ref(), convention.sampling),
            tokenizer,
            template,
            rewinds,
        })))
    }

    /// Frees its memory, whoever still has a handle. Generations that run end with
    /// [`Error::Unloaded`], and so does whatever is asked of the model or its sessions from then on,
    /// but for what its tokenizer and its chat template answer.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub async fn unload(&self) -> Result<()> {
        let id = self.id();
        let unload = move || {
            if let Some(loaded) = MODELS.with_borrow_mut(|models| models.remove(&id)) {
                loaded.unloaded.set(true);
                loaded.sessions.borrow_mut().clear();
            }
            Ok(())
        };
        self.engine().run_at_once(unload).await?;
        // Between the two, the generations have had their last turn.
        self.engine().run_at_once(mlx::release_memory).await
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
        let convention = convention(&self.0.info.model_type);
        let end_tokens = end_tokens(&self.0.configured_ends, &convention, Some(&tokenizer));
        Ok(Model(Arc::new(Inner {
            place: self.0.place.clone(),
            info: self.0.info.clone(),
            template: template.map(|template| template.with_special_tokens(&tokenizer)),
            tokenizer: Ok(tokenizer),
            end_tokens,
            configured_ends: self.0.configured_ends.clone(),
            defaults: self.0.defaults.clone(),
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
        let tokens = self.encode(prompt)?;
        match self.0.info.context.filter(|limit| tokens.len() > *limit) {
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
        let request = self.request(self.tokens(&prompt.into())?, options, self.0.info.context);
        let id = self.id();
        Ok(request.start(move || {
            let loaded = find(id)?;
            let slot = Slot::passing(loaded.prompt_cache(SessionOptions::default()));
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

    /// The memory of a conversation, empty.
    pub fn session(&self, options: SessionOptions) -> Session {
        Session::new(self, options)
    }

    /// The options that lose least of those under which a session of so many tokens takes at most
    /// `bytes`: keys and values as they are, in 8 bits or in 4, and else a ring. What they leave is
    /// for snapshots.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`] when the model cannot do with that at all.
    pub async fn options_within(&self, tokens: usize, bytes: usize) -> Result<SessionOptions> {
        let id = self.id();
        let choose = move || SessionOptions::within(&*find(id)?.network, tokens, bytes);
        self.engine().run(choose).await
    }

    /// A session as [`Session::save`] has written it, perhaps in another process. What comes next is
    /// the same to the last bit. The options must be those that it had; snapshots are not saved.
    ///
    /// # Errors
    /// [`Error::SavedCache`] when the file is damaged, or was saved by another model, by another
    /// version of this library or under other options.
    pub async fn restore(
        &self,
        path: impl Into<PathBuf>,
        options: SessionOptions,
    ) -> Result<Session> {
        Session::restore(self, path.into(), options).await
    }

    /// How likely a text is, with the `top` likeliest tokens after each of its own.
    ///
    /// # Errors
    /// Those of [`Model::tokens`]; [`Error::NotANumber`].
    pub async fn score(&self, text: impl Into<Prompt>, top: usize) -> Result<(Vec<u32>, Score)> {
        let tokens = self.tokens(&text.into())?;
        let id = self.0.place.id;
        // The handle keeps the model in memory until the job is done.
        let handle = self.clone();
        self.0
            .place
            .engine
            .run(move || {
                let score = score(&*find(id)?.network, &tokens, top)?;
                drop(handle);
                Ok((tokens, score))
            })
            .await
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

/// The place of a model among those of the engine's thread, which this keeps.
struct Place {
    id: u64,
    engine: &'static Engine,
}

impl Place {
    /// On the engine's thread.
    fn new(engine: &'static Engine, loaded: Loaded) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        MODELS.with_borrow_mut(|models| models.insert(id, Rc::new(loaded)));
        Place { id, engine }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let id = self.id;
        self.engine.post_job(move || {
            MODELS.with_borrow_mut(|models| models.remove(&id));
            mlx::release_memory().ok();
        });
    }
}

/// The tokenizer, or why there is none, and the chat template, if there is one.
type TextFiles = (Result<Tokenizer, String>, Option<ChatTemplate>);

fn read_text(files: &Files, default_template: Option<&str>) -> Result<TextFiles> {
    let tokenizer = match Tokenizer::load(files) {
        Err(Error::Tokenizer { reason, .. }) if Tokenizer::file(files)?.is_none() => Err(reason),
        tokenizer => Ok(tokenizer?),
    };
    let template = match ChatTemplate::load(files)? {
        None => default_template.map(ChatTemplate::from_source).transpose()?,
        own => own,
    };
    let template = template.map(|template| match &tokenizer {
        Ok(tokenizer) => template.with_special_tokens(tokenizer),
        Err(_) => template,
    });
    Ok((tokenizer, template))
}

/// A model by its id. On the engine's thread.
pub(crate) fn find(id: u64) -> Result<Rc<Loaded>> {
    MODELS.with_borrow(|models| models.get(&id).cloned()).ok_or(Error::Unloaded)
}

/// All models. On the engine's thread.
pub(crate) fn all() -> Vec<Rc<Loaded>> {
    MODELS.with_borrow(|models| models.values().cloned().collect())
}

/// The longest sequence that a config promises, positions that are stretched included.
pub(crate) fn context(config: &Json) -> Option<usize> {
    let text = config.get("text_config").unwrap_or(config);
    let written = text.get("max_position_embeddings").or(text.get("n_positions"))?;
    let written = written.as_f64().filter(|n| *n >= 1.0)?;
    let scaling = text.get("rope_scaling").or(text.get("rope_parameters"));
    let number = |field| scaling.and_then(|scaling| scaling.get(field)).and_then(Json::as_f64);
    let original = number("original_max_position_embeddings").unwrap_or(written);
    Some(written.max(original * number("factor").unwrap_or(1.0)) as usize)
}

/// The ids that end a text by the config and the generation config.
fn configured_ends(config: &Json, generation: Option<&Json>) -> Vec<u32> {
    let mut ids = BTreeSet::new();
    for source in [Some(config), config.get("text_config"), generation].into_iter().flatten() {
        let written = source.get("eos_token_id");
        let listed = written.and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let all = listed.iter().chain(written).filter_map(Json::as_u64);
        ids.extend(all.filter_map(|id| u32::try_from(id).ok()));
    }
    ids.into_iter().collect()
}

/// And by the tokenizer and the family.
fn end_tokens(
    configured: &[u32],
    convention: &Convention,
    tokenizer: Option<&Tokenizer>,
) -> Vec<u32> {
    let mut ids: BTreeSet<u32> = configured.iter().copied().collect();
    if let Some(tokenizer) = tokenizer {
        ids.extend(tokenizer.eos_token_id());
        ids.extend(convention.end_tokens.iter().filter_map(|text| tokenizer.token_id(text)));
    }
    ids.into_iter().collect()
}

/// The sampling that `generation_config.json` recommends, or else the family.
fn defaults(generation: Option<&Json>, family: GenerateOptions) -> GenerateOptions {
    let Some(generation) = generation else { return family };
    let number = |field| generation.get(field).and_then(Json::as_f64);
    let mut options = match generation.get("do_sample").and_then(Json::as_bool) {
        None => family,
        Some(false) => GenerateOptions::default(),
        Some(true) => GenerateOptions {
            temperature: number("temperature").unwrap_or(1.0) as f32,
            top_k: number("top_k").unwrap_or(0.0) as usize,
            top_p: number("top_p").unwrap_or(1.0) as f32,
            min_p: number("min_p").unwrap_or(0.0) as f32,
            typical_p: number("typical_p").unwrap_or(1.0) as f32,
            ..GenerateOptions::default()
        },
    };
    if let Some(tokens) = number("min_new_tokens") {
        options.min_tokens = tokens as usize;
    }
    if let Some(penalty) = number("repetition_penalty") {
        options.repetition_penalty = penalty as f32;
    }
    options
}
