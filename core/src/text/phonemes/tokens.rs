//! A text as words and marks, with the spaces between them.

/// A word with its parts, or a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What is written.
    pub text: String,
    /// Whether it is a mark, which is its own phoneme.
    pub is_mark: bool,
    /// Whether a space follows.
    pub has_space: bool,
}

/// Marks that are phonemes.
const MARKS: &str = ";:,.!?—…“”()";

/// The tokens of a text; `is_word` knows words that end with a full stop.
pub fn tokens(text: &str, is_word: impl Fn(&str) -> bool) -> Vec<Token> {
    let mut found: Vec<Token> = Vec::new();
    let mut is_quoted = false;
    for chunk in text.split_whitespace() {
        let is_inner = |c: char| c.is_alphanumeric() || "%&+@=°'$£€".contains(c);
        let begins_number = |at: usize| {
            let mut rest = chunk[at..].chars();
            rest.next().is_some_and(|c| "-.".contains(c))
                && rest.next().is_some_and(|c| c.is_ascii_digit())
        };
        let start = chunk
            .char_indices()
            .find(|(i, c)| is_inner(*c) || begins_number(*i))
            .map_or(chunk.len(), |(i, _)| i);
        let mut end = start;
        for (i, c) in chunk[start..].char_indices() {
            if is_inner(c) {
                end = start + i + c.len_utf8();
            }
        }
        let with_stop = chunk[end..].starts_with('.').then(|| &chunk[start..=end]);
        let is_initials = |word: &str| {
            word[..word.len() - 1].contains('.')
                && word.chars().all(|c| c == '.' || c.is_alphabetic())
        };
        let is_abbreviation = |word: &&str| is_word(word) || is_initials(word);
        if start < end && with_stop.as_ref().is_some_and(is_abbreviation) {
            end += 1;
        }
        for c in chunk[..start].chars() {
            mark(c, &mut is_quoted, &mut found);
        }
        if start < end {
            let text = chunk[start..end].to_string();
            found.push(Token { text, is_mark: false, has_space: false });
        }
        for c in chunk[end.max(start)..].chars() {
            mark(c, &mut is_quoted, &mut found);
        }
        if let Some(last) = found.last_mut() {
            last.has_space = true;
        }
    }
    if let Some(last) = found.last_mut() {
        last.has_space = false;
    }
    found
}

/// Adds a mark of its own phoneme, if it has one.
fn mark(c: char, is_quoted: &mut bool, found: &mut Vec<Token>) {
    let c = match c {
        '"' | '«' | '»' | '„' => {
            *is_quoted = !*is_quoted;
            if *is_quoted { '“' } else { '”' }
        }
        '-' | '–' | '―' => '—',
        '[' | '{' => '(',
        ']' | '}' => ')',
        c => c,
    };
    if MARKS.contains(c) {
        match found.last_mut() {
            Some(last) if last.is_mark && !last.has_space && c == '.' => last.text.push(c),
            _ => found.push(Token { text: c.into(), is_mark: true, has_space: false }),
        }
    }
}

/// The parts of a word: runs of letters with apostrophes inside, up to a capital letter after a small one;
/// numbers; and every other character.
pub fn parts(word: &str) -> Vec<&str> {
    let characters: Vec<(usize, char)> = word.char_indices().collect();
    let at = |i: usize| characters.get(i).map(|(_, c)| *c);
    let is_digit = |i: usize| at(i).is_some_and(|c| c.is_ascii_digit());
    let is_letter = |i: usize| at(i).is_some_and(char::is_alphabetic);
    let (mut found, mut i) = (Vec::new(), 0);
    while let Some(c) = at(i) {
        let start = i;
        let begins_number = ",.".contains(c) || (c == '-' && i == 0);
        if is_digit(i) || (begins_number && is_digit(i + 1)) {
            i += 1;
            while is_digit(i) || (at(i).is_some_and(|c| ",.".contains(c)) && is_digit(i + 1)) {
                i += 1;
            }
        } else if is_letter(i) {
            i += 1;
            loop {
                let is_apostrophe = at(i) == Some('\'') && is_letter(i + 1);
                let is_boundary = at(i).is_some_and(char::is_uppercase)
                    && at(i - 1).is_some_and(char::is_lowercase);
                if !(is_letter(i) || is_apostrophe) || is_boundary {
                    break;
                }
                i += 1;
            }
        } else {
            i += 1;
        }
        let end = characters.get(i).map_or(word.len(), |(end, _)| *end);
        found.push(&word[characters[start].0..end]);
    }
    found
}
