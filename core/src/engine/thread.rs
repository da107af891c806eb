//! The engine thread, which owns every array of the process, and its task queue.
//!
//! Arrays, streams and compiled functions belong to the thread that created them, and MLX keeps a
//! stream for each thread that ever used it. So one thread lives as long as the process, and handles
//! send it work. Jobs run to their end; tasks, such as generations, take turns of one step each.

use crate::{
    engine::device,
    error::{Error, Result},
    mlx::{self, memory},
};
use std::{
    any::Any,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
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
    /// Drops what it has queued on the device and everything that was computed from it, because the
    /// device has failed.
    fn distrust(&mut self) {}
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
    /// Reports when the device is idle.
    Pause(Box<dyn FnOnce() + Send>),
    Resume,
}

/// A handle to the engine thread.
pub struct Engine {
    messages: Sender<Message>,
    thread: Option<ThreadId>,
    started: Result<(), String>,
    is_pause_expected: AtomicBool,
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
                    mlx::raise_priority();
                    let start = || {
                        mlx::initialize(halt)?;
                        mlx::check_device()?;
                        mlx::announce_kernels();
                        memory::limit_by_default()
                    };
                    report.send(guarded(start)).ok();
                    Server::new(inbox).serve();
                });
            let id = thread.as_ref().ok().map(|thread| thread.thread().id());
            let started = match thread {
                Ok(_) => {
                    started.recv().unwrap_or_else(|_| Err(Error::Internal("no engine".into())))
                }
                Err(error) => Err(Error::Internal(error.to_string())),
            };
            let started = started.map_err(|error| match error {
                Error::Unavailable(reason) => reason,
                error => error.to_string(),
            });
            Engine { messages, thread: id, started, is_pause_expected: AtomicBool::new(false) }
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

    /// As [`Engine::run`], for a job whose result is worth nothing if the device has failed.
    ///
    /// # Errors
    /// Also [`Error::Device`].
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run(|| device::alone(job)).await
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
    /// [`Error::Internal`] when the engine has stopped.
    pub async fn pause(&self) -> Result<()> {
        let (report, paused) = oneshot::channel();
        self.post_pause(move || {
            report.send(()).ok();
        });
        paused.await.or_else(|_| stopped())
    }

    /// As [`Engine::pause`], for a system that ends a process whose device works on: blocks the
    /// calling thread until the device is idle, at most for `timeout`, and returns whether it is. If
    /// it is not, the engine still pauses after its current step.
    pub fn pause_within(&self, timeout: Duration) -> bool {
        let (report, paused) = channel();
        self.post_pause(move || {
            report.send(()).ok();
        });
        paused.recv_timeout(timeout).is_ok()
    }

    /// Prepares for a pause that must not take long: until [`Engine::resume`], no step is queued
    /// before the one before it has ended, and prompts are computed in short chunks.
    pub fn expect_pause(&self) {
        self.is_pause_expected.store(true, Ordering::Release);
    }

    /// Whether a pause is expected.
    pub(crate) fn expects_pause(&self) -> bool {
        self.is_pause_expected.load(Ordering::Acquire)
    }

    /// Continues after [`Engine::pause`] and [`Engine::expect_pause`].
    pub fn resume(&self) {
        self.is_pause_expected.store(false, Ordering::Release);
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

    fn post_pause(&self, report: impl FnOnce() + Send + 'static) {
        self.expect_pause();
        self.post(Message::Pause(Box::new(report)));
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
        match &mut self.job {
            // Nothing of it is queued between its turns, so no failure of another task is its own.
            Some(job) if self.meanwhile == Turn::Ready => device::alone(job),
            Some(job) => job(),
            None => Ok(None),
        }
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

/// The state of the engine thread.
struct Server {
    inbox: Receiver<Message>,
    tasks: Vec<Box<dyn Task>>,
    /// Jobs that came during a pause.
    waiting: Vec<Box<dyn FnOnce() + Send>>,
    is_paused: bool,
}

impl Server {
    fn new(inbox: Receiver<Message>) -> Self {
        let (tasks, waiting) = (Vec::new(), Vec::new());
        Server { inbox, tasks, waiting, is_paused: false }
    }

    fn serve(mut self) {
        let mut is_ready = false;
        loop {
            let mut next = if is_ready { self.inbox.try_recv().ok() } else { wait(&self.inbox) };
            if next.is_none() && !is_ready {
                return;
            }
            while let Some(message) = next {
                // A job is a turn, because its caller may send the next job at once.
                let is_turn = matches!(message, Message::Job(_) | Message::Release(_));
                self.receive(message);
                next = if is_turn { None } else { self.inbox.try_recv().ok() };
            }
            is_ready = self.step_all();
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Job(job) if self.is_paused => self.waiting.push(job),
            Message::Job(job) => self.compute(job),
            Message::Release(job) => perform(job),
            Message::Task(make) => self.tasks.extend(guarded(|| Ok(make())).ok()),
            Message::Wake => {}
            Message::Pause(report) => {
                self.is_paused = true;
                guarded(device::settle).ok();
                self.spread_failure();
                report();
            }
            Message::Resume => {
                self.is_paused = false;
                mem::take(&mut self.waiting).into_iter().for_each(|job| self.compute(job));
            }
        }
    }

    fn compute(&mut self, job: Box<dyn FnOnce() + Send>) {
        device::begin();
        perform(job);
        self.spread_failure();
    }

    /// Gives each task its turn. Returns whether one is ready for the next.
    fn step_all(&mut self) -> bool {
        self.spread_failure();
        let (mut is_ready, mut at) = (false, 0);
        while let Some(task) = self.tasks.get_mut(at) {
            let is_ending = task.is_ending();
            if self.is_paused && !is_ending {
                at += 1;
                continue;
            }
            if !is_ending {
                device::begin();
            }
            let turn = guarded(|| Ok(task.step())).unwrap_or_else(|error| {
                task.fail(error);
                Turn::Done
            });
            is_ready |= turn == Turn::Ready;
            if turn == Turn::Done {
                drop(self.tasks.remove(at));
            } else {
                at += 1;
            }
            self.spread_failure();
        }
        is_ready
    }

    /// A failure of the device concerns every task, whichever one met it.
    fn spread_failure(&mut self) {
        if device::has_failed_since_asked() {
            self.tasks.iter_mut().for_each(|task| task.distrust());
        }
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

/// The next message. After a second without one, MLX's free buffers go back to the system, and large
/// models may be paged out.
fn wait(inbox: &Receiver<Message>) -> Option<Message> {
    const LONG: Duration = Duration::from_secs(1);
    match inbox.recv_timeout(LONG) {
        Err(RecvTimeoutError::Timeout) => {
            guarded(device::settle).ok();
            memory::unwire().and_then(|()| mlx::release_memory()).ok();
            let message = inbox.recv().ok();
            memory::wire_if_large().ok();
            message
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
    use crate::engine::block_on;
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    /// Longer than any step of these tests.
    const LONG: Duration = Duration::from_secs(60);

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

        let mut job = pin!(engine.run(say("after it")));
        assert!(engine.pause_within(LONG));
        assert!(job.as_mut().poll(&mut context).is_pending());
        assert!(engine.pause_within(LONG));
        assert!(logged.try_recv().is_err());
        engine.resume();
        assert_eq!(logged.recv().unwrap(), "after it");

        // A step that takes too long: the caller goes on, and the pause comes after the step.
        let (open, gate) = channel::<()>();
        let mut long = pin!(engine.run(move || {
            gate.recv().ok();
            Ok(())
        }));
        assert!(long.as_mut().poll(&mut context).is_pending());
        assert!(!engine.pause_within(Duration::from_millis(20)));
        drop(open);
        block_on(long).unwrap();
        assert!(engine.pause_within(LONG));
        engine.resume();
    }
}
