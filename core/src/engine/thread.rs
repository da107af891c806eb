//! The engine thread, which owns every array of the process, and its task queue.
//!
//! Arrays, streams and compiled functions belong to the thread that created them, and MLX keeps a
//! stream for each thread that ever used it. So one thread lives as long as the process, and handles
//! send it work. Jobs run to their end; tasks, such as generations, take turns of one step each.

use crate::{
    error::{Error, Result},
    mlx::{self, memory::bound_free_buffers},
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
use tracing::Span;

/// Work in steps. Other tasks run between the steps.
pub(crate) trait Task {
    /// Runs one step.
    fn step(&mut self) -> Turn;
    /// Whether the next step only ends the task, without the device.
    fn is_ending(&self) -> bool;
    /// Replaces the next step after one has panicked.
    fn fail(&mut self, error: Error);
}

/// The state of a task after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The task is ready for its next step.
    Ready,
    /// The task waits until another task has run a step or [`Engine::wake`] is called.
    Parked,
    /// The task is done.
    Done,
}

enum Message {
    Job(Box<dyn FnOnce() + Send>),
    /// A job that only frees something, without the device.
    Release(Box<dyn FnOnce() + Send>),
    Task(Box<dyn FnOnce() -> Box<dyn Task> + Send>),
    Wake,
    Pause(oneshot::Sender<Result<()>>),
    Resume,
}

/// A handle to the engine thread.
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
    /// [`Error::Unavailable`] when MLX cannot be used on this machine.
    pub fn get() -> Result<&'static Engine> {
        let engine = ENGINE.get_or_init(|| {
            let (messages, inbox) = channel();
            let (report, started) = channel();
            let thread =
                thread::Builder::new().name("mynah".into()).stack_size(8 << 20).spawn(move || {
                    let start = || {
                        mlx::initialize(halt)?;
                        mlx::announce_kernels();
                        bound_free_buffers()
                    };
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
            Err(reason) => Err(Error::Unavailable(reason.clone())),
        }
    }

    /// Runs a job on the engine thread. Dropping the future does not stop a job that has started.
    ///
    /// # Errors
    /// Those of the job; [`Error::Internal`] when it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, result) = oneshot::channel();
        let span = Span::current();
        self.post(Message::Job(Box::new(move || {
            answer.send(span.in_scope(|| guarded(job))).ok();
        })));
        result.await.unwrap_or_else(|_| stopped())
    }

    /// As [`Engine::run`], for a job that only frees something; it also runs while the engine is
    /// paused.
    pub(crate) async fn run_at_once<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, result) = oneshot::channel();
        self.post_job(move || {
            answer.send(guarded(job)).ok();
        });
        result.await.unwrap_or_else(|_| stopped())
    }

    /// Finishes the current step and computes nothing more until [`Engine::resume`]. When this
    /// returns, the device is idle. Generations and jobs wait and lose nothing. Cancelled, dropped and
    /// unloaded work ends as usual.
    ///
    /// # Errors
    /// [`Error::Mlx`] when the device has failed.
    pub async fn pause(&self) -> Result<()> {
        let (report, paused) = oneshot::channel();
        self.post(Message::Pause(report));
        paused.await.unwrap_or_else(|_| stopped())
    }

    /// Continues after [`Engine::pause`].
    pub fn resume(&self) {
        self.post(Message::Resume);
    }

    /// Runs a job in turns: `begin` creates it, and each turn calls it until it has a result. Until
    /// then its state is `meanwhile`. Dropping the future drops the job.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub(crate) async fn run_in_turns<T, B, J>(&self, meanwhile: Turn, begin: B) -> Result<T>
    where
        T: Send + 'static,
        B: FnOnce() -> Result<J> + Send + 'static,
        J: FnMut() -> Result<Option<T>> + 'static,
    {
        let (answer, result) = oneshot::channel();
        let span = Span::current();
        self.start(move || {
            Box::new(Job { begin: Some(begin), job: None, meanwhile, answer: Some(answer), span })
        });
        result.await.unwrap_or_else(|_| stopped())
    }

    /// Runs a job without the device on the engine thread between two steps, without waiting for it.
    pub(crate) fn post_job(&self, job: impl FnOnce() + Send + 'static) {
        self.post(Message::Release(Box::new(job)));
    }

    /// Adds a task, which `make` creates on the engine thread.
    pub(crate) fn start(&self, make: impl FnOnce() -> Box<dyn Task> + Send + 'static) {
        self.post(Message::Task(Box::new(make)));
    }

    /// Runs a step of each parked task.
    pub(crate) fn wake(&self) {
        self.post(Message::Wake);
    }

    fn post(&self, message: Message) {
        // The thread lives as long as the process, so this fails only when the process ends.
        self.messages.send(message).ok();
    }
}

/// A job in turns and the channel of its result.
struct Job<T, B, J> {
    begin: Option<B>,
    job: Option<J>,
    meanwhile: Turn,
    answer: Option<oneshot::Sender<Result<T>>>,
    /// The span of the code that waits.
    span: Span,
}

