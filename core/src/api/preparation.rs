//! How a model prepares the pictures and clips of prompts.

use crate::{
    checkpoint::files::Files,
    error::Result,
    media::Attachment,
    processors::{Expansion, PreparedMedia, Processor, Read, Settings, Surroundings},
    text::{ChatTemplate, Tokenizer},
};
use serde_json::Value;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The bytes of prepared pictures that a model keeps for later turns.
const KEPT_BYTES: usize = 64 << 20;

/// The token ids of a prompt, and the pictures that their placeholders stand for.
#[derive(Clone, Debug)]
pub(crate) struct EncodedPrompt {
    pub tokens: Vec<u32>,
    pub media: Vec<PreparedMedia>,
}

/// How a model prepares pictures. The settings are read when they are first needed, because a
/// checkpoint without them still reads text.
pub(crate) struct Preparation {
    read: Read,
    config: Value,
    files: Files,
    tokenizer: Option<Tokenizer>,
    processor: OnceLock<Box<dyn Processor>>,
    /// The latest prepared pictures, the last one at the end.
    kept: Mutex<Vec<PreparedMedia>>,
}

impl Preparation {
    pub fn new(read: Read, config: &Value, files: &Files, tokenizer: Option<&Tokenizer>) -> Self {
        Preparation {
            read,
            config: config.clone(),
            files: files.clone(),
            tokenizer: tokenizer.cloned(),
            processor: OnceLock::new(),
            kept: Mutex::default(),
        }
    }

    /// The same settings with another tokenizer.
    pub fn with_tokenizer(&self, tokenizer: &Tokenizer) -> Self {
        Preparation::new(self.read, &self.config, &self.files, Some(tokenizer))
    }

    /// The processor of the checkpoint.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config).
    pub fn processor(&self) -> Result<&dyn Processor> {
        if let Some(processor) = self.processor.get() {
            return Ok(&**processor);
        }
        let Preparation { config, files, tokenizer, .. } = self;
        let processor = (self.read)(&Settings { config, files, tokenizer: tokenizer.as_ref() })?;
        Ok(&**self.processor.get_or_init(|| processor))
    }

    /// A picture as the model reads it.
    ///
    /// # Errors
    /// [`Error::Image`](crate::Error::Image), and those of [`Preparation::processor`].
    pub fn prepare(&self, media: &Attachment) -> Result<PreparedMedia> {
        let processor = self.processor()?;
        let hash = media.hash();
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let known = {
            let mut kept = kept();
            let found = kept.iter().position(|media| media.hash == hash);
            found.map(|index| kept.remove(index))
        };
        let media = match known {
            Some(media) => media,
            None => {
                let prepared = match media {
                    Attachment::Image(image) => processor.image(&image.pixels()?)?,
                    Attachment::Video(video) => processor.video(video)?,
                };
                PreparedMedia { hash, kind: media.kind(), prepared: Arc::new(prepared) }
            }
        };
        let mut kept = kept();
        kept.push(media.clone());
        let mut bytes: usize = kept.iter().map(|media| media.prepared.bytes()).sum();
        while bytes > KEPT_BYTES {
            bytes -= kept.remove(0).prepared.bytes();
        }
        Ok(media)
    }

    /// A chat template that writes the marker of pictures, or gets it in their places.
    pub fn template(&self, template: ChatTemplate) -> ChatTemplate {
        match self.processor() {
            Ok(processor) => template.for_media(&processor.markers()[0].text),
            // A prompt with a picture meets the error again.
            Err(_) => template,
        }
    }

    /// How a prompt with these media is written out.
    ///
    /// # Errors
    /// Those of [`Preparation::processor`].
    pub fn expansion<'a>(&'a self, media: &'a [PreparedMedia]) -> Result<Expansion<'a>> {
        let processor = self.processor()?;
        Ok(Expansion {
            markers: processor.markers(),
            media,
            surroundings: match media.is_empty() {
                true => Surroundings::default(),
                false => processor.surroundings(),
            },
            tokenizer: self.tokenizer.as_ref(),
        })
    }
}
