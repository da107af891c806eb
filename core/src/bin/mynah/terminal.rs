//! Standard error and Ctrl-C.

use crate::INTERRUPTED;
use mynah::{Canceller, Summary, hub};
use std::{
    io::{self, IsTerminal, Write},
    process,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Writes a line to standard error, which may be closed.
pub fn say(line: &str) {
    writeln!(io::stderr(), "{line}").ok();
}

/// A text without its line breaks.
pub fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Prints the statistics of a generation, dim on a terminal.
pub fn say_summary(summary: &Summary) {
    let cached = match summary.cached_tokens {
        0 => String::new(),
        tokens => format!(" ({tokens} cached)"),
    };
    let line = format!(
        "{}{cached} + {} tokens, first after {:.2} s, prefill {:.1} tokens/s, decode {:.1} tokens/s, \
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

/// A size in the unit that people read.
pub fn bytes(size: u64) -> String {
    match size {
        1_000_000_000.. => format!("{:.2} GB", size as f64 / 1e9),
        1_000_000.. => format!("{:.1} MB", size as f64 / 1e6),
        _ => format!("{:.1} kB", size as f64 / 1e3),
    }
}

/// A duration in the units that people read.
fn duration(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 3600.. => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        seconds @ 60.. => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{seconds} s"),
    }
}

/// The progress of a slow operation: a line that changes on a terminal, occasional lines elsewhere.
#[derive(Default)]
pub struct Progress {
    started: Option<Instant>,
    /// The last line and its percentage.
    shown: Option<(String, u32)>,
}

impl Progress {
    /// Shows the share of an operation that is done, from 0 to 1.
    pub fn show_share(&mut self, what: &str, share: f32) {
        self.show(f64::from(share), |percent| format!("{what} … {percent} %"));
    }

    /// Shows the progress of a download.
    pub fn show_download(&mut self, download: &hub::Progress) {
        const WIDTH: usize = 24;
        let share = download.share();
        self.show(share, |percent| {
            let full = (share * WIDTH as f64) as usize;
            let rate = bytes(download.bytes_per_second as u64);
            let left = download.remaining.map(|left| format!(", {} left", duration(left)));
            let numbers = format!(
                "{percent} % of {}, {rate}/s{}",
                bytes(download.total),
                left.unwrap_or_default()
            );
            if io::stderr().is_terminal() {
                let bar = "━".repeat(full) + &" ".repeat(WIDTH - full);
                // Most terminals are 80 columns wide, and a wrapped line cannot be overwritten.
                format!("{bar} {numbers}  {}", download.file).chars().take(79).collect()
            } else {
                format!("downloading … {numbers}")
            }
        });
    }

    /// Shows a share from 0 to 1, but not at once and not at the end.
    fn show(&mut self, share: f64, line: impl FnOnce(u32) -> String) {
        let on_terminal = io::stderr().is_terminal();
        let (patience, step) = if on_terminal { (200, 1) } else { (1000, 10) };
        let percent = (share * 100.0) as u32 / step * step;
        let started = *self.started.get_or_insert_with(Instant::now);
        let early = started.elapsed() < Duration::from_millis(patience);
        let said = self.shown.as_ref().is_some_and(|(_, shown)| *shown == percent);
        if early || share >= 1.0 || (said && !on_terminal) {
            return;
        }
        let line = line(percent);
        if !on_terminal {
            say(&line);
        } else if self.shown.as_ref().is_none_or(|(shown, _)| *shown != line) {
            write!(io::stderr(), "\r{line}\x1b[K").ok();
        }
        self.shown = Some((line, percent));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() && io::stderr().is_terminal() {
            write!(io::stderr(), "\r\x1b[K").ok();
        }
    }
}

/// Ctrl-C, which cancels the running generation.
#[derive(Clone, Default)]
pub struct Interrupts(Arc<Mutex<Option<Canceller>>>);

impl Interrupts {
    /// Starts to listen. Without a running generation, Ctrl-C calls `idle`.
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

    /// Sets the generation that Ctrl-C cancels, and returns the one before.
    pub fn set(&self, running: Option<Canceller>) -> Option<Canceller> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, running)
    }
}

/// Exits with the status that shells expect of an interrupted program.
pub fn exit_interrupted() {
    process::exit(i32::from(INTERRUPTED));
}