impl<T, B: FnOnce() -> Result<J>, J: FnMut() -> Result<Option<T>>> Job<T, B, J> {
    fn advance(&mut self) -> Result<Option<T>> {
        if let Some(begin) = self.begin.take() {
            self.job = Some(begin()?);
        }
        self.job.as_mut().map_or(Ok(None), |job| job())
    }
}

impl<T, B: FnOnce() -> Result<J>, J: FnMut() -> Result<Option<T>>> Task for Job<T, B, J> {
    fn step(&mut self) -> Turn {
        let _span = self.span.clone().entered();
        if self.is_ending() {
            return Turn::Done;
        }
        let Some(result) = self.advance().transpose() else { return self.meanwhile };
        self.answer.take().map(|answer| answer.send(result));
        Turn::Done
    }

    fn is_ending(&self) -> bool {
        self.answer.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn fail(&mut self, error: Error) {
        self.answer.take().map(|answer| answer.send(Err(error)));
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
    let mut waiting = Vec::new();
    let (mut anyone_ready, mut is_paused) = (false, false);
    loop {
        let mut next = if anyone_ready { inbox.try_recv().ok() } else { wait(inbox) };
        if next.is_none() && !anyone_ready {
            return;
        }
        while let Some(message) = next {
            // A job is a turn, because its caller may send the next job at once.
            let is_turn = matches!(message, Message::Job(_) | Message::Release(_));
            match message {
                Message::Job(job) if is_paused => waiting.push(job),
                Message::Job(job) | Message::Release(job) => perform(job),
                Message::Task(make) => tasks.extend(guarded(|| Ok(make())).ok()),
                Message::Wake => {}
                Message::Pause(report) => {
                    is_paused = true;
                    report.send(guarded(mlx::synchronize)).ok();
                }
                Message::Resume => {
                    is_paused = false;
                    waiting.drain(..).for_each(perform);
                }
            }
            next = if is_turn { None } else { inbox.try_recv().ok() };
        }
        anyone_ready = false;
        tasks.retain_mut(|task| {
            if is_paused && !task.is_ending() {
                return true;
            }
            let turn = guarded(|| Ok(task.step())).unwrap_or_else(|error| {
                task.fail(error);
                Turn::Done
            });
            anyone_ready |= turn == Turn::Ready;
            turn != Turn::Done
        });
    }
}

fn perform(job: Box<dyn FnOnce() + Send>) {
    drop(guarded(|| {
        job();
        Ok(())
    }));
}

fn stopped<T>() -> Result<T> {
    Err(Error::Internal("the engine has stopped".into()))
}

/// The next message. After a second without one, MLX's free buffers go back to the system.
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

/// Turns a panic, which is a bug, into an error of the job instead of the end of the process.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(Error::Internal(message(&*panic))))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    #[test]
    fn jobs_in_turns_share_the_thread_and_end_with_their_futures() {
        let engine = Engine::get().unwrap();
        let (open, gate) = channel::<()>();
        engine.post_job(move || {
            gate.recv().ok();
        });
        let (log, logged) = channel();
        let job = |name: &'static str| {
            let log = log.clone();
            engine.run_in_turns(Turn::Ready, move || {
                let mut left = 3;
                Ok(move || {
                    log.send(name).ok();
                    left -= 1;
                    Ok((left == 0).then_some(()))
                })
            })
        };
        let begin = |future: std::pin::Pin<&mut dyn Future<Output = Result<()>>>| {
            assert!(future.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        };
        let (mut one, mut two) = (pin!(job("one")), pin!(job("two")));
        begin(one.as_mut());
        begin(pin!(job("forgotten")));
        begin(two.as_mut());
        drop(open);
        let order: Vec<_> = (0..6).map(|_| logged.recv().unwrap()).collect();
        assert_eq!(order, ["one", "two", "one", "two", "one", "two"]);
        drop(log);
        assert!(logged.recv().is_err());
    }

    #[test]
    fn a_paused_engine_only_lets_go() {
        let engine = Engine::get().unwrap();
        let (log, logged) = channel();
        let say = |name: &'static str| {
            let log = log.clone();
            move || {
                log.send(name).ok();
                Ok(())
            }
        };
        let mut context = Context::from_waker(Waker::noop());
        let mut pause = pin!(engine.pause());
        while pause.as_mut().poll(&mut context).is_pending() {
            thread::yield_now();
        }
        let (mut job, mut release) =
            (pin!(engine.run(say("job"))), pin!(engine.run_at_once(say("release"))));
        let mut turns = pin!(engine.run_in_turns(Turn::Ready, {
            let say = say("turn");
            move || Ok(move || say().map(Some))
        }));
        assert!(job.as_mut().poll(&mut context).is_pending());
        assert!(turns.as_mut().poll(&mut context).is_pending());
        while release.as_mut().poll(&mut context).is_pending() {
            thread::yield_now();
        }
        assert_eq!(logged.try_iter().collect::<Vec<_>>(), ["release"]);
        engine.resume();
        assert_eq!([logged.recv().unwrap(), logged.recv().unwrap()], ["job", "turn"]);
    }
}
