//! The handle that applications hold.

use crate::{
    config::Json,
    error::{Error, Result},
    files::Files,
    generate::{Engine, GenerateOptions, Generation, Prompt, Request, Score, score},
    loaded::{Loaded, family, model_type},
    mlx,
    text::{ChatTemplate, Message, TemplateOptions, Tokenizer},
};
use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
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
    place: Place,
    info: ModelInfo,
    /// Or why there is none.
    tokenizer: Result<Tokenizer, String>,
    template: Option<ChatTemplate>,
    end_tokens: Vec<u32>,
    defaults: GenerateOptions,
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

impl From<&Path> for Files {
    fn from(directory: &Path) -> Self {
        Files::Directory(directory.into())
    }
}

impl From<PathBuf> for Files {
    fn from(directory: PathBuf) -> Self {
        Files::Directory(directory)
    }
}

impl From<&str> for Files {
    fn from(directory: &str) -> Self {
        Files::Directory(directory.into())
    }
}

impl Model {
    /// Loads a checkpoint from a directory in the layout that model repositories have; `progress`
    /// gets the share of the weights that is in memory, from 0 to 1, on the engine's thread.
    ///
    /// # Errors
    /// Whatever is wrong with the config, the weights, the tokenizer or the chat template; see
    /// [`Error`]. A checkpoint without a tokenizer loads, and takes and gives tokens only.
    pub async fn load(
        files: impl Into<Files>,
        progress: impl FnMut(f32) + Send + 'static,
    ) -> Result<Self> {
        let files = files.into();
        let config =
            files.json("config.json")?.ok_or_else(|| Error::config("", "there is no such file"))?;
        let model_type = model_type(&config)?.to_string();
        family(&config)?;
        let engine = Engine::get()?;
        let generation = files.json("generation_config.json")?;

        static NEXT: AtomicU64 = AtomicU64::new(0);
        let place = Place { id: NEXT.fetch_add(1, Ordering::Relaxed), engine };
        let vocabulary = {
            let (id, files, config) = (place.id, files.clone(), config.clone());
            engine.run(move || {
                let loaded = Loaded::read(&files, &config, progress)?;
                let vocabulary = loaded.network.vocabulary();
                MODELS.with_borrow_mut(|models| models.insert(id, Rc::new(loaded)));
                Ok(vocabulary)
            })
        };
        // A large tokenizer takes as long as the weights do, so both are read at once.
        let (report, text) = oneshot::channel();
        thread::spawn(move || report.send(read_text(&files)));
        let (vocabulary, text) = (vocabulary.await, text.await);
        let lost = |_| Error::Internal("reading the tokenizer panicked".into());
        let (vocabulary, (tokenizer, template)) = (vocabulary?, text.map_err(lost)??);
        Ok(Model(Arc::new(Inner {
            place,
            info: ModelInfo { model_type, context: context(&config), vocabulary },
            end_tokens: end_tokens(&config, generation.as_ref(), tokenizer.as_ref().ok()),
            defaults: defaults(generation.as_ref()),
            tokenizer,
            template,
        })))
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

    /// The options that its checkpoint recommends.
    pub fn default_options(&self) -> GenerateOptions {
        self.0.defaults.clone()
    }

    /// The ids that end a text: those of the config, of the generation config and of the tokenizer.
    pub fn end_tokens(&self) -> &[u32] {
        &self.0.end_tokens
    }

    /// A conversation as the text that the model sees.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`], [`Error::ChatTemplate`].
    pub fn render(&self, messages: &[Message], options: &TemplateOptions) -> Result<String> {
        let template = self.0.template.as_ref().ok_or(Error::NoChatTemplate)?;
        template.render(messages, options)
    }

    /// The tokens of a prompt.
    ///
    /// # Errors
    /// Those of [`Model::render`] and [`Model::tokenizer`]; [`Error::EmptyPrompt`],
    /// [`Error::TokenOutOfVocabulary`], [`Error::ContextOverflow`].
    pub fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let tokens = match prompt {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Text(text) if text.is_empty() => Vec::new(),
            Prompt::Text(text) => self.tokenizer()?.encode(text, true)?,
            Prompt::Chat(messages, options) => {
                self.tokenizer()?.encode(&self.render(messages, options)?, false)?
            }
        };
        let ModelInfo { vocabulary, context, .. } = self.0.info;
        if let Some(&id) = tokens.iter().find(|id| **id >= vocabulary) {
            return Err(Error::TokenOutOfVocabulary { id, vocabulary });
        }
        match (tokens.len(), context) {
            (0, _) => Err(Error::EmptyPrompt),
            (tokens, Some(limit)) if tokens > limit => {
                Err(Error::ContextOverflow { tokens, limit })
            }
            _ => Ok(tokens),
        }
    }

