//! How texts become tokens for embedders and rerankers: the tokenizer and the settings of
//! sentence-transformers beside it. Follows sentence-transformers 6.

use crate::{
    checkpoint::files::Files,
    error::{Error, Result},
    families::embedding,
    models::text_batch::Tokens,
    text::{ChatTemplate, Message, TemplateOptions, Tokenizer},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The file of prompts.
const SETTINGS: &str = "config_sentence_transformers.json";

/// The names of the file about lengths: that of the kind of model in earlier versions.
const LENGTHS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// Turns texts into tokens.
pub(super) struct TextReader {
    tokenizer: Tokenizer,
    settings: Settings,
    /// The most tokens of a text, as the files say.
    longest: Option<usize>,
    is_lowercase: bool,
    /// Whether the model is told which of two texts a token is of.
    has_types: bool,
    form: PairForm,
}

/// The form of a query and a document as one text.
enum PairForm {
    /// Two texts with special tokens between them.
    Pair,
    /// A chat template with the roles `query` and `document`.
    Chat(Box<ChatTemplate>, TemplateOptions),
    /// The text around them with which a language model is trained to answer yes or no.
    Judge,
}

/// What is read of [`SETTINGS`].
#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    prompts: BTreeMap<String, Option<String>>,
    default_prompt_name: Option<String>,
    activation_fn: Option<String>,
    truncate_dim: Option<usize>,
}

/// What is read of a file of [`LENGTHS`].
#[derive(Default, Deserialize)]
#[serde(default)]
struct Lengths {
    max_seq_length: Option<usize>,
    do_lower_case: bool,
    modality_config: Option<Map<String, Value>>,
    processing_kwargs: Option<Processing>,
    query_expansion: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Processing {
    chat_template: Map<String, Value>,
    text: Map<String, Value>,
}

/// Which prompt stands before a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum PromptChoice {
    /// The checkpoint's default one, if it has one.
    #[default]
    Default,
    /// One of the checkpoint's by its name.
    Named(String),
    /// This text.
    Text(String),
}

impl PromptChoice {
    pub(super) fn new(text: Option<&str>, name: Option<&str>) -> Result<Self> {
        match (text, name) {
            (Some(_), Some(_)) => Err(Error::option(
                "prompt_name",
                "a prompt is given as a text too; give one of them",
            )),
            (Some(text), None) => Ok(PromptChoice::Text(text.into())),
            (None, Some(name)) => Ok(PromptChoice::Named(name.into())),
            (None, None) => Ok(PromptChoice::Default),
        }
    }
}

/// The fields of a JSON file; the defaults where there is no such file.
fn read<T: Default + DeserializeOwned>(files: &Files, file: &str) -> Result<T> {
    let Some(json) = files.json(file)? else { return Ok(T::default()) };
    serde_path_to_error::deserialize(json).map_err(|error| Error::Config {
        file: file.into(),
        field: error.path().to_string(),
        reason: error.inner().to_string(),
    })
}

impl TextReader {
    /// Reads the tokenizer and the settings of a checkpoint with this `config.json`.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`]; [`Error::Tokenizer`]; [`Error::Config`] and [`Error::Unsupported`] for
    /// settings.
    pub(super) fn read(files: &Files, config: &Value) -> Result<Self> {
        if !Tokenizer::is_expected(files)? {
            return Err(Error::NoTokenizer);
        }
        let tokenizer = Tokenizer::load(files)?;
        let mut lengths_file = LENGTHS[0];
        for file in LENGTHS {
            if files.read(file)?.is_some() {
                lengths_file = file;
                break;
            }
        }
        let lengths: Lengths = read(files, lengths_file)?;
        let unsupported = |field: &str, reason: &str| Error::Unsupported {
            file: lengths_file.into(),
            field: field.into(),
            reason: reason.into(),
        };
        if lengths.query_expansion.as_ref().is_some_and(|given| !given.is_null()) {
            return Err(unsupported(
                "query_expansion",
                "models of one vector a token are not supported",
            ));
        }
        let processing = lengths.processing_kwargs.unwrap_or_default();
        if let Some(name) = processing.text.keys().find(|name| *name != "max_length") {
            let field = format!("processing_kwargs.text.{name}");
            return Err(unsupported(&field, "only max_length is supported"));
        }
        let tokenizer_config: Value = files.json("tokenizer_config.json")?.unwrap_or_default();
        // Transformers writes 10^30 where there is no limit.
        let number = |json: Option<&Value>| {
            json.and_then(Value::as_u64).filter(|n| (1..1 << 40).contains(n)).map(|n| n as usize)
        };
        let longest = number(processing.text.get("max_length")).or(lengths.max_seq_length);
        let longest = longest.or_else(|| {
            let tokens = number(tokenizer_config.get("model_max_length"));
            tokens.into_iter().chain(number(config.get("max_position_embeddings"))).min()
        });
        let inputs = tokenizer_config.get("model_input_names").and_then(Value::as_array);
        let is_chat = lengths.modality_config.is_some_and(|known| known.contains_key("message"));
        let form = match ChatTemplate::load(files)?.filter(|_| is_chat) {
            Some(template) => {
                let mut options = TemplateOptions::default().add_generation_prompt(false);
                for (name, value) in processing.chat_template {
                    if name == "add_generation_prompt"
                        && let Some(given) = value.as_bool()
                    {
                        options.add_generation_prompt = given;
                    } else {
                        options.variables.insert(name, value);
                    }
                }
                PairForm::Chat(Box::new(template.with_special_tokens(&tokenizer)), options)
            }
            None => PairForm::Pair,
        };
        Ok(TextReader {
            tokenizer,
            settings: read(files, SETTINGS)?,
            longest,
            is_lowercase: lengths.do_lower_case,
            has_types: inputs.is_none_or(|names| names.contains(&json!("token_type_ids"))),
            form,
        })
    }

