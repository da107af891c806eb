//! Loading: from a location to a model in memory.

use crate::{
    answer::{Compiler, Dialect},
    api::{
        defaults::{configured_ends, context, defaults, end_tokens, tool_parser_type},
        download::{CONFIG, LANGUAGE, download_adapter, download_as, download_text},
        location::{Found, Location},
        model::{Inner, Model, ModelInfo},
        preparation::Preparation,
        prompt::Prompt,
        session_options::SessionOptions,
    },
    checkpoint::files::Files,
    engine::{
        Engine, Turn,
        engine_model::{EngineModel, Place, find},
    },
    error::{Error, Result},
    families::{self, Recommended},
    generate::GenerateOptions,
    hub::{self, Downloader, Source},
    layers::cache_plan::CachePlan,
    mlx::memory::{memory_use, set_memory_limit},
    models::network::Kind,
    text::{ChatTemplate, Tokenizer},
};
use serde_json::Value as Json;
use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    thread,
};
use tokio::sync::oneshot;
use tracing::Instrument;

/// Options of loading a model. The defaults are those of the checkpoint.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The maximum length of a sequence in tokens, if shorter than that of the config.
    pub context: Option<usize>,
    /// Default cache options for sessions and [`Model::generate`]; full precision. With
    /// [`MemoryPolicy::Budget`]: the most precise cache that fits in half of the memory left beside
    /// the weights, for `context` tokens, or else for the model's context and at most 4096.
    pub session: Option<SessionOptions>,
    /// The memory that the process may use.
    pub memory: MemoryPolicy,
    /// Texts of further tokens that end the answer.
    pub end_tokens: Vec<String>,
    /// An adapter: a folder or a repository as mlx-lm writes it (`adapter_config.json` and
    /// `adapters.safetensors`; LoRA, DoRA, full layers) or PEFT (`adapter_model.safetensors`; LoRA
    /// and DoRA). The weights of the model may be quantized.
    pub adapter: Option<Location>,
    /// A draft model, which is loaded too; see [`Model::with_draft`].
    pub draft: Option<Location>,
    /// The location of the tokenizer and the chat template, if not that of the weights.
    pub tokenizer: Option<Location>,
    /// A chat template instead of the checkpoint's.
    pub chat_template: Option<String>,
    /// Sends no request: files that are not in the cache are an error.
    pub offline: bool,
    /// Downloads files in place of the built-in HTTP client.
    pub downloader: Option<Arc<dyn Downloader>>,
    /// Computes a first token while loading, so that kernels are compiled before the first request.
    pub prewarm: bool,
}

setters! {
    LoadOptions:
    memory: MemoryPolicy,
    offline: bool,
    prewarm: bool;
    optional
    context: usize,
    session: SessionOptions,
    downloader: Arc<dyn Downloader>,
}

/// The memory that all models of the process may use together; see
/// [`set_memory_limit`](crate::set_memory_limit). The policy takes effect when a model is loaded;
/// after a failed load the previous limit is in force again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryPolicy {
    /// Keeps the current limit.
    #[default]
    Unchanged,
    /// Sets the limit to this number of bytes.
    Budget(usize),
    /// Removes the limit.
    Unlimited,
}

/// Progress of loading a model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum LoadEvent {
    /// Files are downloaded from the hub.
    Download(hub::Progress),
    /// This share of the weights is in memory, from 0 to 1.
    Weights(f32),
}

pub(super) type Progress = Box<dyn FnMut(LoadEvent) + Send>;

/// A model to be loaded, made by [`Model::load`]. Awaiting it loads the model; dropping the future
/// cancels the load.
#[must_use = "a model is loaded when its `Load` is awaited"]
pub struct Load {
    location: Location,
    options: LoadOptions,
    progress: Progress,
}

