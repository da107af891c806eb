//! A conversation as the application sees it: every request brings the whole prompt, and what a
//! session remembers of the requests before is not computed again.

use crate::{
    api::{
        model::Model,
        prompt::Prompt,
        session_options::{Overflow, SessionOptions},
    },
    engine::{
        Engine, Generation, Request, Turn,
        engine_model::{EngineModel, find},
        prefix_cache::{PrefixCache, Slot},
    },
    error::{Error, Result},
    generate::GenerateOptions,
    text::{Message, TemplateOptions},
};
use std::{
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// The memory of a conversation. Handles are cheap to clone and may be used from any thread;
/// requests are answered in the order in which they are made. A session keeps its model; the last
/// handle that is dropped frees the memory, once the generations that it started are over.
///
/// The application owns the transcript and brings it whole each time. The session finds out how
/// much of it is what it remembers: a new turn, an edited message, an answer that is asked for
/// again and a branch are all the same to it. What the sessions of a model have in common, such as
/// a system prompt, the first of them computes for all. Passes of other lengths add in another
/// order, so that what was reused may differ from what is computed anew in the last bits.
///
/// What was computed until a generation is cancelled, dropped or refused more memory stays. A
/// computation that fails otherwise leaves an empty session, which is as good as a new one.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    model: Model,
    place: Place,
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
        let place = Place::new(model, options);
        Session(Arc::new(Inner { model: model.clone(), place }))
    }

    /// The model that it talks to.
    pub fn model(&self) -> &Model {
        &self.0.model
    }

    /// How it remembers.
    pub fn options(&self) -> &SessionOptions {
        &self.0.place.key.options
    }

    /// How many tokens it remembers at the moment, prompts and answers; against
    /// [`ModelInfo::context`](crate::api::model::ModelInfo) this tells how full the context is.
    pub fn tokens_used(&self) -> usize {
        self.0.place.key.used.load(Ordering::Relaxed)
    }

    /// Starts to continue a prompt, which comes whole: with everything that was said before. The
    /// stream yields progress, tokens, and a summary last.
    ///
    /// # Errors
    /// Those of [`Model::generate`]. The session is then as it was before.
    pub fn generate(
        &self,
        prompt: impl Into<Prompt>,
        options: &GenerateOptions,
    ) -> Result<Generation> {
        self.0.model.check(options)?;
        let Inner { model, place, .. } = &*self.0;
        let (prompt, tokens, dropped_messages) = self.fit(prompt.into())?;
        let marks = self.marks(&prompt, &tokens);
        let request = model.request(tokens, options, self.limit());
        let request = Request { marks, dropped_messages, ..request };
        let key = place.key.clone();
        Ok(request.start(move || key.find()))
    }

    /// A session of its own that remembers the same, once what was asked of this one is done.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub async fn fork(&self) -> Result<Session> {
        let model = self.0.model.clone();
        let place = Place::new(&model, *self.options());
        let place = self.visit(move |slot| place.fill(slot.prefix_cache.borrow().fork())).await?;
        Ok(Session(Arc::new(Inner { model, place })))
    }

    /// Forgets everything, once what was asked of this session is done.
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

    /// Writes what it remembers to a `.safetensors` file, once what was asked of it is done; see
    /// [`Model::restore`]. A file that is there is replaced when the new one is whole.
    ///
    /// # Errors
    /// [`Error::SavedCache`] when there is nothing to save, or the file cannot be written.
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
        let place = model.engine().run(read).await?;
        Ok(Session(Arc::new(Inner { model: model.clone(), place })))
    }

    /// Does something with the memory as soon as it is free.
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
                visit.take().map(|visit| visit(&slot)).transpose()
            })
        };
        engine.run_in_turns(Turn::Parked, begin).await
    }

    /// The prompt with as many messages as fit, its tokens, and how many messages are left out.
    fn fit(&self, prompt: Prompt) -> Result<(Prompt, Vec<u32>, usize)> {
        let (model, options) = (&self.0.model, self.options());
        let tokens = model.encode(&prompt)?;
        let Some(limit) = self.limit() else { return Ok((prompt, tokens, 0)) };
        let mut fitting = (prompt, tokens, 0);
        if let (Prompt::Chat(messages, template), Overflow::DropOldest { reserve }) =
            (&fitting.0, options.overflow)
            && fitting.1.len() > limit.saturating_sub(reserve)
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
                let tokens = model.encode(&prompt)?;
                let fits = tokens.len() <= limit.saturating_sub(reserve);
                if fits || middle + 1 == turns.len() {
                    shorter = Some((prompt, tokens, turns[middle] - head));
                }
                if fits { high = middle } else { low = middle + 1 }
            }
            fitting = shorter.unwrap_or(fitting);
        }
        match fitting.1.len() {
            tokens if tokens > limit => Err(Error::ContextOverflow { tokens, limit }),
            _ => Ok(fitting),
        }
    }

    /// The most tokens that it may remember.
    fn limit(&self) -> Option<usize> {
        self.options().limit(self.0.model.info().context)
    }

    /// Where in a prompt somebody may want to come back to, if the model cannot come back to
    /// everywhere: the end of what sessions with the same instructions share, and where the answer
    /// begins, or the text that the template will put in its place.
    fn marks(&self, prompt: &Prompt, tokens: &[u32]) -> Vec<usize> {
        let (model, options) = (&self.0.model, self.options());
        if model.rewinds() && !matches!(options.overflow, Overflow::Ring(_)) {
            return Vec::new();
        }
        let last = tokens.len() - 1;
        let Prompt::Chat(messages, template) = prompt else { return vec![last] };
        let stable = self.stable(messages, template, tokens).unwrap_or(last);
        let shared = self.shared(messages, template, tokens);
        shared.into_iter().chain([stable.min(last)]).collect()
    }

    /// How many tokens come before the header of the answer.
    fn stable(
        &self,
        messages: &[Message],
        template: &TemplateOptions,
        tokens: &[u32],
    ) -> Option<usize> {
        let model = &self.0.model;
        let asked = TemplateOptions { add_generation_prompt: false, ..template.clone() };
        let whole = model.render(messages, template).ok()?;
        let header = whole.strip_prefix(&model.render(messages, &asked).ok()?)?;
        let header = model.tokenizer().ok()?.encode(header, false).ok()?;
        tokens.strip_suffix(&header[..]).map(<[u32]>::len)
    }

    /// How many tokens say the same whatever the user says: instructions and tools.
    fn shared(
        &self,
        messages: &[Message],
        template: &TemplateOptions,
        tokens: &[u32],
    ) -> Option<usize> {
        let (model, system) = (&self.0.model, system_messages(messages));
        if system.is_empty() && template.tools.is_empty() {
            return None;
        }
        let render =
            |text: &str| model.render(&[system, &[Message::user(text)]].concat(), template).ok();
        let (one, other) = (render("0")?, render("a")?);
        let same = one.char_indices().zip(other.chars()).find(|((_, a), b)| a != b);
        let text = &one[..same.map_or(one.len(), |((at, _), _)| at)];
        let ids = model.tokenizer().ok()?.encode(text, false).ok()?;
        let shared = ids.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        (0 < shared && shared < tokens.len()).then_some(shared)
    }
}

