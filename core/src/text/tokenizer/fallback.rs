//! What becomes of text that has no piece: a token for each byte, or one for all of it.

use crate::text::tokenizer::backend::{Result, Vocabulary};

/// A magnitude of text and its id, if it has one.
pub struct Cut {
    /// Where it begins, in bytes.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// `None` for text that is not in the vocabulary.
    pub id: Option<u32>,
}

/// Tokens for text that has none of its own.
pub enum Fallback {
    /// There are none.
    None,
    /// The ids of `<0x00>` to `<0xFF>`.
    Bytes(Box<[u32; 256]>),
    /// One id for a run of unknown characters.
    Unknown(u32),
}

impl Fallback {
    /// The byte tokens of a vocabulary, or the one that it lacks.
    pub fn bytes(vocabulary: &Vocabulary) -> Result<Self, String> {
        let mut ids = Box::new([0; 256]);
        for (byte, id) in ids.iter_mut().enumerate() {
            let piece = format!("<0x{byte:02X}>");
            *id = vocabulary
                .id(&piece)
                .ok_or_else(|| format!("the byte piece {piece} is missing"))?;
        }
        Ok(Fallback::Bytes(ids))
    }

    /// The ids of a text that has been cut.
    pub fn ids(&self, text: &str, cuts: Vec<Cut>) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(cuts.len());
        let mut in_unknown = false;
        for Cut { start, end, id } in cuts {
            match (id, self) {
                (Some(id), _) => ids.push(id),
                (None, Fallback::Bytes(bytes)) => {
                    ids.extend(text[start..end].bytes().map(|byte| bytes[usize::from(byte)]));
                }
                (None, Fallback::Unknown(unknown)) if !in_unknown => ids.push(*unknown),
                (None, Fallback::Unknown(_)) => {}
                (None, Fallback::None) => {
                    return Err(format!("no token spells {:?}", &text[start..end]).into());
                }
            }
            in_unknown = id.is_none();
        }
        Ok(ids)
    }
}
