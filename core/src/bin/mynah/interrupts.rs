//! Ctrl-C. It cancels the running generation; without one it ends the program, except while an editor
//! of lines takes it as a key.

use crate::{INTERRUPTED, terminal};
use mynah::Canceller;
use std::{
    io, process,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};
use tokio::signal::unix::{SignalKind, signal};

struct State {
    running: Option<Canceller>,
    /// Whether Ctrl-C ends the program where no generation runs.
    ends: bool,
}

impl State {
    /// The generation to cancel, and whether to end the program without one.
    fn interrupt(&mut self) -> (Option<Canceller>, bool) {
        (self.running.take(), self.ends)
    }
}

static STATE: Mutex<State> = Mutex::new(State { running: None, ends: true });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts to listen.
pub fn listen() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    // The handler is there before anything that it may end.
    let mut interrupts = {
        let _inside = runtime.enter();
        signal(SignalKind::interrupt())?
    };
    thread::spawn(move || {
        runtime.block_on(async {
            while interrupts.recv().await.is_some() {
                let (running, ends) = state().interrupt();
                match running {
                    Some(generation) => generation.cancel(),
                    None if ends => {
                        terminal::end_line();
                        process::exit(i32::from(INTERRUPTED));
                    }
                    None => {}
                }
            }
        });
    });
    Ok(())
}

/// Sets the generation that Ctrl-C cancels.
pub fn set_running(generation: Option<Canceller>) {
    state().running = generation;
}

/// From now on, Ctrl-C does nothing where no generation runs.
pub fn stay() {
    state().ends = false;
}
