//! Prompts with pictures and clips: what a language model reads of them.

use crate::{
    api::{
        location::{Found, Location},
        model::Model,
        preparation::{EncodedPrompt, Preparation},
        prompt::Prompt,
    },
    error::{Error, Result},
    families,
    media::Attachment,
    processors::Prepared,
    text::{Message, RenderedText, Tokenizer, text_only},
};
use std::{borrow::Cow, sync::Arc};

impl Model {
    /// The messages as the chat template gets them.
    ///
    /// # Errors
    /// [`Error::UnsupportedPart`].
    pub(crate) fn messages<'a>(&self, messages: &'a [Message]) -> Result<Cow<'a, [Message]>> {
        if self.0.preparation.is_none() {
            return text_only(messages).map(Cow::Owned);
        }
        for (index, message) in messages.iter().enumerate() {
            for part in message.parts().iter().filter(|part| part.kind != "text") {
                if part.media.is_none() {
                    return Err(Error::UnsupportedPart { message: index, kind: part.kind.clone() });
                }
            }
        }
        Ok(Cow::Borrowed(messages))
    }

    /// The token ids of a resolved prompt of any length, and its pictures.
    ///
    /// # Errors
    /// Those of [`Model::tokens`].
    pub(crate) fn encode(&self, prompt: &Prompt) -> Result<EncodedPrompt> {
        let (prompt, attachments) = prompt.split();
        let media = match &self.0.preparation {
            Some(preparation) => attachments
                .into_iter()
                .map(|media| preparation.prepare(media))
                .collect::<Result<Vec<_>>>()?,
            None if attachments.is_empty() => Vec::new(),
            None => return Err(Error::TextOnly { media: attachments.len() }),
        };
        let expansion = match &self.0.preparation {
            // Without pictures the prompt may have no places for them; without settings, none are known.
            Some(preparation) if media.is_empty() => preparation.expansion(&media).ok(),
            Some(preparation) => Some(preparation.expansion(&media)?),
            None => None,
        };
        let tokens = match prompt {
            Prompt::Tokens(tokens) => match &expansion {
                Some(expansion) => expansion.ids(tokens)?,
                None => tokens.clone(),
            },
            Prompt::Raw(text) | Prompt::Text(text) if text.is_empty() && media.is_empty() => {
                Vec::new()
            }
            Prompt::Raw(text) | Prompt::Text(text) => match &expansion {
                Some(expansion) => {
                    let has_own_start = expansion.surroundings.has_start();
                    let tokenizer = self.tokenizer()?;
                    expansion.encode(&RenderedText::written(text), |text| {
                        tokenizer.encode(text.as_str(), !has_own_start)
                    })?
                }
                None => self.tokenizer()?.encode(text, true)?,
            },
            Prompt::Chat(messages, options) => {
                let (template, tokenizer) = (self.template()?, self.tokenizer()?);
                let text = template.rendered(&self.messages(messages)?, options)?;
                match &expansion {
                    Some(expansion) => {
                        let encode = |text: &RenderedText| template.encode_text(tokenizer, text);
                        with_start(expansion.encode(&text, encode)?, &text, tokenizer)?
                    }
                    None => template.encode_text(tokenizer, &text)?,
                }
            }
            Prompt::WithMedia { .. } => {
                return Err(Error::Internal("pictures of a prompt are nested".into()));
            }
        };
        let vocabulary = self.0.info.vocabulary;
        // A placeholder may stand beyond the vocabulary.
        let is_known = |id: &u32| *id < vocabulary || media.iter().any(|it| it.prepared.has(*id));
        if let Some(&id) = tokens.iter().find(|id| !is_known(id)) {
            return Err(Error::TokenOutOfVocabulary { id, vocabulary });
        }
        if tokens.is_empty() {
            Err(Error::EmptyPrompt)
        } else {
            Ok(EncodedPrompt { tokens, media })
        }
    }
}

/// The ids of a rendered conversation with the token at the start that the tokenizer adds to every text,
/// where the template did not write it: processors do so, other than tokenizers.
fn with_start(ids: Vec<u32>, text: &RenderedText, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let Some(start) = tokenizer.bos_token() else { return Ok(ids) };
    let is_written = text.as_str().starts_with(start);
    let own = tokenizer.encode("", true)?;
    match tokenizer.token_id(start) {
        Some(start) if !is_written && own.first() == Some(&start) => {
            Ok([vec![start], ids].concat())
        }
        _ => Ok(ids),
    }
}

/// The tensors that a model in a directory gets of pictures, without reading its weights.
///
/// # Errors
/// [`Error::Image`]; [`Error::Config`]; [`Error::TextOnly`] for a model that reads no pictures.
pub fn preprocess(
    location: impl Into<Location>,
    media: &[Attachment],
) -> Result<Vec<Arc<Prepared>>> {
    let Found::Here(files) = location.into().resolve()? else {
        return Err(Error::option("location", "pictures are prepared with files on this machine"));
    };
    let config = files.json("config.json")?;
    let family = families::family(&files, config.as_ref())?;
    let read = family.processor.ok_or(Error::TextOnly { media: media.len() })?;
    let tokenizer = match Tokenizer::is_expected(&files)? {
        true => Some(Tokenizer::load(&files)?),
        false => None,
    };
    let config = config.unwrap_or_default();
    let preparation = Preparation::new(read, &config, &files, tokenizer.as_ref());
    media.iter().map(|media| Ok(preparation.prepare(media)?.prepared)).collect()
}
