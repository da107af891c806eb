//! The pipeline of the `tokenizers` crate, extended by segmentations and a normalizer that the crate
//! lacks, so that added tokens, decoding and streaming are one path for every kind of vocabulary.

use crate::text::tokenizer::vocabularies::sentencepiece_normalizer::SentencepieceNormalizer;
use serde::{Deserialize, Deserializer};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokenizers::models::TrainerWrapper;
use tokenizers::normalizers::NFC;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizedString, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper, Token, TokenizerImpl,
};

/// A `Result` whose default error is that of the `tokenizers` crate.
pub type Result<T, E = tokenizers::Error> = std::result::Result<T, E>;

/// The pipeline that turns text into ids and back.
pub type Backend =
    TokenizerImpl<Model, Normalizer, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// The vocabulary and the segmentation of text into its pieces.
pub enum Model {
    /// A model of the `tokenizers` crate.
    Crate(Box<ModelWrapper>),
    /// A vocabulary and a segmentation of this library.
    Pieces(Vocabulary, Box<dyn Segment>),
}

/// Splits text into pieces of a vocabulary.
pub trait Segment: Send + Sync {
    /// The ids of the pieces of a text.
    fn segment(&self, text: &str, vocabulary: &Vocabulary) -> Result<Vec<u32>>;
}

/// Pieces and their ids.
#[derive(Default)]
pub struct Vocabulary {
    pieces: Vec<Option<Box<str>>>,
    ids: HashMap<Box<str>, u32>,
}

impl Vocabulary {
    /// Adds a piece.
    ///
    /// # Errors
    /// A message when another piece has its id or its text.
    pub fn insert(&mut self, piece: &str, id: u32) -> Result<(), String> {
        if self.piece(id).is_some() {
            return Err(format!("two pieces have the id {id}"));
        }
        if self.ids.contains_key(piece) {
            return Err(format!("the piece {piece:?} appears twice"));
        }
        self.set_piece(piece, id);
        Ok(())
    }

    /// Sets the piece of an id. Other pieces of this id keep it.
    pub fn set_piece(&mut self, piece: &str, id: u32) {
        let index = id as usize;
        if self.pieces.len() <= index {
            self.pieces.resize(index + 1, None);
        }
        self.pieces[index] = Some(piece.into());
        self.ids.insert(piece.into(), id);
    }

    /// The id of a piece.
    pub fn id(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    /// The piece of an id.
    pub fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize)?.as_deref()
    }

    /// One more than the largest id.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The smallest id without a piece, if it is below the largest id.
    pub fn first_gap(&self) -> Option<usize> {
        self.pieces.iter().position(Option::is_none)
    }
}

impl tokenizers::Model for Model {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, text: &str) -> Result<Vec<Token>> {
        match self {
            Model::Crate(model) => model.tokenize(text),
            Model::Pieces(vocabulary, segment) => {
                let ids = segment.segment(text, vocabulary)?;
                // The caller reads the ids only, so text and offsets stay empty.
                Ok(ids.into_iter().map(|id| Token::new(id, String::new(), (0, 0))).collect())
            }
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Model::Crate(model) => model.token_to_id(token),
            Model::Pieces(vocabulary, _) => vocabulary.id(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Model::Crate(model) => model.id_to_token(id),
            Model::Pieces(vocabulary, _) => vocabulary.piece(id).map(String::from),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            Model::Crate(model) => model.get_vocab(),
            Model::Pieces(vocabulary, _) => {
                vocabulary.ids.iter().map(|(piece, id)| (piece.to_string(), *id)).collect()
            }
        }
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            Model::Crate(model) => model.get_vocab_size(),
            Model::Pieces(vocabulary, _) => vocabulary.len(),
        }
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        match self {
            Model::Crate(model) => model.save(folder, prefix),
            Model::Pieces(..) => Err("saving a vocabulary is not supported".into()),
        }
    }

    fn get_trainer(&self) -> TrainerWrapper {
        match self {
            Model::Crate(model) => model.get_trainer(),
            Model::Pieces(..) => ModelWrapper::BPE(Default::default()).get_trainer(),
        }
    }
}

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ModelWrapper::deserialize(deserializer).map(|model| Model::Crate(Box::new(model)))
    }
}

/// Changes text before it is split.
pub enum Normalizer {
    /// A normalizer of the `tokenizers` crate.
    Crate(NormalizerWrapper),
    /// The normalizer of a sentencepiece model.
    Sentencepiece(Box<SentencepieceNormalizer>),
}

impl Normalizer {
    /// Unicode normalization form C.
    pub fn nfc() -> Self {
        Normalizer::Crate(NFC.into())
    }
}

impl tokenizers::Normalizer for Normalizer {
    fn normalize(&self, text: &mut NormalizedString) -> Result<()> {
        match self {
            Normalizer::Crate(normalizer) => normalizer.normalize(text),
            Normalizer::Sentencepiece(normalizer) => {
                let is_start = text.offsets_original().0 == 0;
                // The caller reads the ids only, so the offsets may be lost.
                *text = NormalizedString::from(normalizer.normalize(text.get(), is_start));
                Ok(())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Normalizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        NormalizerWrapper::deserialize(deserializer).map(Normalizer::Crate)
    }
}
