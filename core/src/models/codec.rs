//! Audio codecs and vocoders: audio to codes or features and back.

use crate::{
    error::{Error, Result},
    layers::{algebra::Block, audio::noise::Noise, cache_plan::CachePlan, step::Step},
    models::cache::Cache,
};
use mlx_rs::{Array, Dtype};

/// Audio to codes or features and back.
pub trait Codec {
    /// Samples a second.
    fn sample_rate(&self) -> u32;

    /// Channels of its audio.
    fn channels(&self) -> usize {
        1
    }

    /// Whether it codes stretches of a fixed length, of which each has codes of its own.
    fn is_chunked(&self) -> bool {
        false
    }

    /// Samples `[1, samples, channels]` between -1 and 1 to codes or features.
    ///
    /// # Errors
    /// [`Error::Option`] where it only decodes.
    fn encode(&self, samples: &Array) -> Result<EncodedAudio>;

    /// Codes or features to samples `[1, samples, channels]`.
    ///
    /// # Errors
    /// [`Error::Option`] for codes that it does not have, and for another kind of input.
    fn decode(&self, encoded: &EncodedAudio, noise: Noise) -> Result<Array>;

    /// How it decodes a stream.
    fn streaming(&self) -> Streaming<'_>;
}

/// Audio as a codec stores it.
#[derive(Clone, Debug, PartialEq)]
pub enum EncodedAudio {
    /// Codes of one stretch after the other; most codecs have one stretch.
    Codes(Vec<Codes>),
    /// Continuous features of each frame, `[frames][bins]`.
    Features(Vec<Vec<f32>>),
}

/// Codes of one stretch of audio.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Codes {
    /// The codes of each codebook, in the order of time. Codebooks may differ in their frame rate.
    pub codebooks: Vec<Vec<u32>>,
    /// Factor of the decoded samples, in codecs that normalise what they encode.
    pub scale: Option<f32>,
}

/// How a codec decodes a stream.
pub enum Streaming<'c> {
    /// Step by step, with states.
    Causal(&'c dyn CausalDecoder),
    /// In windows, because samples depend on frames near by alone.
    Windowed(Windows),
    /// At once, when everything is there.
    Whole,
}

/// A decoder whose samples depend on earlier codes alone.
pub trait CausalDecoder {
    /// How many frames the first part needs.
    fn first_frames(&self) -> usize;
    /// The cache of a new stream.
    fn cache(&self) -> Cache;
    /// The next codes to samples `[1, samples, channels]`.
    fn decode_next(&self, codes: &Codes, cache: &mut Cache) -> Result<Array>;
}

/// The windows in which a decoder without states decodes a stream. They consist of units, which are
/// the shortest stretches with a whole number of codes of each codebook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// The codes of each codebook in a unit.
    pub codes: Vec<usize>,
    /// Samples of a unit.
    pub samples: usize,
    /// How many units before and after one its samples depend on.
    pub context: usize,
}

impl EncodedAudio {
    /// The only stretch of codes.
    ///
    /// # Errors
    /// [`Error::Option`] for features, and for several stretches.
    pub fn only_codes(&self) -> Result<&Codes> {
        match self {
            EncodedAudio::Codes(stretches) if stretches.len() == 1 => Ok(&stretches[0]),
            EncodedAudio::Codes(stretches) => Err(Error::option(
                "codes",
                format!("{} stretches of codes; this codec has one", stretches.len()),
            )),
            EncodedAudio::Features(_) => {
                Err(Error::option("features", "this codec decodes codes, not features"))
            }
        }
    }

