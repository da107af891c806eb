//! The handle of a model that speaks.

use crate::{
    api::{location::Location, network},
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
    sample_rate: u32,
    voices: Vec<String>,
}

impl SpeechModel {
    /// Loads a speaker from a hub or a directory.
    ///
    /// # Errors
    /// As [`Model::load`](crate::Model::load).
    pub async fn load(location: impl Into<Location>) -> Result<Self> {
        let about = |model: &EngineModel| {
            let speaker = model.speaker()?;
            Ok((speaker.sample_rate(), speaker.voices()?))
        };
        let (place, facts) = network::load(location.into(), Kind::Speaker, about).await?;
        Ok(SpeechModel { place, sample_rate: facts.0, voices: facts.1 })
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
}
