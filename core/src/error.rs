//! One error for the whole core. A message says what is wrong, where (the model, file, tensor or
//! field), and what to do about it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Alias for a `Result` whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between a checkpoint on disk and a streamed token.
///
/// [`Error::kind`] groups the variants by what a caller can do about them.
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
    /// An error of the files of one model, with the model's name in front.
    #[error("{model}: {error}")]
    Model {
        /// The repository or the folder.
        model: String,
        /// What is wrong with it; see [`Error::cause`].
        error: Box<Error>,
    },
    /// A field of a JSON file is missing, has the wrong type, or contradicts other fields.
    #[error("{file}: {}{reason}", Field(field))]
    Config {
        /// The file, such as `config.json`.
        file: String,
        /// The path of the field, such as `rope_scaling.factor`; empty for the whole file.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A field of a JSON file has a valid value that this library does not support.
    #[error("{file}: {}{reason}", Field(field))]
    Unsupported {
        /// The file, such as `config.json`.
        file: String,
        /// The path of the field, such as `rope_scaling.rope_type`.
        field: String,
        /// The value, and what is supported instead.
        reason: String,
    },
    /// No family reads this `model_type`.
    #[error("model type `{model_type}` is not supported; {}", Nearest(nearest))]
    UnknownModelType {
        /// The `model_type` of the config.
        model_type: String,
        /// Supported types with a similar spelling, best first.
        nearest: Vec<&'static str>,
    },
    /// The `model_type` belongs to a kind of model that is not supported yet.
    #[error(
        "{modality} models of type `{model_type}` are not supported yet; \
         `mynah families` lists the supported types"
    )]
    UnsupportedModality {
        /// The `model_type` of the config.
        model_type: String,
        /// The kind of model, such as `vision`.
        modality: &'static str,
    },
    /// The checkpoint asks to run code of its own, which this library never does.
    #[error(
        "config.json: `model_file`: the checkpoint needs its own code (`{0}`), which is never run; \
         choose a checkpoint without custom code"
    )]
    CustomCode(String),
    /// A file of weights is damaged, or does not match the index.
    #[error("{}: {reason}", file.display())]
    Checkpoint {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No file of the checkpoint holds a tensor that the model needs.
    #[error("tensor `{0}` is not in the checkpoint")]
    MissingTensor(String),
    /// The shape of a tensor contradicts the config.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its shape in the file.
        found: Vec<i32>,
        /// The shape that follows from the config.
        expected: Vec<i32>,
    },
    /// The checkpoint holds tensors that the model does not use, so the config is of another model.
    #[error("the checkpoint holds {} that the model does not use: {}", Count(.0.len(), "tensor"), List(.0))]
    UnusedTensors(Vec<String>),
    /// An adapter is incomplete or was trained for another model.
    #[error("{}: {reason}", file.display())]
    Adapter {
        /// The file with its tensors.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The quantization of a tensor is not supported, or contradicts the config.
    #[error("quantization of `{path}`: {reason}")]
    Quantization {
        /// The path of the layer, or the config field.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the tokenizer is damaged or of an unknown format.
    #[error("{file}: {reason}")]
    Tokenizer {
        /// The file, such as `tokenizer.json`.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A request needs a tokenizer, and the checkpoint has none.
    #[error(
        "the checkpoint has no tokenizer.json and no other tokenizer; pass token ids, or load the \
         model with the tokenizer of another repository"
    )]
    NoTokenizer,
    /// Messages were given to a checkpoint that has no chat template.
    #[error(
        "the checkpoint has no chat template; pass raw text, or load the model with a chat template"
    )]
    NoChatTemplate,
    /// The chat template does not parse, or raises an error for these messages.
    #[error("chat template{}: {reason}", Line(*line))]
    ChatTemplate {
        /// The line of the template, counted from 1.
        line: Option<usize>,
        /// The message of the template or of its parser.
        reason: String,
    },
    /// A message has a role that the chat template ignores.
    #[error("the chat template ignores messages with the role `{0}`; use a role that it knows")]
    UnknownRole(String),
    /// A message has a part, such as an image, that the model does not accept.
    #[error("message {message} has a part of type `{kind}`, which the model does not accept")]
    UnsupportedPart {
        /// The index of the message, from 0.
        message: usize,
        /// The `type` of the part.
        kind: String,
    },
    /// A prompt has media, and the model reads text only.
    #[error(
        "the model reads text only, and the prompt has {media} pictures, clips or sounds; leave them out or choose a model that reads them"
    )]
    TextOnly {
        /// How many of them.
        media: usize,
    },
    /// A prompt has more or fewer placeholders than its pictures need.
    #[error(
        "the prompt has {found} image tokens, and its pictures need {needed}; write one image marker for each picture, in their order"
    )]
    Placeholders {
        /// How many the prompt has.
        found: usize,
        /// How many the features of its pictures are.
        needed: usize,
    },
    /// The model is of another kind than the one that was asked for.
    #[error(
        "`{model_type}` is {found}, not {expected}; load it as what it is, or choose another model"
    )]
    ModelKind {
        /// The `model_type` of the config, or the name of the family where it has none.
        model_type: String,
        /// What the model is, such as "a transcriber (speech to text)".
        found: &'static str,
        /// What was asked for, such as "a language model".
        expected: &'static str,
    },
    /// An audio file or samples of audio cannot be read or written.
    #[error("{name}: {reason}")]
    Audio {
        /// The file, or what the audio is.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The prompt has no tokens.
    #[error("the prompt is empty; a model needs at least one token to continue")]
    EmptyPrompt,
    /// A text to be embedded or ordered has nothing in it.
    #[error("text {index} is empty; leave it out")]
    EmptyText {
        /// Its place among the texts, from 0; that of a query is 0, that of its first document 1.
        index: usize,
    },
    /// A token id that the model has no embedding for.
    #[error("token {id} is outside the vocabulary of {vocabulary} tokens")]
    TokenOutOfVocabulary {
        /// The id.
        id: u32,
        /// The size of the model's vocabulary.
        vocabulary: u32,
    },
    /// The prompt does not fit the model's context.
    #[error(
        "the prompt has {tokens} tokens, but the context holds {limit}; shorten the prompt or \
         leave out old messages"
    )]
    ContextOverflow {
        /// Length of the prompt.
        tokens: usize,
        /// Length of the context.
        limit: usize,
    },
    /// A saved cache is damaged, belongs to another model or version, or cannot be written.
    #[error("{}: {reason}", file.display())]
    SavedCache {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A model or a sequence needs more memory than the application allows.
    #[error(
        "not enough memory: {} more are needed, and {} of the allowed {} are in use; choose a \
         smaller or more quantized model, or a shorter context",
        Size(*needed as u64), Size(*used as u64), Size(*limit as u64)
    )]
    MemoryLimit {
        /// The bytes that are missing.
        needed: usize,
        /// The bytes in use.
        used: usize,
        /// The bytes that the process may use.
        limit: usize,
    },
    /// The device cannot allocate more memory.
    #[error(
        "not enough memory: {0}; unload a model, or choose a smaller or more quantized model or a \
         shorter context"
    )]
    DeviceMemory(String),
    /// An option has a value outside its range.
    #[error("option `{option}`: {reason}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The grammar of an answer or of a call cannot be enforced.
    #[error("the {grammar} is refused: {reason}")]
    Grammar {
        /// What it is, such as a JSON schema.
        grammar: &'static str,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// A tool cannot be offered to a model.
    #[error("tool `{name}` {reason}")]
    Tool {
        /// The name of the tool.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Tools were given to a checkpoint whose chat template does not tell the model about them.
    #[error(
        "the chat template of the checkpoint knows no tools; choose a model that calls tools, or load \
         this one with a chat template that does"
    )]
    NoTools,
    /// The model computed values that are not numbers.
    #[error(
        "the logits at position {position} are not numbers; the weights are damaged, or the model \
         needs a higher precision"
    )]
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
    /// The name of a repository, a revision or a file is not valid, or leads out of the cache.
    #[error("`{name}` is not a repository, a revision or a file of a hub: {reason}")]
    InvalidName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The hub has no such repository, or it is private.
    #[error(
        "`{repository}` was not found on {host}; if it is private, pass an access token that may \
         read it"
    )]
    RepositoryNotFound {
        /// The repository, such as `org/name`.
        repository: String,
        /// The hub.
        host: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("`{repository}` has no revision `{revision}`; name a branch, a tag or a commit")]
    RevisionNotFound {
        /// The repository.
        repository: String,
        /// The branch, tag or commit.
        revision: String,
    },
    /// The repository is gated: its licence must be accepted first.
    #[error("`{repository}` is gated: accept its licence at {address} and pass your access token")]
    Gated {
        /// The repository.
        repository: String,
        /// Where the licence is accepted.
        address: String,
    },
    /// The hub refuses the access token, or requires one.
    #[error(
        "{host} denied access to `{repository}`: the access token is missing, expired or lacks \
         permission"
    )]
    Unauthorized {
        /// The repository.
        repository: String,
        /// The hub.
        host: String,
    },
    /// Offline mode is on, and the cache does not hold the whole model.
    #[error(
        "`{repository}@{revision}` is not fully downloaded and offline mode is on; download it \
         first or allow network access"
    )]
    Offline {
        /// The repository.
        repository: String,
        /// The branch, tag or commit.
        revision: String,
    },
    /// The cache holds no such repository or revision.
    #[error("`{name}` is not in the cache; `mynah models` lists its models")]
    NotCached {
        /// The repository, with its revision if one was named.
        name: String,
    },
    /// The hub limits the rate of requests.
    #[error("{host} limits requests; try again {}", After(*after))]
    RateLimited {
        /// The hub.
        host: String,
        /// The time to wait, if the hub names one.
        after: Option<Duration>,
    },
    /// A host cannot be reached, or the connection broke.
    #[error("cannot reach {host} ({reason}); check the connection or use offline mode")]
    Network {
        /// The host.
        host: String,
        /// What failed, such as `DNS`.
        reason: String,
    },
    /// A host gave an invalid or unexpected answer.
    #[error("{host}: {reason}")]
    Server {
        /// The host.
        host: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The downloaded bytes are not those that the hub announced.
    #[error(
        "{file}: the downloaded bytes have hash {found}, but the hub announced {expected}; \
         download it again"
    )]
    HashMismatch {
        /// The file in the repository.
        file: String,
        /// The hash that the hub announced.
        expected: String,
        /// The hash of the downloaded bytes.
        found: String,
    },
    /// The file changed on the hub during the download.
    #[error("{file}: changed on the hub during the download; download it again")]
    Changed {
        /// The file in the repository.
        file: String,
    },
    /// The download does not fit on the disk.
    #[error(
        "{}: not enough disk space: {} are needed and {} are free; make room or move the cache",
        folder.display(), Size(*needed), Size(*free)
    )]
    DiskFull {
        /// The folder of the cache.
        folder: PathBuf,
        /// The bytes still to be written.
        needed: u64,
        /// The free bytes.
        free: u64,
    },
    /// A picture or a clip cannot be read.
    #[error("{reason}")]
    Image {
        /// Which one, what is wrong with it, and what to do.
        reason: String,
    },
    /// A prompt has more or fewer pictures and clips than places for them.
    #[error(
        "the prompt has {} for {}; write `{marker}` once for each of them, or pass as many as it has",
        Count(*markers, "place"), Count(*media, "picture or clip")
    )]
    MediaCount {
        /// The places in the prompt.
        markers: usize,
        /// The pictures and clips that the prompt came with.
        media: usize,
        /// What marks a place.
        marker: String,
    },
    /// The application cancelled the operation.
    #[error("cancelled")]
    Cancelled,
    /// The model has been unloaded.
    #[error("the model has been unloaded; load it again")]
    Unloaded,
    /// MLX cannot run on this machine.
    #[error("models cannot run here: {0}")]
    Unavailable(String),
    /// The device failed while it computed. What it computed is discarded.
    #[error(
        "the device failed: {0}; repeat the request, and restart the program if it fails again"
    )]
    Device(String),
    /// MLX refused an operation.
    #[error("mlx: {0}")]
    Mlx(String),
    /// A bug in this library. The process continues.
    #[error("internal error: {0}")]
    Internal(String),
}

