//! The handle of a model that orders documents by how well they fit a query.

use crate::{
    api::{
        location::Location,
        network::{self, Preview},
        text_batches::{self, DEFAULT_BATCH},
        text_reader::{PromptChoice, TextReader},
    },
    engine::engine_model::{EngineModel, Place, find},
    error::{Error, Result},
    families,
    models::{self, network::Kind},
};
use serde_json::Value;
use std::{rc::Rc, sync::Arc};

/// A reranker in memory. Handles are cheap to clone and may be used from any thread. Dropping the last
/// handle frees the memory.
///
/// ```no_run
/// # async fn example() -> mynah::Result<()> {
/// use mynah::{RerankOptions, Reranker};
///
/// let reranker = Reranker::load("org/model").await?;
/// let documents = ["Goethe wrote Faust.", "Bread needs yeast."];
/// let ranked =
///     reranker.rerank("Who wrote Faust?", &documents, &RerankOptions::default()).await?;
/// println!("{}", documents[ranked[0].index]);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Reranker(Arc<Inner>);

struct Inner {
    place: Arc<Place>,
    reader: TextReader,
    activation: Activation,
    judge: Option<Judge>,
    longest: Option<usize>,
}

/// The tokens with which a language model answers.
#[derive(Clone, Copy)]
struct Judge {
    yes: u32,
    no: u32,
}

/// What makes a score of the number that the model computes.
#[derive(Clone, Copy)]
enum Activation {
    Identity,
    Sigmoid,
}

/// How documents are ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RerankOptions {
    /// A text before the query, or the instruction of a model that takes one, in place of the
    /// checkpoint's default prompt.
    pub prompt: Option<String>,
    /// The name of one of the checkpoint's prompts.
    pub prompt_name: Option<String>,
    /// The most documents to return; all by default.
    pub top: Option<usize>,
    /// The most tokens of a query and a document, the rest of which is left out; by default what the
    /// checkpoint says.
    pub max_length: Option<usize>,
    /// The most documents that are computed at once.
    pub batch_size: usize,
}

impl Default for RerankOptions {
    fn default() -> Self {
        RerankOptions {
            prompt: None,
            prompt_name: None,
            top: None,
            max_length: None,
            batch_size: DEFAULT_BATCH,
        }
    }
}

setters! {
    RerankOptions: batch_size: usize;
    optional prompt: String, prompt_name: String, top: usize, max_length: usize
}

/// A document and its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankedDocument {
    /// Its place among the documents that were given.
    pub index: usize,
    /// How well it fits; most models say a probability between 0 and 1.
    pub score: f32,
}

impl Reranker {
    /// Loads a reranker from a hub or a directory: a classifier with one label (a cross-encoder); a
    /// language model that sentence-transformers saved with a `LogitScore`; or a language model that
    /// answers yes or no. The files of the last kind are those of a chat model, so it is one only where
    /// the name of its repository or the path of its directory has the word `rerank`, in letters of any
    /// case.
    ///
    /// # Errors
    /// As [`Model::load`](crate::Model::load).
    pub async fn load(location: impl Into<Location>) -> Result<Self> {
        let location = location.into();
        let is_named = location.to_string().to_lowercase().contains("rerank");
        let read = |preview: &Preview| {
            let is_language = preview.family.build.kind() == Kind::Language;
            if !(is_language && is_named) {
                preview.family.expect(Kind::Reranker, &preview.config)?;
            }
            let reader = TextReader::read(preview.files, &preview.config)?;
            let activation = activation(&reader, &preview.config)?;
            if !is_language {
                return Ok((reader, activation, None));
            }
            let token = |text: &str| {
                let id = reader.tokenizer().token_id(text);
                id.ok_or_else(|| Error::Tokenizer {
                    file: "tokenizer.json".into(),
                    reason: format!("no token `{text}`, with which a reranker answers"),
                })
            };
            let judge = Judge { yes: token("yes")?, no: token("no")? };
            Ok((reader.judging(), activation, Some(judge)))
        };
        let about =
            |model: &EngineModel| Ok(model.reranker().ok().and_then(|model| model.longest()));
        let loaded = network::load_with(location, read, about).await?;
        let (reader, activation, judge) = loaded.settings;
        let longest = reader.longest().into_iter().chain(loaded.facts).min();
        let place = Arc::new(loaded.place);
        Ok(Reranker(Arc::new(Inner { place, reader, activation, judge, longest })))
    }

