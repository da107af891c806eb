//! The progress of slow operations, on standard error.

use crate::terminal::{bytes, change_line, columns, harmless, say};
use mynah::hub;
use std::time::{Duration, Instant};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

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
        self.show(f64::from(share), |percent, _| format!("{what} … {percent} %"));
    }

    /// Shows the progress of a download.
    pub fn show_download(&mut self, download: &hub::Progress) {
        let share = download.share();
        self.show(share, |percent, columns| {
            let rate = bytes(download.bytes_per_second as u64);
            let left = download.remaining.map(|left| format!(", {} left", duration(left)));
            let done = format!("{percent} % of {}", bytes(download.total));
            let numbers = [done, format!(", {rate}/s"), left.unwrap_or_default()];
            let Some(columns) = columns else {
                return format!("downloading … {}", numbers.concat());
            };
            let bar = bar(share, columns.saturating_sub(numbers.concat().width()));
            let file = format!("  {}", harmless(&download.file).replace(['\n', '\t'], " "));
            let parts = numbers.into_iter().chain([file]);
            let room = columns - bar.width();
            bar + &first_that_fit(parts, room)
        });
    }

    /// Shows a share from 0 to 1, but not at once and not at the end. `line` gets the percentage and
    /// the width of the terminal.
    fn show(&mut self, share: f64, line: impl FnOnce(u32, Option<usize>) -> String) {
        let columns = columns();
        let (patience, step) = if columns.is_some() { (200, 1) } else { (1000, 10) };
        let percent = (share * 100.0) as u32 / step * step;
        let started = *self.started.get_or_insert_with(Instant::now);
        let early = started.elapsed() < Duration::from_millis(patience);
        let said = self.shown.as_ref().is_some_and(|(_, shown)| *shown == percent);
        if early || share >= 1.0 || (said && columns.is_none()) {
            return;
        }
        // Ctrl-C writes `^C` behind the line, and some terminals begin a new one after the last column.
        const FREE: usize = 3;
        let room = columns.map(|columns| columns.saturating_sub(FREE));
        let mut line = line(percent, room);
        if let (Some(columns), Some(room)) = (columns, room) {
            line = fit(&line, room);
            if self.shown.as_ref().is_none_or(|(shown, _)| *shown != line) {
                change_line(&self.to_start(columns), &line);
            }
        } else {
            say(&line);
        }
        self.shown = Some((line, percent));
    }

    /// Moves to the start of the last line, which takes several ones in a terminal that has become
    /// narrower.
    fn to_start(&self, columns: usize) -> String {
        let width = self.shown.as_ref().map_or(0, |(line, _)| line.width());
        match width.saturating_sub(1) / columns {
            0 => "\r".into(),
            lines => format!("\x1b[{lines}A\r"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let (Some(columns), Some(_)) = (columns(), &self.shown) {
            change_line(&self.to_start(columns), "");
        }
    }
}

/// The parts of a line up to the first one that does not fit this many columns.
fn first_that_fit(parts: impl Iterator<Item = String>, columns: usize) -> String {
    let mut line = String::new();
    for part in parts {
        if line.width() + part.width() > columns {
            break;
        }
        line += &part;
    }
    line
}

/// A bar and a space, as wide as there is room; nothing where there is little.
fn bar(share: f64, room: usize) -> String {
    const WIDTH: usize = 24;
    const LEAST: usize = 5;
    let width = WIDTH.min(room.saturating_sub(1));
    if width < LEAST {
        return String::new();
    }
    let full = ((share * width as f64) as usize).min(width);
    "━".repeat(full) + &" ".repeat(width - full) + " "
}

/// The beginning of a line that fits this many columns.
fn fit(line: &str, columns: usize) -> String {
    let mut width = 0;
    let fits = |c: &char| {
        width += c.width().unwrap_or(0);
        width <= columns
    };
    line.chars().take_while(fits).collect()
}

/// A duration in the units that people read.
fn duration(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 3600.. => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        seconds @ 60.. => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_the_terminal() {
        assert_eq!(fit("abc", 3), "abc");
        assert_eq!(fit("漢字漢", 5), "漢字");
        assert_eq!(bar(0.5, 100).width(), 25);
        assert_eq!((bar(0.5, 7).as_str(), bar(0.5, 5).as_str()), ("━━━    ", ""));
        let parts = || ["20 %", ", 1 MB/s", ", 9 s left"].map(String::from).into_iter();
        assert_eq!(first_that_fit(parts(), 15), "20 %, 1 MB/s");
        assert_eq!(first_that_fit(parts(), 22), "20 %, 1 MB/s, 9 s left");
    }

    #[test]
    fn a_line_in_a_narrower_terminal_is_overwritten_as_a_whole() {
        let progress = Progress { shown: Some(("x".repeat(79), 1)), started: None };
        assert_eq!(progress.to_start(80), "\r");
        assert_eq!(progress.to_start(40), "\x1b[1A\r");
    }
}
