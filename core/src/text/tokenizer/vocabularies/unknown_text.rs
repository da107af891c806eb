//! The tokens of text that is not in a vocabulary: one for each byte, or one for the whole run.

use crate::text::tokenizer::backend::{Result, Vocabulary};

/// A range of a text and the id of its piece.
pub struct TextPiece {
    /// The start, in bytes.
    pub start: usize,
    /// The end, in bytes.
    pub end: usize,
    /// `None` for text that is not in the vocabulary.
    pub id: Option<u32>,
}

/// How text without a piece is tokenized.
pub enum UnknownText {
    /// It is an error.
    None,
    /// The ids of `<0x00>` to `<0xFF>`.
    Bytes(Box<[u32; 256]>),
    /// One id for a run of unknown characters.
    Unknown(u32),
}

impl UnknownText {
    /// The byte tokens of a vocabulary, or a message that names the missing one.
    pub fn bytes(vocabulary: &Vocabulary) -> Result<Self, String> {
        let mut ids = Box::new([0; 256]);
        for (byte, id) in ids.iter_mut().enumerate() {
            let piece = format!("<0x{byte:02X}>");
            *id = vocabulary
                .id(&piece)
                .ok_or_else(|| format!("the byte piece {piece} is missing"))?;
        }
        Ok(UnknownText::Bytes(ids))
    }

    /// The ids of a text that was split into pieces.
    pub fn ids(&self, text: &str, pieces: Vec<TextPiece>) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(pieces.len());
        let mut in_unknown = false;
        for TextPiece { start, end, id } in pieces {
            match (id, self) {
                (Some(id), _) => ids.push(id),
                (None, UnknownText::Bytes(bytes)) => {
                    ids.extend(text[start..end].bytes().map(|byte| bytes[usize::from(byte)]));
                }
                (None, UnknownText::Unknown(unknown)) if !in_unknown => ids.push(*unknown),
                (None, UnknownText::Unknown(_)) => {}
                (None, UnknownText::None) => {
                    return Err(
                        format!("the vocabulary has no token for {:?}", &text[start..end]).into()
                    );
                }
            }
            in_unknown = id.is_none();
        }
        Ok(ids)
    }
}
