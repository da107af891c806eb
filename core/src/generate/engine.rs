//! The one thread that owns every array of the process.
//!
//! Arrays, streams and compiled functions belong to the thread that made them, and each thread that
//! ever touched MLX leaves one behind. So there is one, for as long as the process lives; handles
//! only send it work. Short jobs run to their end; generations take turns, a step each.

use crate::{
    error::{Error, Result},
    memory::bound_free_buffers,
    mlx,
};
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        OnceLock,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, ThreadId},
    time::Duration,
};
use tokio::sync::oneshot;

/// Something that is done in steps, between which others have their turn.
pub(crate) trait Task {
    /// One step.
    fn step(&mut self) -> Turn;
    /// Called instead of the next step when one has panicked.
    fn fail(&mut self, error: Error);
}

/// What a task wants after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Its next step.
    Ready,
    /// Nothing, until somebody calls [`Engine::wake`].
    Parked,
    /// Nothing any more.
    Done,
}

enum Message {
    Job(Box<dyn FnOnce() + Send>),
    Task(Box<dyn FnOnce() -> Box<dyn Task> + Send>),
    Wake,
}

/// A handle to the thread.
pub struct Engine {
    messages: Sender<Message>,
    thread: Option<ThreadId>,
    started: Result<(), String>,
}

static ENGINE: OnceLock<Engine> = OnceLock::new();

impl Engine {
    /// The engine of this process, started on first use.
    ///
    /// # Errors
    /// [`Error::Mlx`] when MLX cannot be used on this machine.
    pub fn get() -> Result<&'static Engine> {
        let engine = ENGINE.get_or_init(|| {
            let (messages, inbox) = channel();
            let (report, started) = channel();
            let thread =
                thread::Builder::new().name("mynah".into()).stack_size(8 << 20).spawn(move || {
                    let start = || mlx::initialize(halt).and_then(|()| bound_free_buffers());
                    report.send(guarded(start)).ok();
                    serve(&inbox);
                });
            let id = thread.as_ref().ok().map(|thread| thread.thread().id());
            let started = match thread {
                Ok(_) => {
                    started.recv().unwrap_or_else(|_| Err(Error::Internal("no engine".into())))
                }
                Err(error) => Err(Error::Internal(error.to_string())),
            };
            Engine { messages, thread: id, started: started.map_err(|error| error.to_string()) }
        });
        match &engine.started {
            Ok(()) => Ok(engine),
            Err(reason) => Err(Error::Mlx(reason.clone())),
        }
    }

    /// Runs `job` on the engine's thread. Dropping the future does not stop a job that has begun.
    ///
    /// # Errors
    /// Those of the job; [`Error::Internal`] when it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, result) = oneshot::channel();
        self.post(Message::Job(Box::new(move || {
            answer.send(guarded(job)).ok();
        })));
        result.await.unwrap_or_else(|_| Err(Error::Internal("the engine has stopped".into())))
    }

    /// Runs `job` on the engine's thread when it is idle next, with nobody waiting for it.
    pub(crate) fn post_job(&self, job: impl FnOnce() + Send + 'static) {
        self.post(Message::Job(Box::new(job)));
    }

    /// Adds a task, made on the engine's thread.
    pub(crate) fn start(&self, make: impl FnOnce() -> Box<dyn Task> + Send + 'static) {
        self.post(Message::Task(Box::new(make)));
    }

    /// Gives parked tasks another look.
    pub(crate) fn wake(&self) {
        self.post(Message::Wake);
    }

    fn post(&self, message: Message) {
        // The thread lives as long as the process, so this fails only while the process ends.
        self.messages.send(message).ok();
    }
}

/// Stops the thread for good while the process ends, because MLX's globals end with it.
extern "C" fn halt() {
    const PATIENCE: Duration = Duration::from_secs(2);
    let Some(engine) = ENGINE.get().filter(|e| e.thread != Some(thread::current().id())) else {
        return;
    };
    let (report, halted) = channel();
    engine.post_job(move || {
        report.send(()).ok();
        loop {
            thread::park();
        }
    });
    halted.recv_timeout(PATIENCE).ok();
}

fn serve(inbox: &Receiver<Message>) {
    let mut tasks: Vec<Box<dyn Task>> = Vec::new();
    let mut anyone_ready = false;
    loop {
        let mut next = if anyone_ready { inbox.try_recv().ok() } else { wait(inbox) };
        if next.is_none() && !anyone_ready {
            return;
        }
        while let Some(message) = next {
            // A job is a turn: who waits for it may have the next one ready at once.
            let is_turn = matches!(message, Message::Job(_));
            match message {
                Message::Job(job) => drop(guarded(|| {
                    job();
                    Ok(())
                })),
                Message::Task(make) => tasks.extend(guarded(|| Ok(make())).ok()),
                Message::Wake => {}
            }
            next = if is_turn { None } else { inbox.try_recv().ok() };
        }
        anyone_ready = false;
        tasks.retain_mut(|task| {
            let turn = guarded(|| Ok(task.step())).unwrap_or_else(|error| {
                task.fail(error);
                Turn::Done
            });
            anyone_ready |= turn == Turn::Ready;
            turn != Turn::Done
        });
    }
}

/// The next message. Who waits long gives back what nobody uses meanwhile.
fn wait(inbox: &Receiver<Message>) -> Option<Message> {
    const LONG: Duration = Duration::from_secs(1);
    match inbox.recv_timeout(LONG) {
        Err(RecvTimeoutError::Timeout) => {
            mlx::release_memory().ok();
            inbox.recv().ok()
        }
        message => message.ok(),
    }
}

/// A panic is a bug, and it ends what it interrupts, not the process.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(Error::Internal(message(&*panic))))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into())
}
