//! Standard error and Ctrl-C.

use crate::INTERRUPTED;
use mynah::{Canceller, Summary};
use std::{
    io::{self, IsTerminal, Write},
    process,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Writes a line to standard error; nobody may be there to read it.
pub fn say(line: &str) {
    writeln!(io::stderr(), "{line}").ok();
}

/// A text without its line breaks.
pub fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// What a generation was like, dim on a terminal.
pub fn say_summary(summary: &Summary) {
    let remembered = match summary.cached_tokens {
        0 => String::new(),
        tokens => format!(" ({tokens} remembered)"),
    };
    let line = format!(
        "{}{remembered} + {} tokens, first after {:.2} s, prefill {:.1} tokens/s, decode {:.1} tokens/s, \
         peak memory {}",
        summary.prompt_tokens,
        summary.generated_tokens,
        summary.time_to_first_token.as_secs_f64(),
        summary.prefill_rate,
        summary.decode_rate,
        bytes(summary.peak_memory as u64),
    );
    say(&if io::stderr().is_terminal() { format!("\x1b[2m{line}\x1b[0m") } else { line });
}

/// A size as people write it.
pub fn bytes(size: u64) -> String {
    match size {
        1_000_000_000.. => format!("{:.2} GB", size as f64 / 1e9),
        1_000_000.. => format!("{:.1} MB", size as f64 / 1e6),
        _ => format!("{:.1} kB", size as f64 / 1e3),
    }
}

/// How far something slow is: a line that changes on a terminal, a line now and then elsewhere.
pub struct Progress {
    what: &'static str,
    started: Instant,
    /// The percentage that was shown last.
    shown: Option<u32>,
}

impl Progress {
    pub fn new(what: &'static str) -> Self {
        Progress { what, started: Instant::now(), shown: None }
    }

    /// Shows a share from 0 to 1, unless it is soon or all over.
    pub fn show(&mut self, share: f32) {
        let on_terminal = io::stderr().is_terminal();
        let (patience, step) = if on_terminal { (200, 1) } else { (1000, 10) };
        let percent = (share * 100.0) as u32 / step * step;
        let early = self.started.elapsed() < Duration::from_millis(patience);
        if early || share >= 1.0 || self.shown == Some(percent) {
            return;
        }
        self.shown = Some(percent);
        let line = format!("{} … {percent} %", self.what);
        if on_terminal {
            write!(io::stderr(), "\r{line}\x1b[K").ok();
        } else {
            say(&line);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() && io::stderr().is_terminal() {
            write!(io::stderr(), "\r\x1b[K").ok();
        }
    }
}

/// Ctrl-C: it cancels the generation that runs, if one does.
#[derive(Clone, Default)]
pub struct Interrupts(Arc<Mutex<Option<Canceller>>>);

impl Interrupts {
    /// Listens from now on; `idle` is called when there is nothing to cancel.
    pub fn listen(idle: fn()) -> io::Result<Self> {
        let interrupts = Interrupts::default();
        let heard = interrupts.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        thread::spawn(move || {
            runtime.block_on(async {
                while tokio::signal::ctrl_c().await.is_ok() {
                    let running = heard.set(None);
                    running.map_or_else(idle, |generation| generation.cancel());
                }
            });
        });
        Ok(interrupts)
    }

    /// Names the generation that Ctrl-C cancels.
    pub fn set(&self, running: Option<Canceller>) -> Option<Canceller> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, running)
    }
}

/// Ends the program as the shell expects it of an interrupted one.
pub fn exit_interrupted() {
    process::exit(i32::from(INTERRUPTED));
}
