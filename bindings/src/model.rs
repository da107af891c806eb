//! A model in memory.

use crate::{
    error::{ErrorKind, MynahError},
    parameters::GenerationParameters,
    prompt::{ChatMessage, ChatTemplateOptions, Prompt, core_messages},
    session::{Session, SessionOptions},
    stream::GenerationStream,
};
use std::sync::Arc;

/// Facts about a loaded model.
#[derive(Clone, Debug, uniffi::Record)]
pub struct ModelInfo {
    /// The `model_type` of the config.
    pub model_type: String,
    /// The longest sequence, in tokens, if the config or the load options limit it.
    pub context: Option<u64>,
    /// The number of token embeddings.
    pub vocabulary: u32,
    /// The end-of-sequence tokens.
    pub end_tokens: Vec<u32>,
}

/// The memory that one model uses, in bytes.
#[derive(Clone, Copy, Debug, uniffi::Record)]
pub struct ModelMemory {
    /// The weights.
    pub weights: u64,
    /// The KV caches of its sessions.
    pub caches: u64,
}

/// A language model in memory. The last handle that is dropped frees it.
#[derive(uniffi::Object)]
pub struct Model(pub(crate) mynah::Model);

#[uniffi::export]
impl Model {
    /// Facts about the model.
    pub fn info(&self) -> ModelInfo {
        let info = self.0.info();
        ModelInfo {
            model_type: info.model_type.clone(),
            context: info.context.map(|context| context as u64),
            vocabulary: info.vocabulary,
            end_tokens: self.0.end_tokens().to_vec(),
        }
    }

    /// The memory of this model, without other models and without intermediate results.
    ///
    /// # Errors
    /// When the model has been unloaded.
    pub async fn memory(&self) -> Result<ModelMemory, MynahError> {
        let mynah::ModelMemory { weights, caches } = self.0.memory().await?;
        Ok(ModelMemory { weights: weights as u64, caches: caches as u64 })
    }

    /// The parameters that the checkpoint recommends. A field without a value means "none".
    pub fn default_parameters(&self) -> GenerationParameters {
        self.0.default_options().into()
    }

    /// Starts a generation without a session.
    ///
    /// # Errors
    /// When the prompt or a parameter is invalid.
    pub fn generate(
        &self,
        prompt: Prompt,
        parameters: GenerationParameters,
    ) -> Result<Arc<GenerationStream>, MynahError> {
        let options = parameters.over(self.0.default_options());
        Ok(GenerationStream::new(self.0.generate(mynah::Prompt::try_from(prompt)?, &options)?))
    }

    /// The tokens of a text, on request with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// When the model has no tokenizer.
    pub fn encode(&self, text: String, special_tokens: bool) -> Result<Vec<u32>, MynahError> {
        Ok(self.0.tokenizer()?.encode(&text, special_tokens)?)
    }

    /// The text of tokens, on request without the text of special tokens.
    ///
    /// # Errors
    /// When the model has no tokenizer.
    pub fn decode(
        &self,
        tokens: Vec<u32>,
        skip_special_tokens: bool,
    ) -> Result<String, MynahError> {
        Ok(self.0.tokenizer()?.decode(&tokens, skip_special_tokens)?)
    }

    /// The tokens of a prompt.
    ///
    /// # Errors
    /// When the prompt is invalid or longer than the context.
    pub fn tokens(&self, prompt: Prompt) -> Result<Vec<u32>, MynahError> {
        Ok(self.0.tokens(mynah::Prompt::try_from(prompt)?)?)
    }

    /// The text that the chat template makes of messages.
    ///
    /// # Errors
    /// When the model has no chat template, or the template refuses the messages.
    pub fn render_chat_template(
        &self,
        messages: Vec<ChatMessage>,
        options: ChatTemplateOptions,
    ) -> Result<String, MynahError> {
        Ok(self.0.render(&core_messages(messages)?, &options.try_into()?)?)
    }

    /// The logits of the next token: one for each token of the vocabulary.
    ///
    /// # Errors
    /// When a token is outside the vocabulary or the tokens exceed the context.
    pub async fn next_logits(&self, tokens: Vec<u32>) -> Result<Vec<f32>, MynahError> {
        Ok(self.0.next_logits(mynah::Prompt::Tokens(tokens)).await?)
    }

    /// A session with an empty KV cache.
    ///
    /// # Errors
    /// When an option is invalid.
    pub fn session(&self, options: SessionOptions) -> Result<Arc<Session>, MynahError> {
        let options = options.over(self.0.session_options())?;
        Ok(Arc::new(Session(self.0.session(options))))
    }

    /// A session with the KV cache of a file. A file that cannot be used, because it is damaged or
    /// another model, version or option wrote it, never loses a conversation: the session is then
    /// empty, a warning is logged, and the next request computes its whole prompt.
    ///
    /// # Errors
    /// When an option is invalid, the caller cancels, or the model has been unloaded.
    pub async fn restore_session(
        &self,
        path: String,
        options: SessionOptions,
    ) -> Result<Arc<Session>, MynahError> {
        let options = options.over(self.0.session_options())?;
        let session = match self.0.restore(&path, options).await {
            Ok(session) => session,
            Err(error) => match error.kind().into() {
                ErrorKind::Cancelled | ErrorKind::Unloaded | ErrorKind::Unavailable => {
                    return Err(error.into());
                }
                _ => {
                    tracing::warn!(path, %error, "the saved KV cache is not usable");
                    self.0.session(options)
                }
            },
        };
        Ok(Arc::new(Session(session)))
    }

    /// Frees the memory of the model even if other handles exist. Running generations end with an
    /// error, and later calls fail, except those that need only the tokenizer.
    ///
    /// # Errors
    /// When the device fails.
    pub async fn unload(&self) -> Result<(), MynahError> {
        Ok(self.0.unload().await?)
    }
}

/// The supported values of `model_type`.
#[uniffi::export]
pub fn supported_model_types() -> Vec<String> {
    let types = mynah::model_types().flatten();
    types.map(ToString::to_string).collect()
}