impl Model {
    /// Loads a checkpoint: `"org/name"` or `"org/name@revision"` from a hub through the cache, a
    /// directory in the layout of model repositories, or a [`hub::Source`].
    ///
    /// ```no_run
    /// use mynah::{LoadOptions, Model};
    ///
    /// # async fn load() -> mynah::Result<()> {
    /// let model = Model::load("org/model").await?;
    /// let other = Model::load("./checkpoint")
    ///     .options(LoadOptions::default().context(8192))
    ///     .progress(|event| println!("{event:?}"))
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Awaiting it returns the errors of the download, the config, the weights, the tokenizer and the
    /// chat template, with the name of the model ([`Error::Model`]); [`Error::Option`];
    /// [`Error::Offline`]; [`Error::MemoryLimit`]. A checkpoint without a tokenizer loads and accepts
    /// token ids only.
    pub fn load(location: impl Into<Location>) -> Load {
        let progress = Box::new(|_| {});
        Load { location: location.into(), options: LoadOptions::default(), progress }
    }
}

impl Load {
    /// Sets the options.
    pub fn options(self, options: LoadOptions) -> Self {
        Load { options, ..self }
    }

    /// Sets a handler of progress events. It is called on other threads: first for the download, if
    /// there is one, then for the weights.
    pub fn progress(self, handler: impl FnMut(LoadEvent) + Send + 'static) -> Self {
        Load { progress: Box::new(handler), ..self }
    }

    async fn run(self) -> Result<Model> {
        let Load { location, options, progress } = self;
        if options.context == Some(0) {
            return Err(Error::option("context", "must be at least 1"));
        }
        let tell = Tell(Arc::new(Mutex::new(progress)));
        let engine = Engine::get()?;
        let resolved = Resolved::of(location, &options, &tell).await?;
        let limit = Limit::set(options.memory)?;
        let (weights, text) = resolved.read(engine, &options, tell).await?;
        if !weights.ignored_fields.is_empty() {
            let fields = weights.ignored_fields.join(", ");
            tracing::warn!(fields, "config.json has fields that the model does not use");
        }
        let session = options.session_for(&weights, resolved.context(&options)).await?;
        let mut model = resolved.model(&options, weights, text, session)?;
        if let Some(location) = options.draft.clone() {
            model = model.with_draft(&options.load_draft(location).await?)?;
        }
        if options.prewarm {
            model.prewarm().await?;
        }
        limit.keep();
        Ok(model)
    }
}

impl IntoFuture for Load {
    type Output = Result<Model>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Model>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let name = self.location.to_string();
        let span = tracing::info_span!("load", model = name);
        Box::pin(
            async move {
                tracing::info!("load started");
                let loaded = self.run().await.map_err(Error::of_model(name));
                match &loaded {
                    Ok(model) => {
                        tracing::info!(model_type = model.info().model_type, "load finished")
                    }
                    Err(error) => tracing::info!(kind = ?error.kind(), "load failed"),
                }
                loaded
            }
            .instrument(span),
        )
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Load").field("location", &self.location).finish_non_exhaustive()
    }
}

/// The handler of progress events, shared by the threads that report them.
#[derive(Clone)]
pub(super) struct Tell(pub(super) Arc<Mutex<Progress>>);

impl Tell {
    pub(super) fn event(&self, event: LoadEvent) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)(event);
    }
}

/// The memory limit of a load. Dropping it restores the limit before, unless the load keeps it.
pub(super) struct Limit {
    before: Option<usize>,
    /// The limit that this load has set.
    set: Option<Option<usize>>,
}

impl Limit {
    pub(super) fn set(policy: MemoryPolicy) -> Result<Self> {
        let before = memory_use()?.limit;
        let set = match policy {
            MemoryPolicy::Unchanged => None,
            MemoryPolicy::Budget(bytes) => Some(Some(bytes)),
            MemoryPolicy::Unlimited => Some(None),
        };
        set.map(set_memory_limit).transpose()?;
        Ok(Limit { before, set })
    }

    pub(super) fn keep(mut self) {
        self.set = None;
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let Some(set) = self.set else { return };
        // The application, or another load, may have set another limit meanwhile.
        if memory_use().is_ok_and(|memory| memory.limit == set)
            && let Err(error) = set_memory_limit(self.before)
        {
            tracing::warn!(%error, "the memory limit could not be restored");
        }
    }
}

