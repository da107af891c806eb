//! The memory of a conversation.

use crate::{
    error::MynahError, parameters::GenerationParameters, prompt::Prompt, stream::GenerationStream,
};
use mynah::{Bound, CacheQuantization};
use std::sync::Arc;

/// What happens when the context is full.
#[derive(Clone, Copy, Debug, uniffi::Enum)]
pub enum Overflow {
    /// A prompt that does not fit is refused, and generation ends where the context does.
    Error,
    /// The oldest turns are left out.
    DropOldest {
        /// Tokens that shall be free for the answer.
        reserve: u32,
    },
    /// There is no end: the first tokens and the latest are remembered.
    Ring {
        /// Tokens remembered in all.
        positions: u32,
        /// How many of them are the first ones.
        keep: u32,
    },
}

/// Keys and values in fewer bits.
#[derive(Clone, Copy, Debug, uniffi::Record)]
pub struct CacheBits {
    /// 4 or 8.
    pub bits: u8,
    /// How many elements share a scale: 32, 64 or 128.
    #[uniffi(default = 64)]
    pub group_size: u32,
    /// From how many positions on.
    #[uniffi(default = 0)]
    pub after: u32,
}

/// How a session remembers; what is not given is as the model was loaded.
#[derive(Clone, Debug, uniffi::Record)]
pub struct SessionOptions {
    /// What happens when the context is full.
    #[uniffi(default = None)]
    pub overflow: Option<Overflow>,
    /// Keeps keys and values in fewer bits.
    #[uniffi(default = None)]
    pub quantization: Option<CacheBits>,
    /// The most bytes that are spent on going back where the model cannot go back by itself.
    #[uniffi(default = None)]
    pub checkpoint_bytes: Option<u64>,
}

impl SessionOptions {
    /// These over others.
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

/// The memory of a conversation. Every request brings the whole prompt, and what the session
/// remembers of it is not computed again.
#[derive(uniffi::Object)]
pub struct Session(pub(crate) mynah::Session);

#[uniffi::export]
impl Session {
    /// How many tokens it remembers at the moment.
    pub fn tokens_used(&self) -> u64 {
        self.0.tokens_used() as u64
    }

    /// Starts to continue a prompt, once what was asked before is done.
    ///
    /// # Errors
    /// When the prompt or the parameters make no sense to the model.
    pub fn generate(
        &self,
        prompt: Prompt,
        parameters: GenerationParameters,
    ) -> Result<Arc<GenerationStream>, MynahError> {
        let options = parameters.over(self.0.model().default_options());
        Ok(GenerationStream::new(self.0.generate(mynah::Prompt::try_from(prompt)?, &options)?))
    }

    /// A session of its own that remembers the same.
    ///
    /// # Errors
    /// When the model has been unloaded.
    pub async fn fork(&self) -> Result<Arc<Session>, MynahError> {
        Ok(Arc::new(Session(self.0.fork().await?)))
    }

    /// Forgets everything.
    ///
    /// # Errors
    /// When the model has been unloaded.
    pub async fn clear(&self) -> Result<(), MynahError> {
        Ok(self.0.clear().await?)
    }

    /// Writes what it remembers to a file.
    ///
    /// # Errors
    /// When there is nothing to save, or the file cannot be written.
    pub async fn save(&self, path: String) -> Result<(), MynahError> {
        Ok(self.0.save(path).await?)
    }
}
