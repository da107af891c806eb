//! From a location to a model in memory.

use crate::{
    api::{
        defaults::{configured_ends, context, defaults, end_tokens},
        download::{CONFIG, LANGUAGE, download_adapter, download_text},
        location::{Found, Location},
        model::{Inner, Model, ModelInfo},
        prompt::Prompt,
        session_options::SessionOptions,
    },
    checkpoint::files::Files,
    engine::{
        Engine, Turn,
        engine_model::{EngineModel, Place, find},
    },
    error::{Error, Result},
    families,
    generate::GenerateOptions,
    hub::{self, Downloader, Source},
    layers::cache_plan::CachePlan,
    mlx::memory::{memory_use, set_memory_limit},
    models::network::Kind,
    text::{ChatTemplate, Tokenizer},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
};
use tokio::sync::oneshot;

/// How to load a model. By default as its checkpoint says.
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// The longest sequence, in tokens, where that shall be shorter than what the model was made
    /// for.
    pub context: Option<usize>,
    /// How its sessions remember where nobody says otherwise, and how [`Model::generate`] does. By
    /// default in full precision. Under a [budget](MemoryPolicy::Budget) it is what loses least and
    /// fits in half of what the weights leave, for `context` tokens, or else for as many as the
    /// model was made for and at most 4096.
    pub session: Option<SessionOptions>,
    /// What the process may take.
    pub memory: MemoryPolicy,
    /// Further tokens that end the text.
    pub end_tokens: Vec<String>,
    /// What fine-tuning added to the model or changed in it, in a folder as mlx-lm writes it
    /// (`adapter_config.json` and `adapters.safetensors`; LoRA, DoRA, or layers as a whole) or PEFT
    /// (`adapter_model.safetensors`; LoRA and DoRA). The model's own weights may be quantized.
    pub adapter: Option<Location>,
    /// Where the tokenizer and the chat template are, if not beside the weights.
    pub tokenizer: Option<Location>,
    /// A chat template instead of those of the files.
    pub chat_template: Option<String>,
    /// Makes no request: what is not in the cache is an error.
    pub offline: bool,
    /// Another transport for the files.
    pub downloader: Option<Arc<dyn Downloader>>,
    /// Computes a first token before the model is there, so that nobody waits later for what is
    /// compiled at first use.
    pub prewarm: bool,
}

