//! One error for the whole core. Every variant names the file, tensor or field that is at fault.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Alias for a `Result` whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between a checkpoint on disk and a streamed token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the checkpoint could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A JSON file does not say what it must.
    #[error("{file}: {}{reason}", Field(field))]
    Config {
        /// The file, such as `config.json`.
        file: String,
        /// The path of the field, such as `rope_scaling.factor`; empty for the whole file.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No family reads this `model_type`.
    #[error("model_type `{model_type}` is not supported{}", Nearest(nearest))]
    UnknownModelType {
        /// What the config says.
        model_type: String,
        /// Supported types that are spelt alike, best first.
        nearest: Vec<&'static str>,
    },
    /// The checkpoint wants code of its own to be run, which this library never does.
    #[error("config.json: model_file `{0}` asks to run code from the checkpoint, which is refused")]
    CustomCode(String),
    /// A file of weights is damaged, or is not what the index promises.
    #[error("{}: {reason}", file.display())]
    Checkpoint {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The model needs a tensor that no file holds.
    #[error("tensor `{0}` is not in the checkpoint")]
    MissingTensor(String),
    /// A tensor has another shape than the config promises.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its shape in the file.
        found: Vec<i32>,
        /// The shape that follows from the config.
        expected: Vec<i32>,
    },
    /// The checkpoint holds tensors that the model does not use: it is not this model.
    #[error("the checkpoint holds {} that the model does not use: {}", Count(.0.len(), "tensor"), List(.0))]
    UnusedTensors(Vec<String>),
    /// An adapter does not belong to the model, or is incomplete.
    #[error("{}: {reason}", file.display())]
    Adapter {
        /// Its file of tensors.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is quantized in a way that is not supported, or that contradicts the config.
    #[error("quantization of `{path}`: {reason}")]
    Quantization {
        /// The path of the layer, or the config field.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer cannot be read, or refuses an input.
    #[error("{file}: {reason}")]
    Tokenizer {
        /// The file, such as `tokenizer.json`.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Messages were given to a checkpoint that has no chat template.
    #[error("the checkpoint has no chat template: give a plain prompt, or set one")]
    NoChatTemplate,
    /// The chat template does not parse, or raised an error for these messages.
    #[error("chat template{}: {reason}", Line(*line))]
    ChatTemplate {
        /// The line of the template, counted from 1.
        line: Option<usize>,
        /// What it says.
        reason: String,
    },
    /// A message has a role that the chat template passes over.
    #[error("the chat template leaves out messages of the role `{0}`")]
    UnknownRole(String),
    /// A message has a part, such as an image, that the model does not take.
    #[error("message {message} has a part of type `{kind}`, which the model does not take")]
    UnsupportedPart {
        /// Which message, counted from 0.
        message: usize,
        /// The `type` of the part.
        kind: String,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A token id that the model has no embedding for.
    #[error("token {id} is outside the vocabulary of {vocabulary}")]
    TokenOutOfVocabulary {
        /// The id.
        id: u32,
        /// How many tokens the model knows.
        vocabulary: u32,
    },
    /// The prompt does not fit the model's context.
    #[error("the prompt has {tokens} tokens, the context holds {limit}")]
    ContextOverflow {
        /// Length of the prompt.
        tokens: usize,
        /// Length of the context.
        limit: usize,
    },
    /// A saved cache is damaged, or of another model or version, or cannot be written.
    #[error("{}: {reason}", file.display())]
    SavedCache {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A model or a sequence takes more memory than the application allows.
    #[error("{needed} bytes are needed beside the {used} in use, and the limit is {limit}")]
    MemoryLimit {
        /// What it takes.
        needed: usize,
        /// What the process takes already.
        used: usize,
        /// What it may take.
        limit: usize,
    },
    /// A generation option has a value that makes no sense.
    #[error("option `{option}`: {reason}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The model computed values that are not numbers; its weights or its precision are at fault.
    #[error("the logits at position {position} are not numbers")]
    NotANumber {
        /// The position in the sequence.
        position: usize,
    },
    /// The constraint of a generation allows no token that the other options leave possible.
    #[error(
        "the constraint allows no token at position {position}; it contradicts itself or an option \
         such as `logit_bias` or `min_tokens`"
    )]
    NothingAllowed {
        /// The position in the sequence.
        position: usize,
    },
    /// The name of a repository, a revision or a file on a hub is none, or leads out of the cache.
    #[error("`{name}` is not a repository, a revision or a file of a hub: {reason}")]
    InvalidName {
        /// What was given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The hub does not have this repository, or does not show it to everyone.
    #[error("{host} has no repository `{repository}`, or only for those whom its token admits")]
    RepositoryNotFound {
        /// The repository, such as `org/name`.
        repository: String,
        /// The hub.
        host: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("`{repository}` has no revision `{revision}`")]
    RevisionNotFound {
        /// The repository.
        repository: String,
        /// The branch, tag or commit.
        revision: String,
    },
    /// The licence must be accepted first, and a token must say by whom.
    #[error("access to `{repository}` must be asked for at {address}, and a token be given")]
    Gated {
        /// The repository.
        repository: String,
        /// Where the licence is accepted.
        address: String,
    },
    /// The hub refuses the token, or asks for one.
    #[error("{host} does not show `{repository}` to the owner of this token, or without one")]
    Unauthorized {
        /// The repository.
        repository: String,
        /// The hub.
        host: String,
    },
    /// No request may be made, and the cache does not hold the model as a whole.
    #[error(
        "`{repository}` at `{revision}` is not complete in the cache, and requests are switched off"
    )]
    Offline {
        /// The repository.
        repository: String,
        /// The branch, tag or commit.
        revision: String,
    },
    /// The cache holds nothing of this name.
    #[error("`{name}` is not in the cache")]
    NotCached {
        /// The repository, with its revision if one was named.
        name: String,
    },
    /// The hub wants fewer requests.
    #[error("{host} wants no more requests{}", After(*after))]
    RateLimited {
        /// The hub.
        host: String,
        /// When it may be asked again, if it says so.
        after: Option<Duration>,
    },
    /// A host cannot be reached, or a connection does not last.
    #[error("{host}: {reason}")]
    Network {
        /// The host.
        host: String,
        /// What happened.
        reason: String,
    },
    /// A host answered with what it should not.
    #[error("{host}: {reason}")]
    Server {
        /// The host.
        host: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// What was fetched is not what the hub announced.
    #[error("{file}: fetched bytes have hash {found}, the hub says {expected}")]
    HashMismatch {
        /// The file in the repository.
        file: String,
        /// The hash that the hub announced.
        expected: String,
        /// The hash of the bytes that came.
        found: String,
    },
    /// The file on the hub became another one while it was fetched.
    #[error("{file}: changed on the hub while it was fetched")]
    Changed {
        /// The file in the repository.
        file: String,
    },
    /// The download does not fit on the disk.
    #[error("{}: {needed} bytes are needed, {free} are free", folder.display())]
    DiskFull {
        /// The cache.
        folder: PathBuf,
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// Somebody cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// The model has been unloaded.
    #[error("the model has been unloaded")]
    Unloaded,
    /// Models cannot run here at all.
    #[error("models cannot run here: {0}")]
    Unavailable(String),
    /// MLX refused an operation.
    #[error("mlx: {0}")]
    Mlx(String),
    /// A bug in this library; the process goes on.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// An error about a field of `config.json`.
    pub fn config(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Config { file: "config.json".into(), field: field.into(), reason: reason.into() }
    }

    /// An error about a file or a folder, for `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Error::Io { path: path.into(), source }
    }

    /// An error about a generation option.
    pub fn option(option: &'static str, reason: impl Into<String>) -> Self {
        Error::Option { option, reason: reason.into() }
    }
}

impl From<mlx_rs::error::Exception> for Error {
    fn from(exception: mlx_rs::error::Exception) -> Self {
        // mlx-c appends where in its own source the exception was caught.
        let what = exception.what();
        Error::Mlx(what.rsplit_once(" at /").map_or(what, |(message, _)| message).to_string())
    }
}

impl From<mlx_rs::error::ConversionError> for Error {
    fn from(error: mlx_rs::error::ConversionError) -> Self {
        match error {
            mlx_rs::error::ConversionError::Exception(exception) => exception.into(),
            error => Error::Internal(error.to_string()),
        }
    }
}

struct Field<'a>(&'a str);
impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "`{}`: ", self.0) }
    }
}

struct Line(Option<usize>);
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, ", line {line}"))
    }
}

struct After(Option<Duration>);
impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.map_or(Ok(()), |after| write!(f, " for {} s", after.as_secs()))
    }
}

struct Nearest<'a>(&'a [&'static str]);
impl fmt::Display for Nearest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; did you mean {}?", self.0.join(", ")) }
    }
}

struct Count(usize, &'static str);
impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {}{}", self.0, self.1, if self.0 == 1 { "" } else { "s" })
    }
}

pub(crate) struct List<'a>(pub &'a [String]);
impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let shown = self.0.len().min(5);
        f.write_str(&self.0[..shown].join(", "))?;
        if shown < self.0.len() { f.write_str(", …") } else { Ok(()) }
    }
}
