//! A model in memory.

use crate::{
    error::MynahError,
    parameters::GenerationParameters,
    prompt::{Prompt, TemplateOptions},
    session::{Session, SessionOptions},
    stream::GenerationStream,
};
use std::sync::Arc;

/// What is known of a model.
#[derive(Clone, Debug, uniffi::Record)]
pub struct ModelInfo {
    /// The `model_type` of its config.
    pub model_type: String,
    /// The longest sequence that it was made or loaded for, in tokens, if it says so.
    pub context: Option<u64>,
    /// How many tokens it has embeddings for.
    pub vocabulary: u32,
    /// The tokens that end its text.
    pub end_tokens: Vec<u32>,
}

/// What one model takes, in bytes.
#[derive(Clone, Copy, Debug, uniffi::Record)]
pub struct ModelMemory {
    /// Its weights.
    pub weights: u64,
    /// What its sessions remember.
    pub caches: u64,
}

/// A language model in memory. The last handle that is dropped frees it.
#[derive(uniffi::Object)]
pub struct Model(pub(crate) mynah::Model);

#[uniffi::export]
impl Model {
    /// What is known of it.
    pub fn info(&self) -> ModelInfo {
        let info = self.0.info();
        ModelInfo {
            model_type: info.model_type.clone(),
            context: info.context.map(|context| context as u64),
            vocabulary: info.vocabulary,
            end_tokens: self.0.end_tokens().to_vec(),
        }
    }

    /// What it takes now, apart from other models and from what is being computed.
    ///
    /// # Errors
    /// When it has been unloaded.
    pub async fn memory(&self) -> Result<ModelMemory, MynahError> {
        let mynah::ModelMemory { weights, caches } = self.0.memory().await?;
        Ok(ModelMemory { weights: weights as u64, caches: caches as u64 })
    }

    /// What its checkpoint recommends; every field has a value but those that mean "none".
    pub fn default_parameters(&self) -> GenerationParameters {
        self.0.default_options().into()
    }

    /// Starts to continue a prompt, from nothing.
    ///
    /// # Errors
    /// When the prompt or the parameters make no sense to it.
    pub fn generate(
        &self,
        prompt: Prompt,
        parameters: GenerationParameters,
    ) -> Result<Arc<GenerationStream>, MynahError> {
        let options = parameters.over(self.0.default_options());
        Ok(GenerationStream::new(self.0.generate(mynah::Prompt::try_from(prompt)?, &options)?))
    }

    /// The tokens of a text; with those that the tokenizer puts around it, if wanted.
    ///
    /// # Errors
    /// When it has no tokenizer.
    pub fn encode(&self, text: String, special_tokens: bool) -> Result<Vec<u32>, MynahError> {
        Ok(self.0.tokenizer()?.encode(&text, special_tokens)?)
    }

    /// The text of tokens; without that of special ones, if wanted.
    ///
    /// # Errors
    /// When it has no tokenizer.
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
    /// When the prompt makes no sense to it or is too long.
    pub fn tokens(&self, prompt: Prompt) -> Result<Vec<u32>, MynahError> {
        Ok(self.0.tokens(mynah::Prompt::try_from(prompt)?)?)
    }

    /// A conversation as the text that it sees.
    ///
    /// # Errors
    /// When it has no chat template, or that does not take these messages.
    pub fn render(
        &self,
        messages: Vec<crate::prompt::Message>,
        options: TemplateOptions,
    ) -> Result<String, MynahError> {
        let messages: Vec<_> = messages.into_iter().map(mynah::Message::from).collect();
        Ok(self.0.render(&messages, &options.try_into()?)?)
    }

    /// The logits of the token that comes after others, as many as its vocabulary has tokens.
    ///
    /// # Errors
    /// When the tokens make no sense to it or are too many.
    pub async fn next_logits(&self, tokens: Vec<u32>) -> Result<Vec<f32>, MynahError> {
        Ok(self.0.next_logits(mynah::Prompt::Tokens(tokens)).await?)
    }

    /// The memory of a conversation, empty.
    ///
    /// # Errors
    /// When the options make no sense.
    pub fn session(&self, options: SessionOptions) -> Result<Arc<Session>, MynahError> {
        let options = options.over(self.0.session_options())?;
        Ok(Arc::new(Session(self.0.session(options))))
    }

    /// A session that was saved under the same options.
    ///
    /// # Errors
    /// When the file is damaged, or was saved by another model or under other options.
    pub async fn restore_session(
        &self,
        path: String,
        options: SessionOptions,
    ) -> Result<Arc<Session>, MynahError> {
        let options = options.over(self.0.session_options())?;
        Ok(Arc::new(Session(self.0.restore(path, options).await?)))
    }

    /// Frees its memory, whoever still has a handle. Generations that run end with an error, and so
    /// does whatever is asked of it from then on, but for what its tokenizer answers.
    ///
    /// # Errors
    /// When the device has failed.
    pub async fn unload(&self) -> Result<(), MynahError> {
        Ok(self.0.unload().await?)
    }
}

/// The values of `model_type` that load.
#[uniffi::export]
pub fn supported_model_types() -> Vec<String> {
    let types = mynah::model_types().flatten();
    types.map(ToString::to_string).collect()
}
