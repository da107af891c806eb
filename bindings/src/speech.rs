//! Models that speak.

use crate::{
    codec::AudioCodec,
    error::MynahError,
    pulled::Pulled,
    samples::{AudioInput, packed},
};
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
    /// Names of voices; several are averaged. When empty, the model's first one, or its usual voice where a
    /// text does without a name.
    pub voices: Vec<String>,
    /// Divides the durations.
    pub speed: f32,
    /// The seed of random numbers. Without one, those of decoders are zero, and tokens are sampled with the
    /// seed 0.
    pub seed: Option<u64>,
    /// Phonemes of words, in the alphabet of the model, instead of the usual ones.
    pub pronunciations: HashMap<String, String>,
    /// A voice to be cloned, for models that do.
    #[uniffi(default = None)]
    pub reference: Option<VoiceReference>,
    /// Of models that sample tokens: divides the logits, 0 is greedy decoding. The model's own when none.
    #[uniffi(default = None)]
    pub temperature: Option<f32>,
    /// Likewise: samples only the most probable tokens that make up this probability.
    #[uniffi(default = None)]
    pub top_p: Option<f32>,
    /// Likewise: how many of the most probable tokens can be sampled (top-k); 0 is no limit.
    #[uniffi(default = None)]
    pub top_k: Option<u32>,
    /// Likewise: divides the positive logits of recent tokens; 1 changes nothing.
    #[uniffi(default = None)]
    pub repetition_penalty: Option<f32>,
    /// Likewise: the most tokens of a piece.
    #[uniffi(default = None)]
    pub max_tokens: Option<u32>,
}

/// A recording of a voice to be cloned.
#[derive(Clone, Debug, uniffi::Record)]
pub struct VoiceReference {
    /// The recording.
    pub audio: AudioInput,
    /// What is said in it.
    pub text: String,
}

/// The usual options.
#[uniffi::export]
pub fn default_speak_options() -> SpeakOptions {
    let usual = mynah::SpeakOptions::default();
    SpeakOptions {
        voices: usual.voices,
        speed: usual.speed,
        seed: usual.seed,
        pronunciations: usual.pronunciations,
        reference: None,
        temperature: usual.temperature,
        top_p: usual.top_p,
        top_k: usual.top_k.map(|count| count as u32),
        repetition_penalty: usual.repetition_penalty,
        max_tokens: usual.max_tokens.map(|count| count as u32),
    }
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

    /// The same model with a codec, which it needs if it writes the codes of another repository's codec.
    pub fn with_codec(&self, codec: Arc<AudioCodec>) -> Arc<SpeechModel> {
        Arc::new(SpeechModel(self.0.with_codec(&codec.0)))
    }

    /// Speaks a script, piece by piece.
    pub fn speak(&self, script: Script, options: SpeakOptions) -> Arc<Speaking> {
        let model = self.0.clone();
        let script = match script {
            Script::Text { text } => mynah::Script::Text(text),
            Script::Phonemes { phonemes } => mynah::Script::Phonemes(phonemes),
        };
        let reference = options.reference;
        let mut options = mynah::SpeakOptions {
            voices: options.voices,
            speed: options.speed,
            seed: options.seed,
            pronunciations: options.pronunciations,
            reference: None,
            temperature: options.temperature,
            top_p: options.top_p,
            top_k: options.top_k.map(|count| count as usize),
            repetition_penalty: options.repetition_penalty,
            max_tokens: options.max_tokens.map(|count| count as usize),
        };
        Arc::new(Speaking(Pulled::pieces(|pieces| async move {
            if let Some(VoiceReference { audio, text }) = reference {
                options.reference = Some(model.reference(&audio.read()?, text)?);
            }
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
