//! The handle of an audio codec.

use crate::{
    api::{
        location::Location,
        network::{self, AudioHandle, LoadAudio, LoadedAudio},
    },
    engine::{
        Turn,
        engine_model::{EngineModel, Place, find},
    },
    error::{Error, Result},
    layers::audio::noise::Noise,
    media::audio::{Audio, Resampler},
    mlx,
    models::{
        codec::{Codes, EncodedAudio},
        codec_stream::CodecStream,
        network::Kind,
    },
};
use mlx_rs::Array;
use std::sync::Arc;

/// An audio codec or vocoder in memory. Handles are cheap to clone and may be used from any thread.
/// Dropping the last handle frees the memory.
#[derive(Clone)]
pub struct AudioCodec {
    place: Arc<Place>,
    model_type: String,
    sample_rate: u32,
    channels: usize,
    is_chunked: bool,
}

impl AudioCodec {
    /// Loads a codec from a hub or a directory.
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

    /// Frees the memory of the model. What still uses it fails with [`Error::Unloaded`].
    ///
    /// # Errors
    /// [`Error::Internal`] when the engine has stopped.
    pub async fn unload(&self) -> Result<()> {
        network::free(&self.place).await
    }

    /// Samples a second, in Hz.
    pub fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    /// Channels of its audio.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Whether it codes stretches of a fixed length, of which each has codes of its own.
    pub fn is_chunked(&self) -> bool {
        self.is_chunked
    }

    /// Encodes audio of any rate and number of channels.
    ///
    /// # Errors
    /// [`Error::Option`] for audio without samples, and for a model that only decodes;
    /// [`Error::Audio`] for a sample that is not a number; [`Error::MemoryLimit`]; [`Error::Mlx`].
    pub async fn encode(&self, audio: &Audio) -> Result<EncodedAudio> {
        let samples = self.fit(audio)?;
        if samples.is_empty() {
            return Err(Error::option("audio", "it has no samples"));
        }
        let (id, channels) = (self.place.id, self.channels);
        let encode = move || {
            let length = (samples.len() / channels) as i32;
            let samples = Array::from_slice(&samples, &[1, length, channels as i32]);
            find(id)?.codec()?.encode(&samples)
        };
        self.place.engine.compute(encode).await
    }

    /// Decodes codes or features. `seed` is that of the noise in decoders that have some; without one,
    /// the noise is zero.
    ///
    /// # Errors
    /// [`Error::Option`] for what the codec cannot decode; [`Error::MemoryLimit`]; [`Error::Mlx`].
    pub async fn decode(&self, encoded: EncodedAudio, seed: Option<u64>) -> Result<Audio> {
        let id = self.place.id;
        let noise = seed.map_or(Noise::Zero, Noise::Seed);
        let decode = move || mlx::to_vec(&find(id)?.codec()?.decode(&encoded, noise)?);
        Ok(self.audio(self.place.engine.compute(decode).await?))
    }

    /// Decodes codes in parts of `codes`, as if they came one after the other, and gives each
    /// piece of audio to `out` on the engine thread. Together the pieces are the audio of
    /// [`AudioCodec::decode`]; a piece comes as soon as no later code changes it.
    ///
    /// # Errors
    /// As [`AudioCodec::decode`].
    pub async fn decode_parts(
        &self,
        parts: Vec<Codes>,
        seed: Option<u64>,
        mut out: impl FnMut(Audio) + Send + 'static,
    ) -> Result<()> {
        let (id, this) = (self.place.id, self.clone());
        let noise = seed.map_or(Noise::Zero, Noise::Seed);
        let begin = move || {
            let mut stream = CodecStream::new(find(id)?.codec()?.clone(), noise);
            let mut parts = parts.into_iter();
            Ok(move || {
                let part = parts.next();
                let samples = match &part {
                    Some(codes) => stream.push(codes)?,
                    None => stream.finish()?,
                };
                if let Some(samples) = samples {
                    out(this.audio(mlx::to_vec(&samples)?));
                }
                Ok(part.is_none().then_some(()))
            })
        };
        self.place.engine.run_in_turns(Turn::Ready, begin).await
    }

    /// Its number among the models of the engine thread.
    pub(super) fn id(&self) -> u64 {
        self.place.id
    }

    fn audio(&self, samples: Vec<f32>) -> Audio {
        Audio { samples, channels: self.channels, sample_rate: self.sample_rate }
    }

    /// The samples of audio at the rate and with the channels of the codec; a single channel stands
    /// for both of two.
    fn fit(&self, audio: &Audio) -> Result<Vec<f32>> {
        if self.channels == 1 || audio.channels != self.channels {
            let mono = audio.to_mono(self.sample_rate)?;
            return Ok(mono.iter().flat_map(|x| std::iter::repeat_n(*x, self.channels)).collect());
        }
        let channel = |i: usize| -> Result<Vec<f32>> {
            let samples = audio.samples.iter().skip(i).step_by(self.channels).copied();
            let mut resampler = Resampler::new(audio.sample_rate, self.sample_rate)?;
            let mut out = Vec::new();
            resampler.push(&samples.collect::<Vec<_>>(), &mut out);
            resampler.finish(&mut out);
            Ok(out)
        };
        let channels: Vec<Vec<f32>> = (0..self.channels).map(channel).collect::<Result<_>>()?;
        let frames = channels[0].len();
        Ok((0..frames).flat_map(|i| channels.iter().map(move |samples| samples[i])).collect())
    }
}

impl AudioHandle for AudioCodec {
    const KIND: Kind = Kind::Codec;
    /// The sample rate, the number of channels, and whether stretches are coded one by one.
    type Facts = (u32, usize, bool);

    fn facts(model: &EngineModel) -> Result<Self::Facts> {
        let codec = model.codec()?;
        Ok((codec.sample_rate(), codec.channels(), codec.is_chunked()))
    }

    fn new(loaded: LoadedAudio<Self::Facts>) -> Result<Self> {
        let LoadedAudio { model_type, place, facts: (sample_rate, channels, is_chunked), .. } =
            loaded;
        Ok(AudioCodec { place: Arc::new(place), model_type, sample_rate, channels, is_chunked })
    }
}
