//! The prompt of a request.

use crate::{
    media::Attachment,
    text::{Message, TemplateOptions},
};

/// The prompt of a request. A string becomes [`Prompt::Text`], a list of messages [`Prompt::Chat`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Prompt {
    /// A user's message, rendered with the checkpoint's chat template; a checkpoint without a chat
    /// template continues it as [`Prompt::Raw`] text.
    Text(String),
    /// Text to continue without a chat template. The tokenizer adds its special tokens, such as the
    /// beginning of the sequence.
    Raw(String),
    /// Token ids, as they are.
    Tokens(Vec<u32>),
    /// A conversation, rendered with the checkpoint's chat template.
    Chat(Vec<Message>, TemplateOptions),
    /// A prompt with pictures; see [`Prompt::with_media`].
    WithMedia {
        /// Text or token ids, with the model's marker at the place of each picture.
        prompt: Box<Prompt>,
        /// The pictures, in the order of their places.
        media: Vec<Attachment>,
    },
}

impl Prompt {
    /// The prompt with pictures. In a user's message they stand before the text; raw text and token ids
    /// have the model's marker at the place of each picture, once (`<|image_pad|>`, `[IMG]`). In a
    /// conversation they stand before the last message of the user; other messages carry their own, as
    /// [`Part::media`](crate::Part::media).
    #[must_use]
    pub fn with_media(self, media: impl IntoIterator<Item = impl Into<Attachment>>) -> Self {
        let media: Vec<Attachment> = media.into_iter().map(Into::into).collect();
        match (self, media) {
            (prompt, media) if media.is_empty() => prompt,
            (Prompt::WithMedia { prompt, media: first }, media) => {
                Prompt::WithMedia { prompt, media: [first, media].concat() }
            }
            (Prompt::Chat(mut messages, options), media) => {
                let last = messages.iter_mut().rfind(|message| message.role == "user");
                last.into_iter().for_each(|message| message.put_media(media.clone()));
                Prompt::Chat(messages, options)
            }
            (prompt, media) => Prompt::WithMedia { prompt: Box::new(prompt), media },
        }
    }

    /// The prompt with [`Prompt::Text`] replaced by what it stands for.
    pub(crate) fn resolved(self, has_template: bool) -> Self {
        match self {
            Prompt::Text(text) if has_template => vec![Message::user(&text)].into(),
            Prompt::WithMedia { prompt, media } if has_template => match *prompt {
                Prompt::Text(text) => vec![Message::with_media(media, &text)].into(),
                prompt => Prompt::WithMedia { prompt: Box::new(prompt), media },
            },
            prompt => prompt.raw(),
        }
    }

    /// The prompt with [`Prompt::Text`] replaced by raw text.
    pub(crate) fn raw(self) -> Self {
        match self {
            Prompt::Text(text) => Prompt::Raw(text),
            Prompt::WithMedia { prompt, media } => {
                Prompt::WithMedia { prompt: Box::new(prompt.raw()), media }
            }
            prompt => prompt,
        }
    }

    /// The prompt without its pictures, and all pictures in their order.
    pub(crate) fn split(&self) -> (&Prompt, Vec<&Attachment>) {
        match self {
            Prompt::WithMedia { prompt, media } => {
                let (prompt, own) = prompt.split();
                (prompt, own.into_iter().chain(media).collect())
            }
            Prompt::Chat(messages, _) => {
                let parts = messages.iter().flat_map(Message::parts);
                (self, parts.filter_map(|part| part.media.as_ref()).collect())
            }
            prompt => (prompt, Vec::new()),
        }
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt::Text(text.into())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Prompt::Text(text)
    }
}

impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Prompt::Chat(messages, TemplateOptions::default())
    }
}

impl From<Message> for Prompt {
    fn from(message: Message) -> Self {
        vec![message].into()
    }
}