/// The messages before everything that is said.
fn system_messages(messages: &[Message]) -> &[Message] {
    let is_system = |message: &Message| ["system", "developer"].contains(&&*message.role);
    let end = messages.iter().position(|message| !is_system(message));
    &messages[..end.unwrap_or(messages.len())]
}

impl Model {
    /// The memory of a conversation, empty.
    pub fn session(&self, options: SessionOptions) -> Session {
        Session::new(self, options)
    }

    /// The options that lose least of those under which a session of so many tokens takes at most
    /// `bytes`: keys and values as they are, in 8 bits or in 4, and else a ring. What they leave is
    /// for snapshots.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`] when the model cannot do with that at all.
    pub async fn options_within(&self, tokens: usize, bytes: usize) -> Result<SessionOptions> {
        self.compute(move |loaded| SessionOptions::within(&**loaded.language()?, tokens, bytes))
            .await
    }

    /// A session as [`Session::save`] has written it, perhaps in another process. What comes next is
    /// the same to the last bit. The options must be those that it had; snapshots are not saved.
    ///
    /// # Errors
    /// [`Error::SavedCache`] when the file is damaged, or was saved by another model, by another
    /// version of this library or under other options.
    pub async fn restore(
        &self,
        path: impl Into<PathBuf>,
        options: SessionOptions,
    ) -> Result<Session> {
        Session::restore(self, path.into(), options).await
    }
}