    /// Starts to continue a prompt. The stream yields progress, tokens, and a summary last.
    ///
    /// # Errors
    /// Those of [`Model::tokens`]; [`Error::Option`].
    pub fn generate(
        &self,
        prompt: impl Into<Prompt>,
        options: &GenerateOptions,
    ) -> Result<Generation> {
        options.check()?;
        let request = Request {
            engine: self.0.place.engine,
            prompt: self.tokens(&prompt.into())?,
            options: options.clone(),
            end_tokens: self.0.end_tokens.clone(),
            tokenizer: self.0.tokenizer.clone().ok(),
        };
        let id = self.0.place.id;
        Ok(request.start(move || find(id)))
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

/// The place of a model among those of the engine's thread, which this keeps.
struct Place {
    id: u64,
    engine: &'static Engine,
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

fn read_text(files: &Files) -> Result<TextFiles> {
    let tokenizer = match Tokenizer::load(files) {
        Err(Error::Tokenizer { reason, .. }) if files.read("tokenizer.json")?.is_none() => {
            Err(reason)
        }
        tokenizer => Ok(tokenizer?),
    };
    let template = ChatTemplate::load(files)?.map(|template| match &tokenizer {
        Ok(tokenizer) => template.with_special_tokens(tokenizer),
        Err(_) => template,
    });
    Ok((tokenizer, template))
}

fn find(id: u64) -> Result<Rc<Loaded>> {
    MODELS
        .with_borrow(|models| models.get(&id).cloned())
        .ok_or_else(|| Error::Internal("gone".into()))
}

/// The longest sequence that a config promises, positions that are stretched included.
pub(crate) fn context(config: &Json) -> Option<usize> {
    let text = config.get("text_config").unwrap_or(config);
    let written = text.get("max_position_embeddings")?.as_f64().filter(|n| *n >= 1.0)?;
    let scaling = text.get("rope_scaling").or(text.get("rope_parameters"));
    let number = |field| scaling.and_then(|scaling| scaling.get(field)).and_then(Json::as_f64);
    let original = number("original_max_position_embeddings").unwrap_or(written);
    Some(written.max(original * number("factor").unwrap_or(1.0)) as usize)
}

fn end_tokens(config: &Json, generation: Option<&Json>, tokenizer: Option<&Tokenizer>) -> Vec<u32> {
    let mut ids: BTreeSet<u32> = tokenizer.and_then(Tokenizer::eos_token_id).into_iter().collect();
    for source in [Some(config), config.get("text_config"), generation].into_iter().flatten() {
        let written = source.get("eos_token_id");
        let listed = written.and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let all = listed.iter().chain(written).filter_map(Json::as_u64);
        ids.extend(all.filter_map(|id| u32::try_from(id).ok()));
    }
    ids.into_iter().collect()
}

/// The sampling that `generation_config.json` recommends.
fn defaults(generation: Option<&Json>) -> GenerateOptions {
    let mut options = GenerateOptions::default();
    let Some(generation) = generation else { return options };
    let number = |field| generation.get(field).and_then(Json::as_f64);
    if generation.get("do_sample").and_then(Json::as_bool) == Some(true) {
        options.temperature = number("temperature").unwrap_or(1.0) as f32;
        options.top_k = number("top_k").unwrap_or(0.0) as usize;
        options.top_p = number("top_p").unwrap_or(1.0) as f32;
        options.min_p = number("min_p").unwrap_or(0.0) as f32;
    }
    options.repetition_penalty = number("repetition_penalty").unwrap_or(1.0) as f32;
    options
}
