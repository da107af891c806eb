//! What the command writes: answers to standard output and everything else to standard error. On a
//! terminal, no text of a model, a checkpoint or a hub acts as a control sequence. What is piped, and
//! JSON, stays exact.

use mynah::Summary;
use serde::Serialize;
use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};
use terminal_size::{Width, terminal_size_of};
use unicode_width::UnicodeWidthStr;

/// Whether the terminal's last line is one that changes.
static LINE_CHANGES: AtomicBool = AtomicBool::new(false);

/// Replaces a line of standard error that changes. `start` moves to where it begins.
pub fn change_line(start: &str, line: &str) {
    write!(io::stderr(), "{start}{line}\x1b[J").ok();
    LINE_CHANGES.store(!line.is_empty(), Ordering::SeqCst);
}

/// Moves on from a line that changes, before the program ends.
pub fn end_line() {
    if LINE_CHANGES.swap(false, Ordering::SeqCst) {
        writeln!(io::stderr()).ok();
    }
}

/// Removes a line that changes, before another line takes its place.
fn clear_line() {
    if LINE_CHANGES.load(Ordering::SeqCst) {
        change_line("\r", "");
    }
}

/// Writes text to standard output.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    let shown = if out.is_terminal() { harmless(text) } else { text.into() };
    out.write_all(shown.as_bytes())?;
    out.flush()
}

/// As [`print`], dim on a terminal.
pub fn print_dim(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    if !out.is_terminal() {
        return print(text);
    }
    write!(out, "\x1b[2m{}\x1b[0m", harmless(text))?;
    out.flush()
}

/// Writes a line of JSON to standard output.
pub fn print_json(value: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_string(value)?;
    // JSON leaves some control characters as they are; escaped, they are the same text.
    let json = replace(&json, |c| format!("\\u{:04x}", u32::from(c)));
    writeln!(io::stdout(), "{json}")
}

/// Writes lines to standard error, which may be closed. On a terminal they are broken at words.
pub fn say(text: &str) {
    clear_line();
    writeln!(io::stderr(), "{}", for_people(text)).ok();
}

/// As [`say`], dim on a terminal.
fn say_dim(text: &str) {
    let text = for_people(text);
    let line = if io::stderr().is_terminal() { format!("\x1b[2m{text}\x1b[0m") } else { text };
    writeln!(io::stderr(), "{line}").ok();
}

fn for_people(text: &str) -> String {
    match columns() {
        Some(columns) => wrap(&harmless(text), columns),
        None => text.into(),
    }
}

/// The width of the terminal that standard error is; `None` if it is none.
pub fn columns() -> Option<usize> {
    const USUAL: usize = 80;
    let err = io::stderr();
    let width = |(Width(columns), _)| usize::from(columns);
    err.is_terminal()
        .then(|| terminal_size_of(&err).map_or(USUAL, width))
        .map(|columns| if columns == 0 { USUAL } else { columns })
}

/// A text whose lines are broken at words to this width. Longer words stay whole.
fn wrap(text: &str, columns: usize) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let (mut current, mut width) = (String::new(), 0);
        for word in line.split_inclusive(' ') {
            if width > 0 && width + word.trim_end().width() > columns {
                lines.push(std::mem::take(&mut current));
                width = 0;
            }
            current += word;
            width += word.width();
        }
        lines.push(current);
    }
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

/// A text that cannot steer a terminal: control characters are written as `^[` or `<U+202E>`, and
/// carriage returns are left out.
pub fn harmless(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return text.into();
    }
    let shown = |c| match c {
        '\r' => String::new(),
        '\x7f' => "^?".into(),
        '\0'..='\x1f' => format!("^{}", char::from(c as u8 + b'@')),
        c => format!("<U+{:04X}>", u32::from(c)),
    };
    replace(text, shown).into()
}

/// Whether a character may steer a terminal: control characters other than newline and tab, and those
/// that change the direction of the text after them.
fn steers(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text with other texts in place of the characters that steer.
fn replace(text: &str, other: impl Fn(char) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) { out += &other(c) } else { out.push(c) }
    }
    out
}

/// Standard error for logs.
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        clear_line();
        let text = String::from_utf8_lossy(bytes);
        let mut err = io::stderr();
        let shown = if err.is_terminal() { harmless(&text) } else { text.as_ref().into() };
        err.write_all(shown.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A text without its line breaks.
pub fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Prints the statistics of a generation, and what else is to be said about its end.
pub fn say_summary(summary: &Summary, end: &str) {
    let cached = match summary.cached_tokens {
        0 => String::new(),
        tokens => format!(" ({tokens} cached)"),
    };
    let speculated = match summary.drafted_tokens {
        0 => String::new(),
        drafted => format!(" ({} of {drafted} draft tokens accepted)", summary.accepted_tokens),
    };
    say_dim(&format!(
        "{}{cached} + {} tokens, first after {:.2} s, prefill {:.1} tokens/s, decode {:.1} tokens/s{speculated}, \
         peak memory {}{end}",
        summary.prompt_tokens,
        summary.generated_tokens,
        summary.time_to_first_token.as_secs_f64(),
        summary.prefill_rate,
        summary.decode_rate,
        bytes(summary.peak_memory as u64),
    ));
}

/// A size in the unit that people read.
pub fn bytes(size: u64) -> String {
    match size {
        1_000_000_000.. => format!("{:.2} GB", size as f64 / 1e9),
        1_000_000.. => format!("{:.1} MB", size as f64 / 1e6),
        _ => format!("{:.1} kB", size as f64 / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_steers_a_terminal() {
        let hostile = "a\x1b[2J\u{9b}1A\x07\x7f\r\nb\tc\u{202e}d\0 é🙂";
        assert_eq!(harmless(hostile), "a^[[2J<U+009B>1A^G^?\nb\tc<U+202E>d^@ é🙂");
        assert!(matches!(harmless("é\n\t"), Cow::Borrowed(_)));
    }

    #[test]
    fn lines_are_broken_at_words() {
        assert_eq!(wrap("one two three\nfour", 8), "one two\nthree\nfour");
        assert_eq!(wrap("exactly 8", 7), "exactly\n8");
        assert_eq!(wrap("a long-word-stays b", 5), "a\nlong-word-stays\nb");
        assert_eq!(wrap("漢字 漢字", 5), "漢字\n漢字");
    }
}
