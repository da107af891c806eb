//! The handle of a model that speaks.

use crate::{
    api::{
        location::Location,
        network::{self, AudioHandle, LoadAudio, LoadedAudio},
    },
    engine::{
        Turn,
        engine_model::{EngineModel, Place, find},
    },
    error::Result,
    models::{
        network::Kind,
        speaker::{Script, SpeakOptions, Speech},
    },
};
use std::sync::Arc;

/// A model of text to speech in memory. Handles are cheap to clone and may be used from any thread.
/// Dropping the last handle frees the memory.
#[derive(Clone)]
pub struct SpeechModel {
    place: Arc<Place>,
    model_type: String,
    sample_rate: u32,
    voices: Vec<String>,
}

impl SpeechModel {
    /// Loads a speaker from a hub or a directory.
    ///
    /// # Errors
    /// As [`Model::load`](crate::Model::load).
    pub fn load(location: impl Into<Location>) -> LoadAudio<Self> {
        LoadAudio::new(location.into())
    }

    /// The `model_type` of the config, or the name of the family where it has none.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// Samples a second, in Hz.
    pub fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    /// The names of its voices.
    pub fn voices(&self) -> &[String] {
        &self.voices
    }

    /// Speaks a script, and gives each piece to `out` on the engine thread as soon as it is computed.
    /// Dropping the future ends it after the current piece.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for a script that the model cannot read, an unknown
    /// voice and a speed that is none; [`Error::MemoryLimit`](crate::Error::MemoryLimit);
    /// [`Error::Mlx`](crate::Error::Mlx).
    pub async fn speak(
        &self,
        script: Script,
        options: SpeakOptions,
        mut out: impl FnMut(Speech) + Send + 'static,
    ) -> Result<()> {
        let id = self.place.id;
        let begin = move || {
            let speaker = find(id)?.speaker()?.clone();
            let mut pieces = speaker.pieces(&script, &options)?.into_iter();
            Ok(move || {
                let Some(piece) = pieces.next() else { return Ok(Some(())) };
                out(speaker.speak(&piece, &options)?);
                Ok(None)
            })
        };
        self.place.engine.run_in_turns(Turn::Ready, begin).await
    }

    /// Frees the memory of the model. What still uses it fails with [`Error::Unloaded`](crate::Error::Unloaded).
    ///
    /// # Errors
    /// [`Error::Internal`](crate::Error::Internal) when the engine has stopped.
    pub async fn unload(&self) -> Result<()> {
        network::free(&self.place).await
    }
}

impl AudioHandle for SpeechModel {
    const KIND: Kind = Kind::Speaker;
    /// The sample rate and the voices.
    type Facts = (u32, Vec<String>);

    fn facts(model: &EngineModel) -> Result<Self::Facts> {
        let speaker = model.speaker()?;
        Ok((speaker.sample_rate(), speaker.voices()?))
    }

    fn new(loaded: LoadedAudio<Self::Facts>) -> Result<Self> {
        let LoadedAudio { model_type, place, facts: (sample_rate, voices), .. } = loaded;
        Ok(SpeechModel { place: Arc::new(place), model_type, sample_rate, voices })
    }
}