/// What a caller can do about an error. A match on kinds needs no wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No such model, revision or file: check the name.
    NotFound,
    /// A licence must be accepted, an access token is needed, or a file may not be read.
    AccessDenied,
    /// A host cannot be reached or refuses to answer now: try again later.
    Network,
    /// Offline mode is on, and the model is not on the disk: download it first.
    Offline,
    /// The disk is full: make room.
    DiskFull,
    /// A file is damaged: download or save it again.
    Damaged,
    /// This library does not run such a model: choose another one.
    Unsupported,
    /// The memory does not suffice: unload a model, or choose a smaller one.
    OutOfMemory,
    /// The prompt is longer than the context: shorten it.
    ContextOverflow,
    /// The model does not accept this prompt or option: correct the request.
    InvalidRequest,
    /// The application cancelled the operation.
    Cancelled,
    /// The model has been unloaded: load it again.
    Unloaded,
    /// MLX cannot run on this machine.
    Unavailable,
    /// The device, this library or a callback of the application failed.
    Internal,
}

impl Error {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Model { error, .. } => error.kind(),
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::PermissionDenied => ErrorKind::AccessDenied,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
                _ => ErrorKind::Damaged,
            },
            Error::InvalidName { .. }
            | Error::RepositoryNotFound { .. }
            | Error::RevisionNotFound { .. }
            | Error::NotCached { .. } => ErrorKind::NotFound,
            Error::Gated { .. } | Error::Unauthorized { .. } => ErrorKind::AccessDenied,
            Error::RateLimited { .. }
            | Error::Network { .. }
            | Error::Server { .. }
            | Error::Changed { .. } => ErrorKind::Network,
            Error::Offline { .. } => ErrorKind::Offline,
            Error::DiskFull { .. } => ErrorKind::DiskFull,
            Error::Config { .. }
            | Error::Checkpoint { .. }
            | Error::MissingTensor(_)
            | Error::TensorShape { .. }
            | Error::UnusedTensors(_)
            | Error::Adapter { .. }
            | Error::Tokenizer { .. }
            | Error::SavedCache { .. }
            | Error::Audio { .. }
            | Error::HashMismatch { .. }
            | Error::NotANumber { .. } => ErrorKind::Damaged,
            Error::Unsupported { .. }
            | Error::UnknownModelType { .. }
            | Error::UnsupportedModality { .. }
            | Error::ModelKind { .. }
            | Error::CustomCode(_)
            | Error::Quantization { .. } => ErrorKind::Unsupported,
            Error::MemoryLimit { .. } | Error::DeviceMemory(_) => ErrorKind::OutOfMemory,
            Error::ContextOverflow { .. } => ErrorKind::ContextOverflow,
            Error::NoTokenizer
            | Error::NoChatTemplate
            | Error::ChatTemplate { .. }
            | Error::UnknownRole(_)
            | Error::UnsupportedPart { .. }
            | Error::TextOnly { .. }
            | Error::Image { .. }
            | Error::MediaCount { .. }
            | Error::Placeholders { .. }
            | Error::NothingAllowed { .. }
            | Error::EmptyPrompt
            | Error::EmptyText { .. }
            | Error::TokenOutOfVocabulary { .. }
            | Error::Grammar { .. }
            | Error::Tool { .. }
            | Error::NoTools
            | Error::Option { .. } => ErrorKind::InvalidRequest,
            Error::Cancelled => ErrorKind::Cancelled,
            Error::Unloaded => ErrorKind::Unloaded,
            Error::Unavailable(_) => ErrorKind::Unavailable,
            Error::Device(_) | Error::Mlx(_) | Error::Internal(_) => ErrorKind::Internal,
        }
    }

    /// The error without the name of the model that [`Error::Model`] adds.
    pub fn cause(&self) -> &Error {
        match self {
            Error::Model { error, .. } => error.cause(),
            error => error,
        }
    }

    /// As [`Error::cause`], by value.
    #[must_use]
    pub fn into_cause(self) -> Error {
        match self {
            Error::Model { error, .. } => error.into_cause(),
            error => error,
        }
    }

    /// Adds the name of the model where the message does not say which model or file it is about.
    pub(crate) fn of_model(model: impl fmt::Display) -> impl FnOnce(Self) -> Self {
        move |error| match error {
            Error::Config { .. }
            | Error::Unsupported { .. }
            | Error::UnknownModelType { .. }
            | Error::UnsupportedModality { .. }
            | Error::CustomCode(_)
            | Error::MissingTensor(_)
            | Error::TensorShape { .. }
            | Error::UnusedTensors(_)
            | Error::Quantization { .. }
            | Error::Tokenizer { .. }
            | Error::ChatTemplate { .. } => {
                Error::Model { model: model.to_string(), error: Box::new(error) }
            }
            // A bare file name, as the files of a hub and of this program have.
            Error::Checkpoint { ref file, .. } if file.parent() == Some(Path::new("")) => {
                Error::Model { model: model.to_string(), error: Box::new(error) }
            }
            error => error,
        }
    }

    /// An error about a field of `config.json`.
    pub fn config(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Config { file: "config.json".into(), field: field.into(), reason: reason.into() }
    }

    /// An error about a field of `config.json` with a valid value that is not supported.
    pub fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Unsupported {
            file: "config.json".into(),
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// Renames the field of a [`Error::Config`] or [`Error::Unsupported`].
    #[must_use]
    pub(crate) fn with_field(mut self, rename: impl FnOnce(&str) -> String) -> Self {
        if let Error::Config { field, .. } | Error::Unsupported { field, .. } = &mut self {
            *field = rename(field);
        }
        self
    }

    /// An error about a file or a folder, for `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Error::Io { path: path.into(), source }
    }

    /// A failure of the device, in MLX's words.
    pub(crate) fn device(reason: String) -> Self {
        if is_out_of_memory(&reason) { Error::DeviceMemory(reason) } else { Error::Device(reason) }
    }

    /// An error about an option.
    pub fn option(option: &'static str, reason: impl Into<String>) -> Self {
        Error::Option { option, reason: reason.into() }
    }
}