    /// For a language model that answers yes or no.
    pub(super) fn judging(self) -> Self {
        TextReader { form: PairForm::Judge, ..self }
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The most tokens of a text, as the files say.
    pub(super) fn longest(&self) -> Option<usize> {
        self.longest
    }

    /// How many elements the files cut vectors to.
    pub(super) fn dimensions(&self) -> Option<usize> {
        self.settings.truncate_dim
    }

    /// The prompts by their names.
    pub(super) fn prompts(&self) -> BTreeMap<String, String> {
        let prompts = self.settings.prompts.iter();
        prompts.filter_map(|(name, text)| Some((name.clone(), text.clone()?))).collect()
    }

    /// The activation of scores, by its class in PyTorch.
    pub(super) fn activation(&self) -> Option<&str> {
        self.settings.activation_fn.as_deref()
    }

    /// The prompt that stands before a text.
    ///
    /// # Errors
    /// [`Error::Option`] for a name that the checkpoint does not have.
    pub(super) fn prompt(&self, choice: &PromptChoice) -> Result<Option<String>> {
        let prompts = &self.settings.prompts;
        Ok(match choice {
            PromptChoice::Text(text) => Some(text.clone()),
            PromptChoice::Named(name) => match prompts.get(name) {
                Some(prompt) => prompt.clone(),
                None => {
                    let names = prompts.keys().map(|name| format!("`{name}`"));
                    let names = names.collect::<Vec<_>>().join(", ");
                    let known = if names.is_empty() { "none".into() } else { names };
                    let reason = format!("the checkpoint has no prompt `{name}`; it has {known}");
                    return Err(Error::option("prompt_name", reason));
                }
            },
            PromptChoice::Default => {
                let name = self.settings.default_prompt_name.as_ref();
                name.and_then(|name| prompts.get(name).cloned().flatten())
            }
        })
    }

    /// The tokens of a text after a prompt, at most `longest`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub(super) fn text(
        &self,
        text: &str,
        prompt: Option<&str>,
        longest: Option<usize>,
    ) -> Result<Tokens> {
        let prompt = prompt.unwrap_or_default();
        let tokens = self.encode(&format!("{prompt}{text}"), None, longest)?;
        if prompt.is_empty() {
            return Ok(tokens);
        }
        let before = self.encode(prompt, None, longest)?.ids;
        // A special token at the end of the prompt is one at the end of the text too.
        let ends = before.last().is_some_and(|id| self.tokenizer.is_special(*id));
        Ok(Tokens { prompt: before.len() - usize::from(ends), ..tokens })
    }

    fn encode(&self, text: &str, second: Option<&str>, longest: Option<usize>) -> Result<Tokens> {
        let sequence = if self.is_lowercase {
            let second = second.map(str::to_lowercase);
            self.tokenizer.encode_sequence(&text.to_lowercase(), second.as_deref(), longest)?
        } else {
            self.tokenizer.encode_sequence(text, second, longest)?
        };
        let types = if self.has_types { sequence.types } else { Vec::new() };
        Ok(Tokens { ids: sequence.ids, types, prompt: 0 })
    }

    /// The tokens of a query and a document, at most `longest`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`], [`Error::ChatTemplate`].
    pub(super) fn pair(
        &self,
        query: &str,
        document: &str,
        prompt: Option<&str>,
        longest: Option<usize>,
    ) -> Result<Tokens> {
        if let PairForm::Pair = self.form {
            let query = format!("{}{query}", prompt.unwrap_or_default());
            return self.encode(&query, Some(document), longest);
        }
        let mut ids = self.rendered(query, document, prompt)?;
        if let Some(longest) = longest.filter(|longest| *longest < ids.len()) {
            // The text after the document tells the model to answer, so it stays.
            let (one, other) =
                (self.rendered("0", "0", prompt)?, self.rendered("1 2 3 4", "1 2 3 4", prompt)?);
            let alike = one.iter().rev().zip(other.iter().rev()).take_while(|(a, b)| a == b);
            let end = alike.count().min(longest);
            let suffix = ids.split_off(ids.len() - end);
            ids.truncate(longest - end);
            ids.extend(suffix);
        }
        Ok(Tokens { ids, ..Tokens::default() })
    }

    /// The tokens of a query and a document in a text around them.
    fn rendered(&self, query: &str, document: &str, prompt: Option<&str>) -> Result<Vec<u32>> {
        match &self.form {
            PairForm::Chat(template, options) => {
                let system = prompt.map(Message::system);
                let pair = [Message::new("query", query), Message::new("document", document)];
                let messages: Vec<_> = system.into_iter().chain(pair).collect();
                template.encode(&self.tokenizer, &messages, options)
            }
            PairForm::Judge | PairForm::Pair => {
                let text = embedding::judged_text(prompt, query, document);
                self.tokenizer.encode(&text, false)
            }
        }
    }
}
