//! A session: the KV cache of a conversation. Every request passes the whole prompt, and the session
//! computes only the tokens after the longest prefix that its cache holds.

use crate::{
    api::{
        model::Model,
        preparation::EncodedPrompt,
        prompt::Prompt,
        session_options::{Overflow, SessionOptions},
    },
    engine::{
        Engine, Generation, Request, Turn, alone,
        engine_model::{EngineModel, find},
        prefix_cache::{PrefixCache, Slot},
    },
    error::{Error, Result},
    generate::{Constraint, GenerateOptions},
    text::{Layout, Message, RenderedText, TemplateOptions},
};
use std::{
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// The KV cache of a conversation. Handles are cheap to clone and may be used from any thread.
/// Requests run in the order in which they are made. A session keeps its model in memory; dropping
/// the last handle frees the cache after the running generations.
///
/// The application owns the transcript and passes all of it with each request. The session reuses
/// the longest common prefix, so a new turn, an edited message, a regenerated answer and a branch
/// need no special calls. The first session of a model computes a common prefix, such as a system
/// prompt, for all. Chunks of other lengths sum in another order, so reused and recomputed values may
/// differ in the last bits.
///
/// After a cancellation, a drop or [`Error::MemoryLimit`], the session keeps what was computed. After
/// any other failure it is empty, which works as a new one.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    model: Model,
    place: Place,
    /// The layout of the last conversation.
    layout: Mutex<Option<TokenLayout>>,
}

/// The place of a session among those of its model, which this keeps.
struct Place {
    engine: &'static Engine,
    key: Key,
}

/// What finds a session on the engine's thread.
#[derive(Clone)]
struct Key {
    model: u64,
    id: u64,
    options: SessionOptions,
    used: Arc<AtomicUsize>,
}

impl Key {
    /// The model and the session, which is made when it is wanted first. On the engine's thread.
    fn find(&self) -> Result<(Rc<EngineModel>, Rc<Slot>)> {
        let loaded = find(self.model)?;
        let known = loaded.sessions.borrow().get(&self.id).cloned();
        let slot = match known {
            Some(slot) => slot,
            None => {
                let SessionOptions { checkpoint_bytes, .. } = self.options;
                let empty = loaded.prompt_cache(self.options.plan(), checkpoint_bytes)?;
                let slot = Slot::lasting(empty, self.used.clone());
                loaded.sessions.borrow_mut().insert(self.id, slot.clone());
                slot
            }
        };
        Ok((loaded, slot))
    }
}

impl Place {
    fn new(model: &Model, options: SessionOptions) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let key = Key { model: model.id(), id, options, used: Arc::default() };
        Place { engine: model.engine(), key }
    }

    /// Begins with what another session remembers. On the engine's thread.
    fn fill(self, memory: PrefixCache) -> Result<Self> {
        let slot = Slot::lasting(memory, self.key.used.clone());
        find(self.key.model)?.sessions.borrow_mut().insert(self.key.id, slot);
        Ok(self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let key = self.key.clone();
        self.engine.post_job(move || {
            if let Ok(loaded) = find(key.model) {
                loaded.sessions.borrow_mut().remove(&key.id);
            }
        });
    }
}

impl Session {
    pub(crate) fn new(model: &Model, options: SessionOptions) -> Self {
        Session::at(model.clone(), Place::new(model, options))
    }

    fn at(model: Model, place: Place) -> Self {
        Session(Arc::new(Inner { model, place, layout: Mutex::default() }))
    }

    /// The model of the session.
    pub fn model(&self) -> &Model {
        &self.0.model
    }

    /// The options of the session.
    pub fn options(&self) -> &SessionOptions {
        &self.0.place.key.options
    }

    /// The number of tokens in the KV cache, prompts and answers. With
    /// [`ModelInfo::context`](crate::ModelInfo::context) this shows how full the context is.
    pub fn tokens_used(&self) -> usize {
        self.0.place.key.used.load(Ordering::Relaxed)
    }

    /// Starts a generation with the whole prompt, earlier turns included, and returns its stream of
    /// events. As [`Model::generate`], it renders and tokenizes on the calling thread.
    ///
    /// # Errors
    /// Those of [`Model::generate`]; the session is then unchanged.
    pub fn generate(
        &self,
        prompt: impl Into<Prompt>,
        options: &GenerateOptions,
    ) -> Result<Generation> {
        self.generate_within(prompt.into(), options, None)
    }

