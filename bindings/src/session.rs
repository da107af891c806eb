//! Sessions, which keep a KV cache between requests.

use crate::{
    error::MynahError, parameters::GenerationParameters, prompt::Prompt, stream::GenerationStream,
};
use mynah::{Bound, CacheQuantization};
use std::sync::Arc;

/// What a session does when its context is full.
#[derive(Clone, Copy, Debug, uniffi::Enum)]
pub enum Overflow {
    /// It refuses a prompt that does not fit and ends a generation at the end of the context.
    Error,
    /// It drops the oldest turns of the transcript.
    DropOldest {
        /// Tokens that stay free for the answer.
        reserve: u32,
    },
    /// It keeps the first tokens (attention sinks) and the latest ones in a ring buffer.
    Ring {
        /// Tokens in the KV cache in all.
        positions: u32,
        /// How many of them are attention sinks.
        keep: u32,
    },
}

/// A quantized KV cache.
#[derive(Clone, Copy, Debug, uniffi::Record)]
pub struct CacheBits {
    /// 4 or 8.
    pub bits: u8,
    /// The group size: 32, 64 or 128.
    #[uniffi(default = 64)]
    pub group_size: u32,
    /// The number of tokens from which on the cache is quantized.
    #[uniffi(default = 0)]
    pub after: u32,
}

/// The options of a session's KV cache. Absent options are those of the loaded model.
#[derive(Clone, Debug, uniffi::Record)]
pub struct SessionOptions {
    /// What the session does when the context is full.
    #[uniffi(default = None)]
    pub overflow: Option<Overflow>,
    /// Quantizes the KV cache.
    #[uniffi(default = None)]
    pub quantization: Option<CacheBits>,
    /// The most bytes for checkpoints of recurrent states, which cannot be rewound otherwise.
    #[uniffi(default = None)]
    pub checkpoint_bytes: Option<u64>,
}

impl SessionOptions {
    /// These options, with those of `options` where they have no value.
    pub(crate) fn over(
        self,
        options: mynah::SessionOptions,
    ) -> Result<mynah::SessionOptions, MynahError> {
        let overflow = match self.overflow {
            None => options.overflow,
            Some(Overflow::Error) => mynah::Overflow::Error,
            Some(Overflow::DropOldest { reserve }) => {
                mynah::Overflow::DropOldest { reserve: reserve as usize }
            }
            Some(Overflow::Ring { positions, keep }) => {
                mynah::Overflow::Ring(Bound::new(positions as usize, keep as usize)?)
            }
        };
        let quantization = self.quantization.map(|CacheBits { bits, group_size, after }| {
            let group_size = i32::try_from(group_size).unwrap_or(i32::MAX);
            CacheQuantization::new(bits.into(), group_size, after as usize)
        });
        let bytes = self
            .checkpoint_bytes
            .map_or(options.checkpoint_bytes, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let quantization = quantization.transpose()?.or(options.quantization);
        Ok(options.overflow(overflow).quantization(quantization).checkpoint_bytes(bytes))
    }
}

/// A KV cache that stays between requests. Every request passes the whole prompt; the session reuses
/// the prefix that it has cached.
#[derive(uniffi::Object)]
pub struct Session(pub(crate) mynah::Session);

#[uniffi::export]
impl Session {
    /// The number of tokens in the KV cache.
    pub fn tokens_used(&self) -> u64 {
        self.0.tokens_used() as u64
    }

    /// Starts a generation, which waits for earlier ones of this session.
    ///
    /// # Errors
    /// When the prompt or a parameter is invalid.
    pub fn generate(
        &self,
        prompt: Prompt,
        parameters: GenerationParameters,
    ) -> Result<Arc<GenerationStream>, MynahError> {
        let model = self.0.model();
        let options = parameters.over(model.default_options());
        Ok(GenerationStream::new(self.0.generate(mynah::Prompt::try_from(prompt)?, &options)?))
    }

    /// A new session with a copy of the KV cache.
    ///
    /// # Errors
    /// When the model has been unloaded.
    pub async fn fork(&self) -> Result<Arc<Session>, MynahError> {
        Ok(Arc::new(Session(self.0.fork().await?)))
    }

    /// Empties the KV cache.
    ///
    /// # Errors
    /// When the model has been unloaded.
    pub async fn clear(&self) -> Result<(), MynahError> {
        Ok(self.0.clear().await?)
    }

    /// Writes the KV cache to a file.
    ///
    /// # Errors
    /// When the KV cache is empty or the file cannot be written.
    pub async fn save(&self, path: String) -> Result<(), MynahError> {
        Ok(self.0.save(path).await?)
    }
}
