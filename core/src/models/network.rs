//! A model of any kind, as the engine holds it.

use crate::models::{
    codec::Codec, detector::Detector, embedder::Embedder, language::LanguageModel,
    reranker::Reranker, speaker::Speaker, speech::Transcriber,
};
use std::rc::Rc;

/// A model of one of the kinds that there are.
#[derive(Clone)]
pub enum Network {
    /// Text in, text out; media in where the family reads them.
    Language(Rc<dyn LanguageModel>),
    /// Speech in, text out.
    Transcriber(Rc<dyn Transcriber>),
    /// Text in, speech out.
    Speaker(Rc<dyn Speaker>),
    /// Speech in, probabilities of speech or of speakers out.
    Detector(Rc<dyn Detector>),
    /// Audio in, codes out, and back.
    Codec(Rc<dyn Codec>),
    /// Text in, one vector out.
    Embedder(Rc<dyn Embedder>),
    /// A query and a document in, how well they fit out.
    Reranker(Rc<dyn Reranker>),
}

/// What a model does, without the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// See [`Network::Language`].
    Language,
    /// See [`Network::Transcriber`].
    Transcriber,
    /// See [`Network::Speaker`].
    Speaker,
    /// See [`Network::Detector`].
    Detector,
    /// See [`Network::Codec`].
    Codec,
    /// See [`Network::Embedder`].
    Embedder,
    /// See [`Network::Reranker`].
    Reranker,
}

impl Kind {
    /// What errors call a model of this kind.
    pub fn description(self) -> &'static str {
        match self {
            Kind::Language => "a language model",
            Kind::Transcriber => "a transcriber (speech to text)",
            Kind::Speaker => "a speaker (text to speech)",
            Kind::Detector => "a voice activity detector",
            Kind::Codec => "an audio codec",
            Kind::Embedder => "an embedder (text to a vector)",
            Kind::Reranker => "a reranker (query and document to a score)",
        }
    }
}

impl Network {
    /// What it does.
    pub fn kind(&self) -> Kind {
        match self {
            Network::Language(_) => Kind::Language,
            Network::Transcriber(_) => Kind::Transcriber,
            Network::Speaker(_) => Kind::Speaker,
            Network::Detector(_) => Kind::Detector,
            Network::Codec(_) => Kind::Codec,
            Network::Embedder(_) => Kind::Embedder,
            Network::Reranker(_) => Kind::Reranker,
        }
    }
}