    /// As [`Session::generate`], with a constraint on the tokens.
    ///
    /// # Errors
    /// Those of [`Session::generate`]; the stream ends with [`Error::NothingAllowed`] where no token
    /// is possible.
    #[doc(hidden)]
    pub fn generate_within(
        &self,
        prompt: Prompt,
        options: &GenerateOptions,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<Generation> {
        self.0.model.check(options)?;
        let Inner { model, place, .. } = &*self.0;
        let (prompt, encoded, dropped_messages) = self.fit(model.prepare(prompt, options)?)?;
        let marks = self.marks(&prompt, &encoded.tokens);
        let mut answering = model.answering(&prompt, &encoded.tokens, options)?;
        answering.constraint = constraint.or(answering.constraint);
        let request = model.request(encoded, answering, options, self.limit());
        let request = Request { marks, dropped_messages, ..request };
        let key = place.key.clone();
        Ok(request.start(move || key.find()))
    }

    /// An independent session with a copy of the cache, after the earlier requests of this one.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub async fn fork(&self) -> Result<Session> {
        let model = self.0.model.clone();
        let place = Place::new(&model, *self.options());
        let place = self.visit(move |slot| place.fill(slot.prefix_cache.borrow().fork())).await?;
        Ok(Session::at(model, place))
    }

    /// Empties the cache, after the earlier requests of this session.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub async fn clear(&self) -> Result<()> {
        let forget = |slot: &Slot| {
            slot.prefix_cache.borrow_mut().clear();
            slot.publish();
            Ok(())
        };
        self.visit(forget).await
    }

    /// Writes the cache to a `.safetensors` file, after the earlier requests of this session; see
    /// [`Model::restore`]. The file has the latest checkpoints too, at most
    /// [`SessionOptions::checkpoint_bytes`] of them. An existing file is replaced atomically.
    ///
    /// # Errors
    /// [`Error::SavedCache`] when the cache is empty or the file cannot be written.
    pub async fn save(&self, path: impl Into<PathBuf>) -> Result<()> {
        let (path, model) = (path.into(), self.0.model.id());
        self.visit(move |slot| {
            slot.prefix_cache.borrow_mut().save(&path, &find(model)?.fingerprint)
        })
        .await
    }

    pub(crate) async fn restore(
        model: &Model,
        path: PathBuf,
        options: SessionOptions,
    ) -> Result<Self> {
        let place = Place::new(model, options);
        let read = move || {
            let loaded = find(place.key.model)?;
            let mut memory = loaded.prompt_cache(options.plan(), options.checkpoint_bytes)?;
            memory.restore(&path, &loaded.fingerprint)?;
            place.fill(memory)
        };
        let place = model.engine().compute(read).await?;
        Ok(Session::at(model.clone(), place))
    }

    /// Runs a job with exclusive access to the cache.
    async fn visit<T: Send + 'static>(
        &self,
        visit: impl FnOnce(&Slot) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Place { engine, key } = &self.0.place;
        let key = key.clone();
        let begin = move || {
            let (_, slot) = key.find()?;
            let mut visit = Some(visit);
            Ok(move || {
                let Some(_hold) = slot.hold() else { return Ok(None) };
                visit.take().map(|visit| alone(|| visit(&slot))).transpose()
            })
        };
        engine.run_in_turns(Turn::Parked, begin).await
    }

    /// The prompt with as many messages as fit, its tokens, and the number of dropped messages.
    fn fit(&self, prompt: Prompt) -> Result<(Prompt, EncodedPrompt, usize)> {
        let (model, options) = (&self.0.model, self.options());
        let encoded = model.encode(&prompt)?;
        let Some(limit) = self.limit() else { return Ok((prompt, encoded, 0)) };
        let mut fitting = (prompt, encoded, 0);
        if let (Prompt::Chat(messages, template), Overflow::DropOldest { reserve }) =
            (&fitting.0, options.overflow)
            && fitting.1.tokens.len() > limit.saturating_sub(reserve)
        {
            let head = system_messages(messages).len();
            let is_turn = |i: &usize| messages[*i].role == "user";
            let turns: Vec<usize> = (head..messages.len()).filter(is_turn).skip(1).collect();
            let mut shorter = None;
            let (mut low, mut high) = (0, turns.len());
            while low < high {
                let middle = (low + high) / 2;
                let rest = [&messages[..head], &messages[turns[middle]..]].concat();
                let prompt = Prompt::Chat(rest, template.clone());
                let encoded = model.encode(&prompt)?;
                let fits = encoded.tokens.len() <= limit.saturating_sub(reserve);
                if fits || middle + 1 == turns.len() {
                    shorter = Some((prompt, encoded, turns[middle] - head));
                }
                if fits { high = middle } else { low = middle + 1 }
            }
            fitting = shorter.unwrap_or(fitting);
        }
        match fitting.1.tokens.len() {
            tokens if tokens > limit => Err(Error::ContextOverflow { tokens, limit }),
            _ => Ok(fitting),
        }
    }

    /// The maximum number of tokens in the cache.
    fn limit(&self) -> Option<usize> {
        self.options().limit(self.0.model.info().context)
    }

    /// The positions of the prompt at which a cache that cannot rewind to every position keeps a
    /// checkpoint: the end of what all conversations with this system prompt share, and the beginning
    /// of the answer's header, after which a template may render the answer differently later.
    fn marks(&self, prompt: &Prompt, tokens: &[u32]) -> Vec<usize> {
        let (model, options) = (&self.0.model, self.options());
        if model.rewinds() && !matches!(options.overflow, Overflow::Ring(_)) {
            return Vec::new();
        }
        let last = tokens.len() - 1;
        let Prompt::Chat(messages, options) = prompt else { return vec![last] };
        let mut cached = self.0.layout.lock().unwrap_or_else(PoisonError::into_inner);
        let opening = system_messages(messages);
        if !cached.as_ref().is_some_and(|layout| layout.is_of(opening, options)) {
            *cached = match TokenLayout::of(model, opening, options) {
                Ok(layout) => Some(layout),
                Err(error) => {
                    tracing::debug!(kind = ?error.kind(), "the chat template has no layout");
                    None
                }
            };
        }
        match &*cached {
            Some(layout) => layout.marks(tokens),
            None => vec![last],
        }
    }
}