/// The files of a model on this machine.
struct Resolved {
    files: Files,
    /// The files of the tokenizer and the chat template.
    text: Files,
    adapter: Option<Files>,
    /// The config, where there is one.
    found: Option<Json>,
    /// The config; an empty object without one.
    config: Json,
    generation: Option<Json>,
    model_type: String,
    recommended: Recommended,
}

/// A model on the engine thread.
struct Weights {
    place: Place,
    vocabulary: u32,
    rewinds: bool,
    ignored_fields: Vec<String>,
}

/// What converts between text and tokens.
struct Text {
    tokenizer: Option<Tokenizer>,
    template: Option<ChatTemplate>,
    dialect: Dialect,
}

impl Resolved {
    /// Downloads what is not on this machine.
    async fn of(location: Location, options: &LoadOptions, tell: &Tell) -> Result<Self> {
        let files = match location.resolve()? {
            Found::Here(files) => files,
            Found::Hub(source) => {
                let tell = tell.clone();
                let tell = move |progress| tell.event(LoadEvent::Download(progress));
                download_as(&options.source(*source), LANGUAGE, tell).await?.into()
            }
        };
        let found = files.json(CONFIG)?;
        let family = families::family(&files, found.as_ref())?;
        let (config, recommended) = (found.clone().unwrap_or_default(), family.recommended);
        family.expect(Kind::Language, &config)?;
        let model_type = family.name(&config).to_string();
        let generation = files.json("generation_config.json")?;
        let text = match options.tokenizer.clone().map(Location::resolve).transpose()? {
            None => files.clone(),
            Some(Found::Here(files)) => files,
            Some(Found::Hub(source)) => download_text(&options.source(*source)).await?.into(),
        };
        let adapter = match options.adapter.clone().map(Location::resolve).transpose()? {
            None => None,
            Some(Found::Here(files)) => Some(files),
            Some(Found::Hub(source)) => {
                Some(download_adapter(&options.source(*source)).await?.into())
            }
        };
        Ok(Resolved { files, text, adapter, found, config, generation, model_type, recommended })
    }

    /// Reads the weights on the engine thread and the tokenizer on another one. Both take long for
    /// some models.
    async fn read(
        &self,
        engine: &'static Engine,
        options: &LoadOptions,
        tell: Tell,
    ) -> Result<(Weights, Text)> {
        let (files, adapter) = (self.files.clone(), self.adapter.clone());
        let found = self.found.clone();
        let weights = engine.run_in_turns(Turn::Ready, move || {
            let tell = move |share| tell.event(LoadEvent::Weights(share));
            let mut reading = EngineModel::read(&files, adapter.as_ref(), found.as_ref(), tell)?;
            Ok(move || {
                let Some(loaded) = reading()? else { return Ok(None) };
                let network = loaded.language()?;
                let vocabulary = network.vocabulary();
                let rewinds = network.cache(&CachePlan::default()).rewinds();
                let ignored_fields = loaded.ignored_fields.clone();
                let place = Place::new(engine, loaded);
                Ok(Some(Weights { place, vocabulary, rewinds, ignored_fields }))
            })
        });
        let (report, text) = oneshot::channel();
        let (files, recommended) = (self.text.clone(), self.recommended.chat_template);
        let (own, is_required) = (options.chat_template.clone(), options.tokenizer.is_some());
        thread::spawn(move || {
            let text = Text::read(&files, is_required)
                .and_then(|text| text.with_template(&files, own.as_deref(), recommended));
            report.send(text).ok();
        });
        let (weights, text) = (weights.await, text.await);
        let lost = |_| Error::Internal("reading the tokenizer panicked".into());
        Ok((weights?, text.map_err(lost)??))
    }

    /// The maximum length of a sequence.
    fn context(&self, options: &LoadOptions) -> Option<usize> {
        context(&self.config, &self.recommended).into_iter().chain(options.context).min()
    }

