//! The handle of a model that speaks.

use crate::{
    api::{
        audio_codec::AudioCodec,
        location::Location,
        network::{self, AudioHandle, LoadAudio, LoadedAudio},
    },
    engine::{
        Turn,
        engine_model::{EngineModel, Place, find},
    },
    error::{Error, Result},
    generate::synthesis::{SpeechProgress, SpeechRun},
    media::audio::Audio,
    models::{
        network::Kind,
        speaker::{Script, SpeakOptions, Speech, VoiceReference},
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
    codec: Option<AudioCodec>,
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

    /// The same model with a codec, which it needs if it writes the codes of another repository's codec.
    #[must_use]
    pub fn with_codec(&self, codec: &AudioCodec) -> Self {
        SpeechModel { codec: Some(codec.clone()), ..self.clone() }
    }

    /// A recording of a voice to be cloned, and what is said in it.
    ///
    /// # Errors
    /// [`Error::Audio`] for a sample that is not a number; [`Error::Option`] for no samples and for a
    /// sample rate that cannot be converted.
    pub fn reference(&self, audio: &Audio, text: impl Into<String>) -> Result<VoiceReference> {
        let samples = audio.to_mono(self.sample_rate)?;
        if samples.is_empty() {
            return Err(Error::option("reference", "it has no samples"));
        }
        Ok(VoiceReference { samples, text: text.into() })
    }

    /// Speaks a script, and gives each part to `out` on the engine thread as soon as it is computed.
    /// Dropping the future ends it after the current step.
    ///
    /// # Errors
    /// [`Error::Option`] for a script that the model cannot read, an unknown voice, a speed that is none,
    /// and a codec that is missing; [`Error::MemoryLimit`]; [`Error::Mlx`].
    pub async fn speak(
        &self,
        script: Script,
        options: SpeakOptions,
        mut out: impl FnMut(Speech) + Send + 'static,
    ) -> Result<()> {
        let (id, codec) = (self.place.id, self.codec.clone());
        let begin = move || {
            let model = find(id)?;
            let codec = codec.map(|codec| find(codec.id())?.codec().cloned()).transpose()?;
            let mut run = SpeechRun::new(model.speaker()?.clone(), codec, &script, options)?;
            Ok(move || {
                if model.unloaded.get() {
                    return Err(Error::Unloaded);
                }
                match run.advance(&mut model.decode_step())? {
                    SpeechProgress::Working => Ok(None),
                    SpeechProgress::Spoken(speech) => {
                        out(speech);
                        Ok(None)
                    }
                    SpeechProgress::Finished => Ok(Some(())),
                }
            })
        };
        self.place.engine.run_in_turns(Turn::Ready, begin).await
    }

    /// Frees the memory of the model. What still uses it fails with [`Error::Unloaded`].
    ///
    /// # Errors
    /// [`Error::Internal`] when the engine has stopped.
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
        Ok(SpeechModel { place: Arc::new(place), model_type, sample_rate, voices, codec: None })
    }
}