/// The layout of a chat template in tokens, for conversations with the same opening and options.
struct TokenLayout {
    opening: Vec<Message>,
    options: TemplateOptions,
    /// The tokens that all these conversations share; empty without a system prompt and tools.
    prefix: Vec<u32>,
    /// The header of the answer.
    header: Vec<u32>,
}

impl TokenLayout {
    fn of(model: &Model, opening: &[Message], options: &TemplateOptions) -> Result<Self> {
        let Layout { prefix, header } = model.layout(opening, options)?;
        let is_shared = !opening.is_empty() || !options.tools.is_empty();
        let prefix = if is_shared { prefix } else { RenderedText::default() };
        let encode = |text| model.template()?.encode_text(model.tokenizer()?, text);
        Ok(TokenLayout {
            opening: opening.to_vec(),
            options: options.clone(),
            prefix: encode(&prefix)?,
            header: encode(&header)?,
        })
    }

    fn is_of(&self, opening: &[Message], options: &TemplateOptions) -> bool {
        self.opening == opening && self.options == *options
    }

    /// The end of the prefix and the beginning of the header in the tokens of a prompt.
    fn marks(&self, tokens: &[u32]) -> Vec<usize> {
        let last = tokens.len() - 1;
        let shared = self.prefix.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let header = tokens.strip_suffix(&self.header[..]).map_or(last, <[u32]>::len).min(last);
        (0 < shared && shared <= last).then_some(shared).into_iter().chain([header]).collect()
    }
}

/// The system messages at the beginning of a conversation.
fn system_messages(messages: &[Message]) -> &[Message] {
    let is_system = |message: &Message| ["system", "developer"].contains(&&*message.role);
    let end = messages.iter().position(|message| !is_system(message));
    &messages[..end.unwrap_or(messages.len())]
}

impl Model {
    /// A session with an empty KV cache.
    pub fn session(&self, options: SessionOptions) -> Session {
        Session::new(self, options)
    }

    /// The most precise cache options with which `tokens` tokens fit in `bytes`: full precision, then
    /// 8 bit, then 4 bit, then a ring buffer. The remainder is the budget for checkpoints.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`] when no options fit.
    pub async fn options_within(&self, tokens: usize, bytes: usize) -> Result<SessionOptions> {
        self.compute(move |loaded| SessionOptions::within(&**loaded.language()?, tokens, bytes))
            .await
    }

    /// Restores a session that [`Session::save`] wrote, also in another process. Generations continue
    /// bit for bit as in the saved session, and the last message can be edited. The options must be
    /// those of the saved session.
    ///
    /// # Errors
    /// [`Error::SavedCache`] when the file is damaged, or was saved by another model, another version
    /// of this library or under other options.
    pub async fn restore(
        &self,
        path: impl Into<PathBuf>,
        options: SessionOptions,
    ) -> Result<Session> {
        Session::restore(self, path.into(), options).await
    }
}
