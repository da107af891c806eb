//! Models that speak.

use crate::{error::MynahError, pulled::Pulled, samples::packed};
use std::{collections::HashMap, sync::Arc};

/// A model of text to speech in memory. The last handle that is dropped frees it.
#[derive(uniffi::Object)]
pub struct SpeechModel(pub(crate) mynah::SpeechModel);

/// What is spoken.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum Script {
    /// A text in ordinary letters.
    Text {
        /// The text.
        text: String,
    },
    /// The phonemes of a text, in the alphabet of the model.
    Phonemes {
        /// The phonemes.
        phonemes: String,
    },
}

/// How it is spoken. `default_speak_options` has the usual options.
#[derive(Clone, Debug, uniffi::Record)]
pub struct SpeakOptions {
    /// Names of voices; several are averaged. The model's first one when empty.
    pub voices: Vec<String>,
    /// Divides the durations.
    pub speed: f32,
    /// The seed of random numbers; without one, they are zero.
    pub seed: Option<u64>,
    /// Phonemes of words, in the alphabet of the model, instead of the usual ones.
    pub pronunciations: HashMap<String, String>,
}

/// The usual options.
#[uniffi::export]
pub fn default_speak_options() -> SpeakOptions {
    let mynah::SpeakOptions { voices, speed, seed, pronunciations } =
        mynah::SpeakOptions::default();
    SpeakOptions { voices, speed, seed, pronunciations }
}

/// A running synthesis. Dropping it stops the computation after the current piece.
#[derive(uniffi::Object)]
pub struct Speaking(Pulled<mynah::Speech>);

#[uniffi::export]
impl Speaking {
    /// Waits for the samples of the next piece: 32-bit floats of one channel, little endian; none after the
    /// end, after an error, and once cancelled. The work begins with the first call.
    ///
    /// # Errors
    /// When the model cannot read the script, a voice is unknown, or the computation fails.
    pub async fn next(&self) -> Result<Option<Vec<u8>>, MynahError> {
        Ok(self.0.next().await?.map(|speech| packed(&speech.samples)))
    }

    /// Stops the computation after the current piece.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

#[uniffi::export]
impl SpeechModel {
    /// The `model_type` of the config, or the name of the family where it has none.
    pub fn model_type(&self) -> String {
        self.0.model_type().into()
    }

    /// Samples a second, in Hz.
    pub fn sample_rate(&self) -> u32 {
        self.0.sample_rate()
    }

    /// The names of its voices.
    pub fn voices(&self) -> Vec<String> {
        self.0.voices().to_vec()
    }

    /// Speaks a script, piece by piece.
    pub fn speak(&self, script: Script, options: SpeakOptions) -> Arc<Speaking> {
        let model = self.0.clone();
        let script = match script {
            Script::Text { text } => mynah::Script::Text(text),
            Script::Phonemes { phonemes } => mynah::Script::Phonemes(phonemes),
        };
        let SpeakOptions { voices, speed, seed, pronunciations } = options;
        let options = mynah::SpeakOptions { voices, speed, seed, pronunciations };
        Arc::new(Speaking(Pulled::pieces(|pieces| async move {
            // A reader that is gone drops the work too.
            model.speak(script, options, move |speech| drop(pieces.send(speech))).await
        })))
    }

    /// Frees the memory of the model.
    ///
    /// # Errors
    /// When the device fails.
    pub async fn unload(&self) -> Result<(), MynahError> {
        Ok(self.0.unload().await?)
    }
}
