//! The texts of single tokens, with a space where a word begins.

use super::tokenizer::Tokenizer;
use crate::{
    checkpoint::files::Files,
    error::{Error, Result},
};

/// What makes text of the tokens that a model finds position by position.
pub enum Pieces {
    /// A tokenizer.
    Tokenizer(Tokenizer),
    /// The pieces by their ids.
    List(Vec<String>),
}

impl Pieces {
    /// Reads a file that lists the pieces.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`], [`Error::Tokenizer`].
    pub fn read(files: &Files, file: &str) -> Result<Self> {
        let damaged =
            |_| Error::Tokenizer { file: file.into(), reason: "must be a list of texts".into() };
        let bytes = files.read(file)?.ok_or(Error::NoTokenizer)?;
        Ok(Pieces::List(serde_json::from_slice(&bytes).map_err(damaged)?))
    }

    /// The text of a token; empty for a special token and an unknown one.
    pub fn text(&self, id: u32) -> String {
        let piece = match self {
            Pieces::Tokenizer(tokenizer) if tokenizer.is_special(id) => None,
            Pieces::Tokenizer(tokenizer) => tokenizer.token(id),
            Pieces::List(pieces) => pieces.get(id as usize).cloned(),
        };
        let piece = piece.filter(|piece| !is_special(piece));
        piece.unwrap_or_default().replace('▁', " ")
    }

    /// Whether a token is none of the text.
    pub fn is_special(&self, id: u32) -> bool {
        match self {
            Pieces::Tokenizer(tokenizer) => tokenizer.is_special(id),
            Pieces::List(pieces) => pieces.get(id as usize).is_none_or(|piece| is_special(piece)),
        }
    }
}

fn is_special(piece: &str) -> bool {
    (piece.starts_with("<|") && piece.ends_with("|>")) || ["<unk>", "<pad>"].contains(&piece)
}
