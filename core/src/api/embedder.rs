//! The handle of a model that embeds texts.

use crate::{
    api::{
        location::Location,
        network::{self, Preview},
        text_batches::{self, DEFAULT_BATCH},
        text_reader::{PromptChoice, TextReader},
    },
    engine::engine_model::{EngineModel, Place, find},
    error::{Error, Result},
    models::network::Kind,
};
use std::{collections::BTreeMap, sync::Arc};

/// A model of text embeddings in memory. Handles are cheap to clone and may be used from any thread.
/// Dropping the last handle frees the memory.
///
/// ```no_run
/// # async fn example() -> mynah::Result<()> {
/// use mynah::{EmbedOptions, Embedder};
///
/// let embedder = Embedder::load("org/model").await?;
/// let options = EmbedOptions::default().prompt_name("query".to_string());
/// let embeddings = embedder.embed(&["Who wrote Faust?"], &options).await?;
/// println!("{} dimensions", embeddings.vectors[0].len());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Embedder(Arc<Inner>);

struct Inner {
    place: Arc<Place>,
    reader: TextReader,
    dimensions: usize,
    longest: Option<usize>,
}

/// How texts are embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedOptions {
    /// A text before each text, in place of the checkpoint's default prompt; an empty one is none.
    pub prompt: Option<String>,
    /// The name of one of the checkpoint's prompts, such as `query`.
    pub prompt_name: Option<String>,
    /// Only the first elements of each vector, for models that were trained for it (Matryoshka).
    pub dimensions: Option<usize>,
    /// Scales each vector to length 1 in the end. A model whose vectors have length 1 gives shorter ones
    /// when they are cut; this makes up for it. Off by default, as in sentence-transformers.
    pub normalize: bool,
    /// The most tokens of a text, the rest of which is left out; by default what the checkpoint says.
    pub max_length: Option<usize>,
    /// The most texts that are computed at once.
    pub batch_size: usize,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        EmbedOptions {
            prompt: None,
            prompt_name: None,
            dimensions: None,
            normalize: false,
            max_length: None,
            batch_size: DEFAULT_BATCH,
        }
    }
}

setters! {
    EmbedOptions: normalize: bool, batch_size: usize;
    optional prompt: String, prompt_name: String, dimensions: usize, max_length: usize
}

/// The vectors of texts, in the order of the texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// One vector a text.
    pub vectors: Vec<Vec<f32>>,
    /// How many tokens of each text were read, special tokens and the prompt included.
    pub tokens: Vec<usize>,
}

impl Embedder {
    /// Loads an embedder from a hub or a directory.
    ///
    /// # Errors
    /// As [`Model::load`](crate::Model::load).
    pub async fn load(location: impl Into<Location>) -> Result<Self> {
        let read = |preview: &Preview| {
            preview.family.expect(Kind::Embedder, &preview.config)?;
            TextReader::read(preview.files, &preview.config)
        };
        let about = |model: &EngineModel| {
            let embedder = model.embedder()?;
            Ok((embedder.width(), embedder.longest()))
        };
        let loaded = network::load_with(location.into(), read, about).await?;
        let (dimensions, longest) = loaded.facts;
        let (place, reader) = (Arc::new(loaded.place), loaded.settings);
        let longest = reader.longest().into_iter().chain(longest).min();
        Ok(Embedder(Arc::new(Inner { place, reader, dimensions, longest })))
    }

    /// How many elements its vectors have.
    pub fn dimensions(&self) -> usize {
        self.0.dimensions
    }

    /// The most tokens of a text that it reads; the rest is left out.
    pub fn max_length(&self) -> Option<usize> {
        self.0.longest
    }

    /// The checkpoint's prompts by their names.
    pub fn prompts(&self) -> BTreeMap<String, String> {
        self.0.reader.prompts()
    }

    /// The vectors of texts. Texts of similar length are computed together, so their order does not
    /// matter. Dropping the future ends the computation after the current batch.
    ///
    /// # Errors
    /// [`Error::EmptyText`]; [`Error::Option`] for an unknown prompt, and for a number of dimensions, a
    /// length or a size of batches that cannot be; [`Error::NotANumber`]; [`Error::MemoryLimit`];
    /// [`Error::Mlx`].
    pub async fn embed(
        &self,
        texts: &[impl AsRef<str>],
        options: &EmbedOptions,
    ) -> Result<Embeddings> {
        let Inner { place, reader, dimensions, longest } = &*self.0;
        let kept = options.dimensions.or(reader.dimensions()).unwrap_or(*dimensions);
        if kept == 0 || kept > *dimensions {
            let reason = format!("{kept} of the {dimensions} elements of a vector");
            return Err(Error::option("dimensions", reason));
        }
        let longest = text_batches::longest(options.max_length, *longest)?;
        let choice = PromptChoice::new(options.prompt.as_deref(), options.prompt_name.as_deref())?;
        let prompt = reader.prompt(&choice)?;
        let read = |(index, text): (usize, &str)| {
            let tokens = reader.text(text, prompt.as_deref(), longest)?;
            if text.is_empty() || tokens.ids.is_empty() {
                return Err(Error::EmptyText { index });
            }
            Ok(tokens)
        };
        let tokens: Vec<_> =
            texts.iter().map(AsRef::as_ref).enumerate().map(read).collect::<Result<_>>()?;
        let counts = tokens.iter().map(|tokens| tokens.ids.len()).collect();
        let id = place.id;
        let run = move |batch: &_| find(id)?.embedder()?.embed(batch);
        let vocabulary = move || Ok(find(id)?.embedder()?.vocabulary());
        let engine = place.engine;
        let rows = text_batches::run(engine, tokens, options.batch_size, vocabulary, run).await?;
        let vectors = rows.into_iter().map(|mut row| {
            row.truncate(kept);
            if options.normalize {
                let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
                row.iter_mut().for_each(|x| *x /= length);
            }
            row
        });
        Ok(Embeddings { vectors: vectors.collect(), tokens: counts })
    }
}
