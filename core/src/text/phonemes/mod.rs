//! English text as phonemes, in the alphabet of misaki, which speech models are trained with. Abbreviations and
//! figures become words; a word's form may depend on its part of speech and on what follows. Follows misaki
//! 0.9.4 with American pronunciations; parts of speech come from the words around, and unknown words from
//! rules that were learned from the dictionary.

mod dictionary;
mod expand;
mod figures;
mod lexicon;
pub(super) mod numbers;
mod stress;
mod tagger;
mod tokens;
mod words;

pub use lexicon::{Lexicon, read_lexicon};

use crate::error::{Error, Result};
use dictionary::Dictionary;
use figures::{Currency, Figure};
use stress::{PRIMARY, Stress, is_vowel, stressed, weight};
use tokens::{Token, parts, tokens};
use words::{Following, Words};

const CONSONANTS: &str = "bdfhjklmnpstvwzðŋɡɹɾʃʒʤʧθ";
/// Marks that end a clause.
const ENDS: &str = ";:,.!?—…";
/// Characters inside words that are not spoken.
const SILENT: &str = "',-._/";

/// The phonemes of an English text; pronunciations of the lexicon come first.
///
/// # Errors
/// [`Error::Option`] for letters of another script.
pub fn english(text: &str, lexicon: &Lexicon) -> Result<String> {
    let text = plain(text)?;
    let dictionary = Dictionary::english();
    let words = Words { dictionary, lexicon };
    let is_word =
        |word: &str| lexicon::find(lexicon, word).is_some() || dictionary.find(word).is_some();
    let tokens = tokens(&expand::expand(&text), is_word);
    let is_shouted = is_shouted(&tokens);
    let (mut following, mut said) = (Following::default(), Vec::new());
    for (i, token) in tokens.iter().enumerate().rev() {
        let phonemes = if token.is_mark {
            token.text.clone()
        } else {
            let tag = tag(&tokens, i, &words, is_shouted);
            word(&token.text, tag, &words, &mut following)
        };
        let phonemes = phonemes.replace('ɾ', "T").replace('ʔ', "t");
        following = after(&token.text, &phonemes, following);
        said.push(phonemes + if token.has_space { " " } else { "" });
    }
    said.reverse();
    Ok(said.concat().trim().to_string())
}

/// A text with straight apostrophes and without accents.
fn plain(text: &str) -> Result<String> {
    let plain = |c: char| match c {
        '‘' | '’' | 'ʼ' => '\'',
        'à' | 'á' | 'â' | 'ã' | 'ä' | 'å' => 'a',
        'À' | 'Á' | 'Â' | 'Ã' | 'Ä' | 'Å' => 'A',
        'ç' => 'c',
        'Ç' => 'C',
        'è' | 'é' | 'ê' | 'ë' => 'e',
        'È' | 'É' | 'Ê' | 'Ë' => 'E',
        'ì' | 'í' | 'î' | 'ï' => 'i',
        'Ì' | 'Í' | 'Î' | 'Ï' => 'I',
        'ñ' => 'n',
        'Ñ' => 'N',
        'ò' | 'ó' | 'ô' | 'õ' | 'ö' | 'ø' => 'o',
        'Ò' | 'Ó' | 'Ô' | 'Õ' | 'Ö' | 'Ø' => 'O',
        'ù' | 'ú' | 'û' | 'ü' => 'u',
        'Ù' | 'Ú' | 'Û' | 'Ü' => 'U',
        'ý' | 'ÿ' => 'y',
        c => c,
    };
    let text: String = text.chars().map(plain).collect();
    match text.chars().find(|c| c.is_alphabetic() && !c.is_ascii()) {
        None => Ok(text),
        Some(letter) => {
            let reason =
                format!("`{letter}` is no letter of English; pass the phonemes of the text");
            Err(Error::option("text", reason))
        }
    }
}

/// Whether all words are in capitals.
fn is_shouted(tokens: &[Token]) -> bool {
    let mut words = tokens.iter().filter(|token| token.text.chars().any(char::is_alphabetic));
    words.clone().count() > 1 && words.all(|token| token.text == token.text.to_uppercase())
}

