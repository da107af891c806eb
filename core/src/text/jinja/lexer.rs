//! Template source to tokens, with the whitespace rules of `trim_blocks` and `lstrip_blocks`.

use super::failure::{Failure, Result};

/// A token and its line.
#[derive(Debug)]
pub struct Token {
    pub line: usize,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Data(String),
    /// `{{` and `}}`.
    OutputBegin,
    OutputEnd,
    /// `{%` and `%}`.
    BlockBegin,
    BlockEnd,
    Name(String),
    Int(i128),
    Float(f64),
    Text(String),
    /// An operator or a bracket.
    Symbol(&'static str),
    End,
}

const SYMBOLS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

/// Splits a template into tokens, the last of which is [`Kind::End`].
pub fn tokens(source: &str) -> Result<Vec<Token>> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { source, at: 0, line: 1, tokens: Vec::new() };
    lexer.template()?;
    lexer.add(Kind::End);
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    tokens: Vec<Token>,
}

/// The sign at the begin or the end of a tag.
#[derive(Clone, Copy, PartialEq)]
enum Sign {
    Strip,
    Keep,
    None,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn advance(&mut self, bytes: usize) {
        let skipped = &self.source[self.at..self.at + bytes];
        self.line += skipped.matches('\n').count();
        self.at += bytes;
    }

    fn add(&mut self, kind: Kind) {
        self.tokens.push(Token { line: self.line, kind });
    }