    /// The most tokens of a query and a document that it reads; the rest is left out.
    pub fn max_length(&self) -> Option<usize> {
        self.0.longest
    }

    /// Orders documents by how well they fit a query, the best first. Dropping the future ends the
    /// computation after the current batch.
    ///
    /// # Errors
    /// [`Error::EmptyText`] for a query (index 0) or a document (from 1 on) without text;
    /// [`Error::Option`] for an unknown prompt and a length or a size of batches that cannot be;
    /// [`Error::NotANumber`]; [`Error::MemoryLimit`]; [`Error::Mlx`].
    pub async fn rerank(
        &self,
        query: &str,
        documents: &[impl AsRef<str>],
        options: &RerankOptions,
    ) -> Result<Vec<RankedDocument>> {
        let Inner { place, reader, activation, judge, longest } = &*self.0;
        let longest = text_batches::longest(options.max_length, *longest)?;
        let choice = PromptChoice::new(options.prompt.as_deref(), options.prompt_name.as_deref())?;
        let prompt = reader.prompt(&choice)?;
        if query.is_empty() {
            return Err(Error::EmptyText { index: 0 });
        }
        let read = |(index, document): (usize, &str)| {
            if document.is_empty() {
                return Err(Error::EmptyText { index: index + 1 });
            }
            reader.pair(query, document, prompt.as_deref(), longest)
        };
        let documents = documents.iter().map(AsRef::as_ref).enumerate();
        let pairs: Vec<_> = documents.map(read).collect::<Result<_>>()?;
        let (id, judge) = (place.id, *judge);
        let run = move |batch: &_| model(id, judge)?.score(batch);
        let vocabulary = move || Ok(model(id, judge)?.vocabulary());
        let engine = place.engine;
        let rows = text_batches::run(engine, pairs, options.batch_size, vocabulary, run).await?;
        let ranked = rows.iter().enumerate().map(|(index, row)| {
            let score = match activation {
                Activation::Identity => row[0],
                Activation::Sigmoid => 1.0 / (1.0 + (-row[0]).exp()),
            };
            RankedDocument { index, score }
        });
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_by(|one, other| other.score.total_cmp(&one.score));
        ranked.truncate(options.top.unwrap_or(usize::MAX));
        Ok(ranked)
    }
}

/// The model, on the engine thread.
fn model(id: u64, judge: Option<Judge>) -> Result<Rc<dyn models::reranker::Reranker>> {
    let found = find(id)?;
    match judge {
        Some(Judge { yes, no }) => {
            Ok(families::embedding::judge(found.language()?.clone(), yes, no))
        }
        None => Ok(found.reranker()?.clone()),
    }
}

/// The activation that the files name, which earlier versions of sentence-transformers wrote into
/// `config.json`; the sigmoid where they name none.
fn activation(reader: &TextReader, config: &Value) -> Result<Activation> {
    let nested = config.get("sentence_transformers").and_then(|own| own.get("activation_fn"));
    let earlier = nested.or_else(|| config.get("sbert_ce_default_activation_function"));
    let class = reader.activation().or_else(|| earlier.and_then(Value::as_str));
    match class.map(|class| class.rsplit('.').next().unwrap_or(class)) {
        None | Some("Sigmoid") => Ok(Activation::Sigmoid),
        Some("Identity") => Ok(Activation::Identity),
        Some(class) => Err(Error::Unsupported {
            file: "config_sentence_transformers.json".into(),
            field: "activation_fn".into(),
            reason: format!("`{class}` is not supported, only Sigmoid and Identity are"),
        }),
    }
}