/// The part of speech of a word.
fn tag(tokens: &[Token], i: usize, words: &Words, is_shouted: bool) -> &'static str {
    let text = &tokens[i].text;
    let is_capitals = text.len() > 1 && text.chars().all(|c| c.is_ascii_uppercase());
    if is_capitals && !is_shouted {
        return "NNP";
    }
    let lower = |token: &Token| (!token.is_mark).then(|| token.text.to_lowercase());
    let before = i.checked_sub(1).and_then(|i| lower(&tokens[i]));
    let next = tokens.get(i + 1).and_then(lower);
    let word = text.to_lowercase();
    let is_tagged = |word: &str| words.dictionary.find(word).is_some_and(|entry| entry.is_tagged());
    let stem = word.trim_end_matches('s');
    if ["a", "in", "that", "that's"].contains(&&*word) || is_tagged(&word) || is_tagged(stem) {
        return tagger::tag(&word, before.as_deref(), next.as_deref());
    }
    ""
}

/// The phonemes of a word: of all of it, or else of its longest known parts.
fn word(text: &str, tag: &str, words: &Words, following: &mut Following) -> String {
    let mut parts = parts(text);
    let mut currency: Option<Currency> = None;
    if let Some(first) =
        parts.first().and_then(|part| part.chars().next()).and_then(figures::currency)
    {
        currency = Some(first);
        parts.remove(0);
    }
    let mut said: Vec<String> = vec![String::new(); parts.len()];
    let (mut left, mut right) = (0, parts.len());
    while left < right {
        let joined = parts[left..right].concat();
        let figure =
            || Figure::read(&joined, left == 0).map(|figure| figure.phonemes(words, currency));
        let known = words.known(&joined, tag, *following).or_else(figure);
        let is_last_part = left + 1 == right;
        let found = known.or_else(|| is_last_part.then(|| unknown(&joined, words)));
        match found {
            Some(phonemes) => {
                *following = after(&joined, &phonemes, *following);
                said[left] = phonemes;
                (left, right) = (0, left);
            }
            None => left += 1,
        }
    }
    joined(&parts, said)
}

/// The phonemes of a part that neither dictionary nor figures know.
fn unknown(part: &str, words: &Words) -> String {
    if part.chars().all(|c| SILENT.contains(c) || !c.is_alphanumeric()) {
        return String::new();
    }
    words.dictionary.by_letters(&part.to_lowercase())
}

/// The parts of a word as one: with spaces between letters and figures, or with one stress.
fn joined(parts: &[&str], mut said: Vec<String>) -> String {
    let kind = |c: char| {
        if c.is_alphabetic() {
            0
        } else if c.is_ascii_digit() {
            1
        } else {
            2
        }
    };
    let spoken = || parts.iter().flat_map(|part| part.chars()).filter(|c| !SILENT.contains(*c));
    let mut kinds: Vec<i32> = spoken().map(kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.len() > 1 || parts.contains(&"/") {
        said.retain(|phonemes| !phonemes.is_empty());
        return said.join(" ");
    }
    let mut places: Vec<(bool, usize, usize)> = said
        .iter()
        .enumerate()
        .filter(|(_, phonemes)| !phonemes.is_empty())
        .map(|(i, phonemes)| (phonemes.contains(PRIMARY), weight(phonemes), i))
        .collect();
    let strong = places.iter().filter(|(is_strong, ..)| *is_strong).count();
    let weaker: Vec<usize> = match places[..] {
        [(_, _, first), (_, _, second)] if parts[first].chars().count() == 1 => vec![second],
        _ if places.len() < 2 || strong <= places.len().div_ceil(2) => Vec::new(),
        _ => {
            places.sort_unstable();
            places[..places.len() / 2].iter().map(|(_, _, i)| *i).collect()
        }
    };
    for i in weaker {
        said[i] = stressed(&said[i], Stress::Weaker);
    }
    said.concat()
}

/// What a word before these phonemes has after it.
fn after(text: &str, phonemes: &str, following: Following) -> Following {
    let telling =
        |c: &char| ENDS.contains(*c) || CONSONANTS.contains(*c) || (is_vowel(*c) && *c != 'ɐ');
    let vowel = match phonemes.chars().find(telling) {
        Some(c) if ENDS.contains(c) => None,
        Some(c) => Some(is_vowel(c)),
        None => following.vowel,
    };
    Following { vowel, is_to: text.eq_ignore_ascii_case("to") }
}

#[cfg(test)]
mod tests;