    fn fail<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(Failure { line: Some(self.line), reason: reason.into() })
    }

    fn sign(&mut self) -> Sign {
        let sign = match self.rest().as_bytes().first() {
            Some(b'-') => Sign::Strip,
            Some(b'+') => Sign::Keep,
            _ => return Sign::None,
        };
        self.advance(1);
        sign
    }

    fn template(&mut self) -> Result<()> {
        while self.at < self.source.len() {
            let rest = self.rest();
            let tags = rest.match_indices('{').map(|(at, _)| at);
            let tag = tags
                .into_iter()
                .find(|at| matches!(rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')));
            let Some(tag) = tag else {
                self.add(Kind::Data(rest.into()));
                self.advance(rest.len());
                return Ok(());
            };
            let (start, line) = (self.at, self.line);
            let opens = &rest[tag..tag + 2];
            self.advance(tag + 2);
            let sign = self.sign();
            let data = self.before_tag(start..start + tag, sign, opens != "{{");
            if !data.is_empty() {
                self.tokens.push(Token { line, kind: Kind::Data(data.into()) });
            }
            match opens {
                "{#" => {
                    let Some(end) = self.rest().find("#}") else {
                        return self.fail("missing end of comment tag");
                    };
                    let sign = match self.rest().as_bytes()[..end].last() {
                        Some(b'-') => Sign::Strip,
                        Some(b'+') => Sign::Keep,
                        _ => Sign::None,
                    };
                    self.advance(end + 2);
                    self.after_block(sign);
                }
                "{%" if self.keyword() == "raw" => self.raw()?,
                "{%" => {
                    self.add(Kind::BlockBegin);
                    self.expression("%}")?;
                    self.add(Kind::BlockEnd);
                }
                _ => {
                    self.add(Kind::OutputBegin);
                    self.expression("}}")?;
                    self.add(Kind::OutputEnd);
                }
            }
        }
        Ok(())
    }

    /// The text before a tag, without the whitespace that the tag removes.
    fn before_tag(&self, range: std::ops::Range<usize>, sign: Sign, is_block: bool) -> &'a str {
        let text = &self.source[range.clone()];
        if sign == Sign::Strip {
            return text.trim_end();
        }
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        let is_line = line > 0 || range.start == 0 || self.source[..range.start].ends_with('\n');
        let is_blank = text[line..].trim().is_empty();
        if sign == Sign::None && is_block && is_line && is_blank { &text[..line] } else { text }
    }

    /// Skips the whitespace that the end of a block removes.
    fn after_block(&mut self, sign: Sign) {
        match sign {
            Sign::Strip => self.skip_space(),
            Sign::None if self.rest().starts_with('\n') => self.advance(1),
            _ => {}
        }
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start().len());
    }

    /// The first word of a tag.
    fn keyword(&self) -> &'a str {
        let rest = self.rest().trim_start();
        &rest[..rest.find(|c: char| !is_name(c)).unwrap_or(rest.len())]
    }

    fn raw(&mut self) -> Result<()> {
        let Some(end) = self.rest().find("%}") else {
            return self.fail("missing end of raw directive");
        };
        let sign = if self.rest()[..end].ends_with('-') { Sign::Strip } else { Sign::None };
        self.advance(end + 2);
        self.after_block(sign);
        let (start, line) = (self.at, self.line);
        while let Some(found) = self.rest().find("{%") {
            let end = self.at + found;
            self.advance(found + 2);
            let sign = self.sign();
            if self.keyword() == "endraw" {
                let data = self.before_tag(start..end, sign, true);
                self.tokens.push(Token { line, kind: Kind::Data(data.into()) });
                return match self.rest().find("%}") {
                    Some(end) => {
                        let tag = &self.rest()[..end];
                        let sign = if tag.ends_with('-') { Sign::Strip } else { Sign::None };
                        self.advance(end + 2);
                        self.after_block(sign);
                        Ok(())
                    }
                    None => self.fail("missing end of raw directive"),
                };
            }
        }
        self.fail("missing end of raw directive")
    }

    /// The tokens of a tag up to and including its end.
    fn expression(&mut self, end: &'static str) -> Result<()> {
        let mut brackets: Vec<&str> = Vec::new();
        loop {
            self.skip_space();
            let rest = self.rest();
            if brackets.is_empty() {
                for (sign, mark) in [(Sign::Strip, "-"), (Sign::Keep, "+"), (Sign::None, "")] {
                    if rest.strip_prefix(mark).is_some_and(|rest| rest.starts_with(end)) {
                        self.advance(mark.len() + end.len());
                        match end {
                            "%}" => self.after_block(sign),
                            _ if sign == Sign::Strip => self.skip_space(),
                            _ => {}
                        }
                        return Ok(());
                    }
                }
            }
            let Some(first) = rest.chars().next() else {
                return self.fail(format!("unexpected end of template, expected {end}"));
            };
            if first.is_ascii_digit() {
                self.number()?;
            } else if is_name(first) {
                let length = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
                self.add(Kind::Name(rest[..length].into()));
                self.advance(length);
            } else if first == '"' || first == '\'' {
                self.string(first)?;
            } else if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
                match *symbol {
                    "(" => brackets.push(")"),
                    "[" => brackets.push("]"),
                    "{" => brackets.push("}"),
                    ")" | "]" | "}" if brackets.pop() != Some(symbol) => {
                        return self.fail(format!("unexpected '{symbol}'"));
                    }
                    _ => {}
                }
                self.add(Kind::Symbol(symbol));
                self.advance(symbol.len());
            } else {
                return self.fail(format!("unexpected char {first:?}"));
            }
        }
    }

    fn number(&mut self) -> Result<()> {
        let rest = self.rest();
        let digits = |at: usize, is_digit: fn(&char) -> bool| {
            let run = rest[at..].chars().take_while(|c| is_digit(c) || *c == '_');
            at + run.count()
        };
        let radix = match rest.get(..2) {
            Some("0x" | "0X") => Some(16),
            Some("0o" | "0O") => Some(8),
            Some("0b" | "0B") => Some(2),
            _ => None,
        };
        let (mut end, mut is_float) = (digits(0, char::is_ascii_digit), false);
        if radix.is_some() {
            end = digits(2, char::is_ascii_hexdigit);
        } else {
            let starts_digit = |at: usize| rest.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
            if rest[end..].starts_with('.') && starts_digit(end + 1) {
                (end, is_float) = (digits(end + 1, char::is_ascii_digit), true);
            }
            if rest[end..].starts_with(['e', 'E']) {
                let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
                if starts_digit(end + 1 + sign) {
                    (end, is_float) = (digits(end + 1 + sign, char::is_ascii_digit), true);
                }
            }
        }
        let written = rest[..end].replace('_', "");
        let number = if is_float {
            written.parse().ok().map(Kind::Float)
        } else {
            let digits = if radix.is_some() { &written[2..] } else { &written };
            i128::from_str_radix(digits, radix.unwrap_or(10)).ok().map(Kind::Int)
        };
        let Some(number) = number else { return self.fail(format!("invalid number {written}")) };
        self.add(number);
        self.advance(end);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<()> {
        let rest = self.rest();
        let (mut text, mut chars) = (String::new(), rest.char_indices().skip(1));
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.add(Kind::Text(text));
                self.advance(at + 1);
                return Ok(());
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let Some((_, escape)) = chars.next() else { break };
            let mut hex = |digits: usize| {
                let code: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                u32::from_str_radix(&code, 16).ok().and_then(char::from_u32)
            };
            let decoded = match escape {
                'n' => Some('\n'),
                't' => Some('\t'),
                'r' => Some('\r'),
                'a' => Some('\x07'),
                'b' => Some('\x08'),
                'f' => Some('\x0c'),
                'v' => Some('\x0b'),
                '0' => Some('\0'),
                '\\' | '\'' | '"' => Some(escape),
                '\n' => continue,
                'x' => hex(2),
                'u' => hex(4),
                'U' => hex(8),
                other => {
                    text.extend(['\\', other]);
                    continue;
                }
            };
            match decoded {
                Some(c) => text.push(c),
                None => return self.fail("invalid escape in a string"),
            }
        }
        self.fail("unexpected end of a string")
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
