//! Audio codecs and vocoders.

use crate::{
    error::MynahError,
    pulled::{CallCanceller, Pulled, aside},
    samples::{Audio, AudioInput},
};
use std::sync::Arc;

/// An audio codec or vocoder in memory. The last handle that is dropped frees it.
#[derive(uniffi::Object)]
pub struct AudioCodec(pub(crate) mynah::AudioCodec);

/// Audio as a codec stores it.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum EncodedAudio {
    /// Codes of one stretch after the other.
    Codes {
        /// The stretches.
        stretches: Vec<Codes>,
    },
    /// Continuous features of each frame, `[frames][bins]`.
    Features {
        /// The frames.
        frames: Vec<Vec<f32>>,
    },
}

/// Codes of one stretch of audio.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Codes {
    /// The codes of each codebook, in the order of time.
    pub codebooks: Vec<Vec<u32>>,
    /// Factor of the decoded samples, in codecs that normalise what they encode.
    pub scale: Option<f32>,
}

impl From<Codes> for mynah::Codes {
    fn from(codes: Codes) -> Self {
        mynah::Codes { codebooks: codes.codebooks, scale: codes.scale }
    }
}

impl From<EncodedAudio> for mynah::EncodedAudio {
    fn from(encoded: EncodedAudio) -> Self {
        match encoded {
            EncodedAudio::Codes { stretches } => {
                mynah::EncodedAudio::Codes(stretches.into_iter().map(Into::into).collect())
            }
            EncodedAudio::Features { frames } => mynah::EncodedAudio::Features(frames),
        }
    }
}

impl From<mynah::EncodedAudio> for EncodedAudio {
    fn from(encoded: mynah::EncodedAudio) -> Self {
        let codes = |codes: mynah::Codes| Codes { codebooks: codes.codebooks, scale: codes.scale };
        match encoded {
            mynah::EncodedAudio::Codes(stretches) => {
                EncodedAudio::Codes { stretches: stretches.into_iter().map(codes).collect() }
            }
            mynah::EncodedAudio::Features(frames) => EncodedAudio::Features { frames },
        }
    }
}

/// A running decoding. Dropping it stops the computation.
#[derive(uniffi::Object)]
pub struct Decoding(Pulled<mynah::Audio>);

#[uniffi::export]
impl Decoding {
    /// Waits for the next piece of audio; none after the end, after an error, and once cancelled. The work
    /// begins with the first call.
    ///
    /// # Errors
    /// When the codec cannot decode the codes, or the computation fails.
    pub async fn next(&self) -> Result<Option<Audio>, MynahError> {
        Ok(self.0.next().await?.map(Audio::from))
    }

    /// Stops the computation.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

#[uniffi::export]
impl AudioCodec {
    /// The `model_type` of the config, or the name of the family where it has none.
    pub fn model_type(&self) -> String {
        self.0.model_type().into()
    }

    /// Samples a second, in Hz.
    pub fn sample_rate(&self) -> u32 {
        self.0.sample_rate()
    }

    /// Channels of its audio.
    pub fn channels(&self) -> u32 {
        self.0.channels() as u32
    }

    /// Encodes audio of any rate and number of channels.
    ///
    /// # Errors
    /// When there are no samples, the model only decodes, or the computation fails or is cancelled.
    pub async fn encode(
        &self,
        audio: AudioInput,
        canceller: Arc<CallCanceller>,
    ) -> Result<EncodedAudio, MynahError> {
        let model = self.0.clone();
        Ok(aside(canceller, async move { model.encode(&audio.read()?).await }).await?.into())
    }

    /// Decodes codes or features. Without a seed, the noise of decoders that have some is zero.
    ///
    /// # Errors
    /// When the codec cannot decode them, or the computation fails or is cancelled.
    pub async fn decode(
        &self,
        encoded: EncodedAudio,
        seed: Option<u64>,
        canceller: Arc<CallCanceller>,
    ) -> Result<Audio, MynahError> {
        let model = self.0.clone();
        Ok(aside(canceller, async move { model.decode(encoded.into(), seed).await }).await?.into())
    }

    /// Decodes codes in parts, as if they came one after the other. A piece of audio comes as soon as no
    /// later code changes it.
    pub fn decode_parts(&self, parts: Vec<Codes>, seed: Option<u64>) -> Arc<Decoding> {
        let model = self.0.clone();
        let parts = parts.into_iter().map(mynah::Codes::from).collect();
        Arc::new(Decoding(Pulled::pieces(|pieces| async move {
            // A reader that is gone drops the work too.
            model.decode_parts(parts, seed, move |audio| drop(pieces.send(audio))).await
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
