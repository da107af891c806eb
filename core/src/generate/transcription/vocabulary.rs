//! The special tokens of models that write text in windows, with languages, tasks and times.

use crate::{
    error::{Error, Result},
    generate::transcription::options::{Task, TranscribeOptions},
    text::Tokenizer,
};

/// Token ids from here on are multilingual vocabularies.
const MULTILINGUAL: u32 = 51_865;

/// The special tokens, by their meaning.
pub(crate) struct Vocabulary {
    pub tokenizer: Tokenizer,
    /// The number of token embeddings.
    pub size: u32,
    pub end: u32,
    pub start: u32,
    pub previous: u32,
    pub no_timestamps: u32,
    pub first_timestamp: u32,
    pub no_speech: Option<u32>,
    transcribe: u32,
    translate: u32,
    /// The codes of the languages and their tokens; empty for a model of English alone.
    pub languages: Vec<Language>,
    /// Tokens that are never text: symbols of annotations, and tokens of tasks.
    pub suppressed: Vec<u32>,
    /// Tokens that no text begins with.
    pub blank: Vec<u32>,
}

/// A language that a model hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Language {
    pub code: String,
    pub token: u32,
}

impl Vocabulary {
    /// Finds the special tokens of a model with `size` token embeddings.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a tokenizer without one of them.
    pub fn new(tokenizer: Tokenizer, size: u32) -> Result<Self> {
        let find = |text: &str| tokenizer.token_id(text).filter(|id| *id < size);
        let id = |text: &str| {
            find(text).ok_or_else(|| Error::Tokenizer {
                file: "tokenizer.json".into(),
                reason: format!("it has no token `{text}`; use the tokenizer of the model"),
            })
        };
        let no_timestamps = id("<|notimestamps|>")?;
        let start = id("<|startoftranscript|>")?;
        let (transcribe, translate) = (id("<|transcribe|>")?, id("<|translate|>")?);
        let is_language = |id: &u32| (start + 1..translate).contains(id);
        let languages = tokenizer.added_tokens().into_iter().filter_map(|(token, text, _)| {
            let code = text.strip_prefix("<|")?.strip_suffix("|>")?.to_string();
            (is_language(&token) && size >= MULTILINGUAL).then_some(Language { code, token })
        });
        let languages = languages.collect();
        let no_speech = find("<|nospeech|>").or_else(|| find("<|nocaptions|>"));
        let (end, previous) = (id("<|endoftext|>")?, id("<|startofprev|>")?);
        let tasks = [transcribe, translate, start, previous].into_iter();
        let tasks = tasks.chain(find("<|startoflm|>")).chain(no_speech);
        let suppressed = annotations(&tokenizer)?.into_iter().chain(tasks).collect();
        let blank = tokenizer.encode(" ", false)?.into_iter().chain([end]).collect();
        Ok(Vocabulary {
            first_timestamp: find("<|0.00|>").unwrap_or(no_timestamps + 1),
            size,
            end,
            start,
            previous,
            no_timestamps,
            no_speech,
            transcribe,
            translate,
            languages,
            suppressed,
            blank,
            tokenizer,
        })
    }

    /// The tokens before a transcript in a language, without those about times.
    ///
    /// # Errors
    /// [`Error::Option`] for a language or a task that the model does not know.
    pub fn prompt(&self, language: &str, options: &TranscribeOptions) -> Result<Vec<u32>> {
        if self.languages.is_empty() {
            let is_english = options.language.as_deref().is_none_or(|given| given == "en");
            return match options.task {
                Task::Transcribe if is_english => Ok(vec![self.start]),
                _ => Err(Error::option("language", "the model knows English only")),
            };
        }
        let task = match options.task {
            Task::Transcribe => self.transcribe,
            Task::Translate => self.translate,
        };
        let known = self.languages.iter().find(|known| known.code == language);
        let known = known.ok_or_else(|| {
            let codes: Vec<_> = self.languages.iter().map(|known| known.code.as_str()).collect();
            let reason = format!("`{language}` is not one of {}", codes.join(", "));
            Error::option("language", reason)
        })?;
        Ok(vec![self.start, known.token, task])
    }

    /// The text of tokens, without those of times.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn text(&self, tokens: &[u32]) -> Result<String> {
        let text: Vec<u32> = tokens.iter().copied().filter(|id| *id < self.end).collect();
        self.tokenizer.decode(&text, false)
    }

    /// The seconds of a token of time from the beginning of its window on, in steps of 20 ms.
    pub fn seconds(&self, token: u32) -> f64 {
        f64::from(token - self.first_timestamp) * 0.02
    }

    pub fn is_timestamp(&self, token: u32) -> bool {
        token >= self.first_timestamp
    }
}

/// The tokens with which transcripts describe sounds or mark speakers: brackets, notes, and dashes or
/// quotes at the beginning of a word.
fn annotations(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    const SYMBOLS: &str = "\" # ( ) * + / : ; < = > @ [ \\ ] ^ _ ` { | } ~ 「 」 『 』 << >> <<< >>> -- \
        --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪";
    const NOTES: &str = "♩ ♪ ♫ ♬ ♭ ♮ ♯";
    let mut ids = Vec::new();
    for seed in [" -", " '"] {
        ids.extend(tokenizer.encode(seed, false)?.first());
    }
    let symbols = SYMBOLS.split_whitespace().map(|symbol| (symbol, false));
    for (symbol, is_note) in symbols.chain(NOTES.split_whitespace().map(|note| (note, true))) {
        for text in [symbol.to_string(), format!(" {symbol}")] {
            let tokens = tokenizer.encode(&text, false)?;
            if tokens.len() == 1 || is_note {
                ids.extend(tokens.first());
            }
        }
    }
    Ok(ids)
}