/// How much memory all models of the process may take together: see
/// [`set_memory_limit`](crate::set_memory_limit).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryPolicy {
    /// What has been set stays.
    #[default]
    Unchanged,
    /// So many bytes from now on.
    Budget(usize),
    /// No limit from now on.
    Unlimited,
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
        Model::load_with(location, LoadOptions::default(), progress).await
    }

    /// As [`Model::load`], with options.
    ///
    /// # Errors
    /// Those of [`Model::load`]; [`Error::Option`]; [`Error::Offline`]; [`Error::MemoryLimit`].
    pub async fn load_with(
        location: impl Into<Location>,
        options: LoadOptions,
        progress: impl FnMut(LoadEvent) + Send + 'static,
    ) -> Result<Self> {
        if options.context == Some(0) {
            return Err(Error::option("context", "0 is out of range"));
        }
        match options.memory {
            MemoryPolicy::Unchanged => {}
            MemoryPolicy::Budget(bytes) => set_memory_limit(Some(bytes))?,
            MemoryPolicy::Unlimited => set_memory_limit(None)?,
        }
        let progress = Arc::new(Mutex::new(progress));
        let tell = move |event| progress.lock().unwrap_or_else(PoisonError::into_inner)(event);
        let files = match location.into().resolve()? {
            Found::Here(files) => files,
            Found::Hub(source) => {
                let tell = tell.clone();
                let tell = move |progress| tell(LoadEvent::Download(progress));
                hub::fetch(&options.source(*source), LANGUAGE, tell).await?.into()
            }
        };
        let found = files.json(CONFIG)?;
        let family = families::family(&files, found.as_ref())?;
        let (config, recommended) = (found.clone().unwrap_or_default(), family.recommended);
        family.expect(Kind::Language, &config)?;
        let model_type = family.name(&config).to_string();
        let engine = Engine::get()?;
        let generation = files.json("generation_config.json")?;
        let text_files = match options.tokenizer.clone().map(Location::resolve).transpose()? {
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

        let weights = {
            engine.run_in_turns(Turn::Ready, move || {
                let tell = move |share| tell(LoadEvent::Weights(share));
                let mut reading =
                    EngineModel::read(&files, adapter.as_ref(), found.as_ref(), tell)?;
                Ok(move || {
                    let Some(loaded) = reading()? else { return Ok(None) };
                    let network = loaded.language()?;
                    let vocabulary = network.vocabulary();
                    let rewinds = network.cache(&CachePlan::default()).rewinds();
                    Ok(Some((Place::new(engine, loaded), vocabulary, rewinds)))
                })
            })
        };
        // A large tokenizer takes as long as the weights do, so both are read at once.
        let (report, text) = oneshot::channel();
        let templates = (options.chat_template.clone(), recommended.chat_template);
        let is_required = options.tokenizer.is_some();
        thread::spawn(move || report.send(read_text(&text_files, templates, is_required)));
        let (weights, text) = (weights.await, text.await);
        let lost = |_| Error::Internal("reading the tokenizer panicked".into());
        let ((place, vocabulary, rewinds), (tokenizer, template)) =
            (weights?, text.map_err(lost)??);
        let mut configured_ends = configured_ends(&config, generation.as_ref());
        configured_ends.extend(options.end_tokens(&tokenizer)?);
        let context = context(&config).into_iter().chain(options.context).min();
        let session = match (options.session, options.memory) {
            (None, MemoryPolicy::Budget(bytes)) => {
                const USUAL: usize = 4096;
                let most = context.unwrap_or(USUAL);
                let tokens = options.context.map_or(most.min(USUAL), |wanted| wanted.min(most));
                let left = bytes.saturating_sub(memory_use()?.active) / 2;
                let id = place.id;
                let within = move || SessionOptions::within(&**find(id)?.language()?, tokens, left);
                engine.run(within).await?
            }
            (session, _) => session.unwrap_or_default(),
        };
        let model = Model(Arc::new(Inner {
            place: Arc::new(place),
            info: ModelInfo { model_type, context, vocabulary },
            end_tokens: end_tokens(&configured_ends, &recommended, tokenizer.as_ref().ok()),
            configured_ends,
            defaults: defaults(generation.as_ref(), recommended.sampling),
            session,
            tokenizer,
            template,
            rewinds,
        }));
        if options.prewarm {
            model.prewarm().await?;
        }
        Ok(model)
    }

    /// Goes through a prompt and a decode step, of which nothing stays.
    async fn prewarm(&self) -> Result<()> {
        let options =
            GenerateOptions { max_tokens: 2, ignore_end: true, ..GenerateOptions::default() };
        let mut generation = self.generate(Prompt::Tokens(vec![0]), &options)?;
        while let Some(event) = generation.next().await {
            event?;
        }
        Ok(())
    }
}

impl LoadOptions {
    fn source(&self, source: Source) -> Source {
        let source = if self.offline { source.offline() } else { source };
        match &self.downloader {
            Some(downloader) => source.with_downloader(downloader.clone()),
            None => source,
        }
    }

    /// The ids of the further tokens that end the text.
    fn end_tokens(&self, tokenizer: &Result<Tokenizer, String>) -> Result<Vec<u32>> {
        let id = |text: &String| {
            let id = tokenizer.as_ref().ok().and_then(|tokenizer| tokenizer.token_id(text));
            id.ok_or_else(|| Error::option("end_tokens", format!("`{text}` is no token")))
        };
        self.end_tokens.iter().map(id).collect()
    }
}

/// The tokenizer, or why there is none, and the chat template, if there is one.
type TextFiles = (Result<Tokenizer, String>, Option<ChatTemplate>);

/// With the first template, if there is one, in place of the files' own, and with the second where
/// those have none. A tokenizer that somebody asked for must be there.
fn read_text(
    files: &Files,
    (template, default): (Option<String>, Option<&str>),
    is_required: bool,
) -> Result<TextFiles> {
    let tokenizer = match Tokenizer::load(files) {
        Err(Error::Tokenizer { reason, .. })
            if !is_required && Tokenizer::file(files)?.is_none() =>
        {
            Err(reason)
        }
        tokenizer => Ok(tokenizer?),
    };
    let template = match template {
        Some(source) => Some(ChatTemplate::from_source(&source)?),
        None => match ChatTemplate::load(files)? {
            None => default.map(ChatTemplate::from_source).transpose()?,
            own => own,
        },
    };
    let template = template.map(|template| match &tokenizer {
        Ok(tokenizer) => template.with_special_tokens(tokenizer),
        Err(_) => template,
    });
    Ok((tokenizer, template))
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
        let loaded = crate::engine::block_on(Model::load(folder.path(), |_| {}));
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
