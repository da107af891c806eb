//! A transcription by any kind of model.

use crate::{
    error::{Error, Result},
    generate::transcription::{
        options::TranscribeOptions, pieces::PieceTranscription, progress::Progress,
        vocabulary::Vocabulary, windows::WindowedTranscription,
    },
    media::audio::Recording,
    models::{
        decode_step::DecodeStep,
        speech::{Output, Transcriber},
    },
};
use std::{rc::Rc, sync::Arc};

/// A transcription in progress.
pub(crate) enum TranscriptionRun {
    Windows(WindowedTranscription),
    Pieces(PieceTranscription),
}

impl TranscriptionRun {
    /// Begins to transcribe a recording; a model of windows needs its vocabulary.
    pub fn new(
        model: Rc<dyn Transcriber>,
        vocabulary: Option<Arc<Vocabulary>>,
        options: TranscribeOptions,
        recording: Recording,
    ) -> Result<Self> {
        options.check()?;
        if matches!(model.output(), Output::Aligner(_)) {
            let reason = "this model writes no text; it finds the times of a given one";
            return Err(Error::option("task", reason));
        }
        if !matches!(model.output(), Output::Windows(_)) {
            return Ok(TranscriptionRun::Pieces(PieceTranscription::new(
                model, options, &recording,
            )?));
        }
        let vocabulary = vocabulary.ok_or(Error::NoTokenizer)?;
        let windows = WindowedTranscription::new(model, vocabulary, options, recording)?;
        Ok(TranscriptionRun::Windows(windows))
    }

    /// Runs the next step.
    pub fn advance(&mut self, decode: &mut DecodeStep) -> Result<Progress> {
        match self {
            TranscriptionRun::Windows(windows) => windows.advance(decode),
            TranscriptionRun::Pieces(pieces) => pieces.advance(decode),
        }
    }
}