    /// The features `[1, frames, bins]`.
    ///
    /// # Errors
    /// [`Error::Option`] for codes, for no frames, and for frames of another length.
    pub fn features(&self, bins: i32) -> Result<Array> {
        let EncodedAudio::Features(frames) = self else {
            return Err(Error::option("codes", "this model decodes features, not codes"));
        };
        if frames.is_empty() {
            return Err(Error::option("features", "there are no frames"));
        }
        if let Some(other) = frames.iter().find(|frame| frame.len() != bins as usize) {
            let reason = format!("a frame of {} bins; this model has {bins}", other.len());
            return Err(Error::option("features", reason));
        }
        Ok(Array::from_slice(&frames.concat(), &[1, frames.len() as i32, bins]))
    }

    /// Features `[1, frames, bins]` of a model.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub fn of_features(features: &Array) -> Result<Self> {
        let bins = features.dim(2).max(1) as usize;
        let values: Vec<f32> = crate::mlx::to_vec(&features.as_dtype(Dtype::Float32)?)?;
        Ok(EncodedAudio::Features(values.chunks(bins).map(<[f32]>::to_vec).collect()))
    }
}

impl Codes {
    /// Codes `[1, frames]` of each codebook.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub fn of_arrays(codebooks: &[Array]) -> Result<Self> {
        let codes = |codes: &Array| crate::mlx::to_vec(&codes.as_dtype(Dtype::Uint32)?);
        let codebooks: Result<_> = codebooks.iter().map(codes).collect();
        Ok(Codes { codebooks: codebooks?, scale: None })
    }

    /// The codes of each codebook, `[1, frames]`; `frames` says how many belong to the same
    /// stretch of time in each codebook.
    ///
    /// # Errors
    /// [`Error::Option`] for more codebooks than there are, for lengths that do not fit each other, and
    /// for codes that no codebook has.
    pub fn arrays(&self, frames: &[usize], entries: i32) -> Result<Vec<Array>> {
        let wrong = |reason| Err(Error::option("codes", reason));
        let given = self.codebooks.len();
        if given == 0 || given > frames.len() {
            return wrong(format!("{given} codebooks; this codec has {}", frames.len()));
        }
        let shared = frames.iter().fold(0, |a, b| gcd(a, *b));
        let frames: Vec<usize> = frames.iter().map(|frames| frames / shared).collect();
        let units = self.codebooks[0].len() / frames[0];
        for (i, (codes, frames)) in self.codebooks.iter().zip(&frames).enumerate() {
            if codes.is_empty() || codes.len() != units * frames {
                let expected = units * frames;
                return wrong(format!("{} codes in codebook {i}, not {expected}", codes.len()));
            }
            if let Some(code) = codes.iter().find(|code| **code >= entries as u32) {
                return wrong(format!("{code} in codebook {i}, which has {entries} entries"));
            }
        }
        let array = |codes: &Vec<u32>| Array::from_slice(codes, &[1, codes.len() as i32]);
        Ok(self.codebooks.iter().map(array).collect())
    }
}

/// Runs the next part `x` `[1, length, channels]` of a stream through stages of layers, whose states
/// the cache has one after the other. Its positions are the steps of the stage of that number.
///
/// # Errors
/// [`Error::MemoryLimit`], [`Error::Mlx`].
pub fn run_next(
    stages: &[&[Block]],
    positions: usize,
    x: &Array,
    cache: &mut Cache,
) -> Result<Array> {
    let (mut x, mut first) = (x.clone(), 0);
    for (i, blocks) in stages.iter().enumerate() {
        let length = x.dim(1);
        if i == positions {
            cache.reserve(cache.offset + length)?;
        }
        let step = Step::prefill(cache.offset, length);
        for (block, state) in blocks.iter().zip(&mut cache.states[first..]) {
            x = block.forward(&x, &mut **state, &step)?;
        }
        if i == positions {
            cache.offset += length;
        }
        first += blocks.len();
    }
    Ok(x)
}

/// An empty cache of such a stream.
pub fn stream_cache(stages: &[&[Block]]) -> Cache {
    let plan = CachePlan::default();
    Cache::new(stages.iter().copied().flatten().map(|block| block.state(&plan)).collect(), &plan)
}

/// The greatest common divisor.
pub fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