impl From<mlx_rs::error::Exception> for Error {
    fn from(exception: mlx_rs::error::Exception) -> Self {
        // mlx-c appends where in its own source the exception was caught.
        let what = exception.what();
        let what = what.rsplit_once(" at /").map_or(what, |(message, _)| message).to_string();
        if is_out_of_memory(&what) { Error::DeviceMemory(what) } else { Error::Mlx(what) }
    }
}

/// Whether a message of MLX says that an allocation has failed: on the host, of a buffer of Metal, of a
/// command buffer of Metal, or on CUDA.
fn is_out_of_memory(what: &str) -> bool {
    let phrases = [
        "[metal::malloc]",
        "Unable to allocate",
        "Insufficient Memory",
        "bad_alloc",
        "out of memory",
    ];
    phrases.iter().any(|phrase| what.contains(phrase))
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
        match self.0 {
            Some(after) => write!(f, "in {} s", after.as_secs()),
            None => f.write_str("later"),
        }
    }
}

struct Nearest<'a>(&'a [&'static str]);
impl fmt::Display for Nearest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.0.is_empty() {
            f.write_str("`mynah families` lists the supported types")
        } else {
            write!(f, "did you mean {}?", self.0.join(", "))
        }
    }
}

/// A number of bytes in the unit that people read, with one decimal.
struct Size(u64);
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (unit, name) = match self.0 {
            1_000_000_000.. => (1e9, "GB"),
            100_000.. => (1e6, "MB"),
            _ => (1e3, "kB"),
        };
        write!(f, "{:.1} {name}", self.0 as f64 / unit)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_for_people() {
        let sizes = [0, 99_000, 1_250_000, 999_900_000, 3_221_225_472].map(|n| Size(n).to_string());
        assert_eq!(sizes, ["0.0 kB", "99.0 kB", "1.2 MB", "999.9 MB", "3.2 GB"]);
        let error = Error::MemoryLimit { needed: 3 << 30, used: 1 << 30, limit: 2 << 30 };
        assert!(error.to_string().starts_with("not enough memory: 3.2 GB more are needed"));
    }

    #[test]
    fn failed_allocations_are_out_of_memory() {
        let messages = [
            "[metal::malloc] Attempting to allocate 5 bytes which is greater than the maximum allowed \
             buffer size of 4 bytes.",
            "[metal::malloc] Resource limit (499000) exceeded.",
            "[malloc] Unable to allocate 17179869184 bytes.",
            "[METAL] Command buffer execution failed: Insufficient Memory \
             (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory).",
            "cudaMallocAsync(&data, size, stream) failed: out of memory",
            "std::bad_alloc",
        ];
        for message in messages {
            let exception = mlx_rs::error::Exception::custom(message);
            assert_eq!(Error::from(exception).kind(), ErrorKind::OutOfMemory, "{message}");
            assert_eq!(Error::device(message.into()).kind(), ErrorKind::OutOfMemory, "{message}");
        }
        let refused = "[METAL] Command buffer execution failed: Insufficient Permission (to submit \
                       GPU work from background).";
        assert!(matches!(Error::device(refused.into()), Error::Device(_)));
    }

    #[test]
    fn a_model_is_named_where_the_message_does_not_name_it() {
        let named = |error: Error| Error::of_model("org/name")(error).to_string();
        assert_eq!(
            named(Error::config("rope_scaling", "missing")),
            "org/name: config.json: `rope_scaling`: missing"
        );
        let twice = Error::of_model("org/name")(Error::of_model("inner")(Error::NoChatTemplate));
        assert!(matches!(twice, Error::NoChatTemplate));
        let broken = |file: &str| Error::Checkpoint { file: file.into(), reason: "cut".into() };
        assert_eq!(named(broken("model.safetensors")), "org/name: model.safetensors: cut");
        assert_eq!(named(broken("/a/model.safetensors")), "/a/model.safetensors: cut");
        let error = Error::of_model("org/name")(Error::unsupported("loops", "3 is not supported"));
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(matches!(error.cause(), Error::Unsupported { field, .. } if field == "loops"));
        assert!(matches!(error.into_cause(), Error::Unsupported { .. }));
    }
}
