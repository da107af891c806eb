//! The pipeline of the `tokenizers` crate with models and a normalizer of our own beside its own,
//! so that added tokens, decoding and streaming are one path for every kind of vocabulary.

use crate::text::tokenizer::normalizer::Sentencepiece;
use serde::{Deserialize, Deserializer};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokenizers::models::TrainerWrapper;
use tokenizers::normalizers::NFC;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizedString, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper, Token, TokenizerImpl,
};

/// `Result` of the `tokenizers` crate, or with another error.
pub type Result<T, E = tokenizers::Error> = std::result::Result<T, E>;

/// What turns text into ids and back.
pub type Backend =
    TokenizerImpl<Model, Normalizer, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// How a piece of text becomes ids.
pub enum Model {
    /// A model of the `tokenizers` crate.
    Crate(Box<ModelWrapper>),
    /// A vocabulary and the way to cut text into its pieces.
    Pieces(Vocabulary, Box<dyn Segment>),
}

/// Cuts text into pieces of a vocabulary.
pub trait Segment: Send + Sync {
    /// The ids of the pieces that a text is made of.
    fn segment(&self, text: &str, vocabulary: &Vocabulary) -> Result<Vec<u32>>;
}

/// Pieces and their ids.
#[derive(Default)]
pub struct Vocabulary {
    pieces: Vec<Option<Box<str>>>,
    ids: HashMap<Box<str>, u32>,
}

impl Vocabulary {
    /// Adds a piece, or says that its id or its text is taken.
    pub fn insert(&mut self, piece: &str, id: u32) -> Result<(), String> {
        if self.piece(id).is_some() {
            return Err(format!("two pieces have the id {id}"));
        }
        if self.ids.contains_key(piece) {
            return Err(format!("the piece {piece:?} is there twice"));
        }
        self.name(piece, id);
        Ok(())
    }

    /// Gives an id its text; what else has this id still means it.
    pub fn name(&mut self, piece: &str, id: u32) {
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

    /// The smallest id without a piece, below the largest one.
    pub fn hole(&self) -> Option<usize> {
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
                // Encoding asks for ids only.
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
            Model::Pieces(..) => Err("a converted vocabulary is not saved".into()),
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

/// What happens to text before it is cut.
pub enum Normalizer {
    /// A normalizer of the `tokenizers` crate.
    Crate(NormalizerWrapper),
    /// That of a sentencepiece model.
    Sentencepiece(Box<Sentencepiece>),
}

impl Normalizer {
    /// Composed characters.
    pub fn nfc() -> Self {
        Normalizer::Crate(NFC.into())
    }
}

impl tokenizers::Normalizer for Normalizer {
    fn normalize(&self, text: &mut NormalizedString) -> Result<()> {
        match self {
            Normalizer::Crate(normalizer) => normalizer.normalize(text),
            Normalizer::Sentencepiece(normalizer) => {
                let begins = text.offsets_original().0 == 0;
                // Encoding asks for ids only, so where characters came from may be forgotten.
                *text = NormalizedString::from(normalizer.normalize(text.get(), begins));
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