    /// How the model prepares pictures, unless the checkpoint has no vision tower.
    fn preparation(&self, tokenizer: Option<&Tokenizer>) -> Result<Option<Preparation>> {
        let family = families::family(&self.files, self.found.as_ref())?;
        let has_tower = self.config.get("vision_config").is_some_and(|config| !config.is_null());
        let read = family.processor.filter(|_| has_tower);
        Ok(read.map(|read| Preparation::new(read, &self.config, &self.files, tokenizer)))
    }

    fn model(
        self,
        options: &LoadOptions,
        weights: Weights,
        text: Text,
        session: SessionOptions,
    ) -> Result<Model> {
        let generation = self.generation.as_ref();
        let mut configured_ends = configured_ends(&self.config, generation);
        configured_ends.extend(options.end_token_ids(text.tokenizer.as_ref())?);
        let preparation = self.preparation(text.tokenizer.as_ref())?.map(Arc::new);
        let template = match &preparation {
            Some(preparation) => text.template.map(|template| preparation.template(template)),
            None => text.template,
        };
        Ok(Model(Arc::new(Inner {
            info: ModelInfo {
                model_type: self.model_type.clone(),
                context: self.context(options),
                vocabulary: weights.vocabulary,
            },
            end_tokens: end_tokens(
                &configured_ends,
                &self.recommended,
                text.tokenizer.as_ref(),
                template.as_ref(),
            ),
            configured_ends,
            defaults: defaults(generation, self.recommended.sampling),
            session,
            compiler: text.tokenizer.clone().map(Compiler::new).map(Arc::new),
            tokenizer: text.tokenizer,
            template,
            preparation,
            dialect: Arc::new(text.dialect),
            rewinds: weights.rewinds,
            place: Arc::new(weights.place),
            draft: None,
        })))
    }
}

impl Text {
    /// The tokenizer. A checkpoint without any trace of one has only token ids, unless one is required.
    fn read(files: &Files, is_required: bool) -> Result<Self> {
        let has_tokenizer = is_required || Tokenizer::is_expected(files)?;
        if !has_tokenizer {
            tracing::info!("the checkpoint has no tokenizer: the model takes token ids only");
        }
        let tokenizer = has_tokenizer.then(|| Tokenizer::load(files)).transpose()?;
        Ok(Text { tokenizer, template: None, dialect: Dialect::default() })
    }

    /// With the chat template `own`, or else that of the files, or else the recommended one.
    fn with_template(
        self,
        files: &Files,
        own: Option<&str>,
        recommended: Option<&str>,
    ) -> Result<Self> {
        let template = match own {
            Some(source) => Some(ChatTemplate::from_source(source)?),
            None => match ChatTemplate::load(files)? {
                None => recommended.map(ChatTemplate::from_source).transpose()?,
                template => template,
            },
        };
        let template = template.map(|template| match &self.tokenizer {
            Some(tokenizer) => template.with_special_tokens(tokenizer),
            None => template,
        });
        let parser = tool_parser_type(files)?;
        let dialect = Dialect::of(template.as_ref(), self.tokenizer.as_ref(), parser.as_deref());
        Ok(Text { template, dialect, ..self })
    }
}

impl Model {
    /// Computes a prompt and a decode step, and keeps nothing of them.
    async fn prewarm(&self) -> Result<()> {
        let options = GenerateOptions::default().max_tokens(2).ignore_end(true);
        let mut generation = self.generate(Prompt::Tokens(vec![0]), &options)?;
        while let Some(event) = generation.next().await {
            event?;
        }
        Ok(())
    }
}

impl LoadOptions {
    /// Sets [`adapter`](Self#structfield.adapter).
    #[must_use]
    pub fn adapter(mut self, location: impl Into<Location>) -> Self {
        self.adapter = Some(location.into());
        self
    }

    /// Sets [`draft`](Self#structfield.draft).
    #[must_use]
    pub fn draft(mut self, location: impl Into<Location>) -> Self {
        self.draft = Some(location.into());
        self
    }

