//! The places of pictures in a prompt: what marks them, and what stands there.

use crate::{error::Result, text::Tokenizer};

/// The id that stands for the place of a picture in the code of nanoLLaVA and its kin: −200, which no
/// vocabulary has.
pub const PLACE: u32 = (-200_i32).cast_unsigned();

/// What marks the place of a picture in a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Marker {
    /// In a text.
    pub text: String,
    /// In token ids.
    pub ids: Vec<u32>,
}

impl Marker {
    /// A token of the vocabulary. Without a tokenizer a prompt has no text.
    pub fn token(id: u32, tokenizer: Option<&Tokenizer>) -> Self {
        let text = tokenizer.and_then(|tokenizer| tokenizer.token(id)).unwrap_or_default();
        Marker { text, ids: vec![id] }
    }

    /// The marker of models whose vocabulary has no token for pictures.
    pub fn place() -> Self {
        Marker { text: "<image>".into(), ids: vec![PLACE] }
    }

    /// A text, which may be a token or several.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn text(text: &str, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let ids = match tokenizer {
            None => Vec::new(),
            Some(tokenizer) => match tokenizer.token_id(text) {
                Some(id) => vec![id],
                None => tokenizer.encode(text, false)?,
            },
        };
        Ok(Marker { text: text.into(), ids })
    }
}

/// A part of what stands for a picture in a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// A token, so many times.
    Tokens {
        /// Its id.
        id: u32,
        /// How many times.
        count: usize,
    },
    /// Text, which is encoded with the text around it.
    Text(String),
}

impl Piece {
    /// A token.
    pub fn token(id: u32) -> Self {
        Piece::Tokens { id, count: 1 }
    }

    /// A token, so many times.
    pub fn tokens(id: u32, count: usize) -> Self {
        Piece::Tokens { id, count }
    }

    /// Text.
    pub fn written(text: &str) -> Self {
        Piece::Text(text.into())
    }

    /// Its characters in a prompt; none for a token that the vocabulary does not have.
    pub fn text(&self, tokenizer: &Tokenizer) -> Option<String> {
        match self {
            Piece::Tokens { id, count } => Some(tokenizer.token(*id)?.repeat(*count)),
            Piece::Text(text) => Some(text.clone()),
        }
    }

    /// Its ids in a prompt of token ids.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`]; [`Error::NoTokenizer`](crate::Error::NoTokenizer) for a text
    /// without one.
    pub fn ids(&self, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
        match self {
            Piece::Tokens { id, count } => Ok(vec![*id; *count]),
            Piece::Text(text) => tokenizer.ok_or(crate::Error::NoTokenizer)?.encode(text, false),
        }
    }
}

/// What a processor writes around the text of a prompt with pictures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Surroundings {
    /// At the start, where the prompt does not begin so; the tokenizer then adds nothing there.
    pub start: Vec<Piece>,
    /// After the last picture; the tokenizer then adds no token at the start.
    pub after_media: Vec<Piece>,
    /// At the end.
    pub end: Vec<Piece>,
    /// The text of a token that the processor writes before the text, after pictures at the start, where
    /// the prompt has it nowhere; the tokenizer adds its own beside it.
    pub first: Option<String>,
    /// Whether the tokenizer adds no token at the start.
    pub omits_start: bool,
}

impl Surroundings {
    /// Whether the tokenizer adds no token at the start of the text, such as where they have it.
    pub fn has_start(&self) -> bool {
        self.omits_start || !self.start.is_empty() || !self.after_media.is_empty()
    }
}