    /// Loads a draft model from where the model comes from, without its progress.
    fn load_draft(&self, location: Location) -> <Load as IntoFuture>::IntoFuture {
        let LoadOptions { offline, downloader, prewarm, .. } = self.clone();
        let options = LoadOptions { offline, downloader, prewarm, ..LoadOptions::default() };
        Model::load(location).options(options).into_future()
    }

    /// Sets [`tokenizer`](Self#structfield.tokenizer).
    #[must_use]
    pub fn tokenizer(mut self, location: impl Into<Location>) -> Self {
        self.tokenizer = Some(location.into());
        self
    }

    /// Sets [`chat_template`](Self#structfield.chat_template).
    #[must_use]
    pub fn chat_template(mut self, source: impl Into<String>) -> Self {
        self.chat_template = Some(source.into());
        self
    }

    /// Sets [`end_tokens`](Self#structfield.end_tokens).
    #[must_use]
    pub fn end_tokens(mut self, texts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.end_tokens = texts.into_iter().map(Into::into).collect();
        self
    }

    pub(super) fn source(&self, source: Source) -> Source {
        let source = if self.offline { source.offline() } else { source };
        match &self.downloader {
            Some(downloader) => source.with_downloader(downloader.clone()),
            None => source,
        }
    }

    /// The ids of the further end tokens.
    fn end_token_ids(&self, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
        let id = |text: &String| {
            let id = tokenizer.and_then(|tokenizer| tokenizer.token_id(text));
            let reason = || format!("`{text}` is not a token of the tokenizer");
            id.ok_or_else(|| Error::option("end_tokens", reason()))
        };
        self.end_tokens.iter().map(id).collect()
    }

    /// The default options of sessions: as given, or as the memory budget allows.
    async fn session_for(
        &self,
        weights: &Weights,
        context: Option<usize>,
    ) -> Result<SessionOptions> {
        const USUAL: usize = 4096;
        let (None, MemoryPolicy::Budget(bytes)) = (self.session, self.memory) else {
            return Ok(self.session.unwrap_or_default());
        };
        let most = context.unwrap_or(USUAL);
        let tokens = self.context.map_or(most.min(USUAL), |wanted| wanted.min(most));
        let left = bytes.saturating_sub(memory_use()?.active) / 2;
        let id = weights.place.id;
        let within = move || SessionOptions::within(&**find(id)?.language()?, tokens, left);
        weights.place.engine.run(within).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::inspect::inspect, families::tests::speech_weights};
    use mlx_rs::Array;
    use std::{fs, path::Path};

    /// A checkpoint that only its files tell: no config, and weights under a name of their own.
    fn write(folder: &Path) {
        fs::write(folder.join("am.mvn"), "1").unwrap();
        let weights = speech_weights().unwrap();
        Array::save_safetensors(&weights, None, folder.join("speech-1.safetensors")).unwrap();
    }

    #[test]
    fn a_model_of_another_kind_is_no_language_model() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path());
        let loaded = crate::engine::block_on(Model::load(folder.path()).into_future())
            .map_err(Error::into_cause);
        let Some(Error::ModelKind { model_type, found, .. }) = loaded.err() else { unreachable!() };
        assert_eq!((&*model_type, found), ("test_transcriber", "a transcriber (speech to text)"));
        let inspection = crate::engine::block_on(inspect(folder.path(), None)).unwrap();
        assert_eq!(inspection.problem, None);
        assert_eq!(inspection.family, Some("test_transcriber"));
        assert_eq!(inspection.capabilities, ["transcription"]);
        assert_eq!(inspection.parameters, 32 * 16 + 16 + 5 * 4 * 256);
        fs::remove_file(folder.path().join("speech-1.safetensors")).unwrap();
        let missing =
            crate::engine::block_on(inspect(folder.path(), None)).err().unwrap().to_string();
        assert!(missing.contains("speech-*.safetensors"), "{missing}");
    }
}
