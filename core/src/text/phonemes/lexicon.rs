//! Pronunciations of an application, in the form of the dictionary sources of eSpeak NG: a word, then its
//! phonemes, and perhaps flags that begin with `$`; `//` begins a comment. Phonemes are eSpeak's mnemonics of
//! American English, or, in slashes, those of misaki.

use crate::error::{Error, Result};
use std::{collections::HashMap, path::Path};

/// Words with their phonemes.
pub type Lexicon = HashMap<String, String>;

/// eSpeak's mnemonics, longer ones first, and misaki's phonemes.
const MNEMONICS: &[(&str, &str)] = &[
    ("aI@3", "Iəɹ"),
    ("aU@", "Wəɹ"),
    ("aI@", "Iə"),
    ("aI3", "Iəɹ"),
    ("i@3", "ɪɹ"),
    ("3:", "ɜɹ"),
    ("A:", "ɑ"),
    ("A@", "ɑɹ"),
    ("O@", "ɔɹ"),
    ("o@", "ɔɹ"),
    ("e@", "ɛɹ"),
    ("i@", "iə"),
    ("U@", "ʊɹ"),
    ("O:", "ɔ"),
    ("i:", "i"),
    ("u:", "u"),
    ("@L", "ᵊl"),
    ("@2", "ə"),
    ("@5", "ə"),
    ("I#", "ᵻ"),
    ("I2", "ɪ"),
    ("a#", "ə"),
    ("aa", "æ"),
    ("aI", "I"),
    ("aU", "W"),
    ("eI", "A"),
    ("oU", "O"),
    ("OI", "Y"),
    ("tS", "ʧ"),
    ("dZ", "ʤ"),
    ("t#", "ɾ"),
    ("t2", "t"),
    ("n-", "ᵊn"),
    ("@", "ə"),
    ("3", "əɹ"),
    ("a", "æ"),
    ("E", "ɛ"),
    ("I", "ɪ"),
    ("i", "i"),
    ("0", "ɑ"),
    ("O", "ɔ"),
    ("U", "ʊ"),
    ("u", "u"),
    ("V", "ʌ"),
    ("p", "p"),
    ("b", "b"),
    ("t", "t"),
    ("d", "d"),
    ("k", "k"),
    ("g", "ɡ"),
    ("f", "f"),
    ("v", "v"),
    ("T", "θ"),
    ("D", "ð"),
    ("s", "s"),
    ("z", "z"),
    ("S", "ʃ"),
    ("Z", "ʒ"),
    ("h", "h"),
    ("m", "m"),
    ("n", "n"),
    ("N", "ŋ"),
    ("l", "l"),
    ("r", "ɹ"),
    ("j", "j"),
    ("w", "w"),
    ("''", "ˈ"),
    ("'", "ˈ"),
    (",", "ˌ"),
    ("%", ""),
    ("=", ""),
    ("_", ""),
    ("|", ""),
    (":", ""),
];

/// Reads a file of pronunciations: words with their phonemes, in the form of eSpeak NG's dictionaries.
///
/// # Errors
/// [`Error::Io`] without a file; [`Error::Option`] for a line that is no word with phonemes.
pub fn read_lexicon(path: impl AsRef<Path>) -> Result<Lexicon> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    parse(&text, &path.display().to_string())
}

/// Reads the text of a file; `file` is its name.
pub(super) fn parse(text: &str, file: &str) -> Result<Lexicon> {
    let mut words = HashMap::new();
    for (i, line) in text.lines().enumerate() {
        let mut fields = line.split("//").next().unwrap_or_default().split_whitespace();
        let Some(word) = fields.next() else { continue };
        let refused =
            |reason: String| Error::option("lexicon", format!("{file}, line {}: {reason}", i + 1));
        let given = fields.next().filter(|given| !given.starts_with('$'));
        let given = given.ok_or_else(|| refused(format!("`{word}` has no phonemes")))?;
        let phonemes = match given.strip_prefix('/').and_then(|given| given.strip_suffix('/')) {
            Some(phonemes) => phonemes.to_string(),
            None => of_mnemonics(given).map_err(|rest| {
                refused(format!("`{rest}` is no phoneme of eSpeak's American English"))
            })?,
        };
        words.insert(word.to_string(), phonemes);
    }
    Ok(words)
}

/// The phonemes of a word as it is written, or in small letters.
pub(super) fn find<'a>(lexicon: &'a Lexicon, word: &str) -> Option<&'a str> {
    let found = lexicon.get(word).or_else(|| lexicon.get(&word.to_lowercase()));
    found.map(String::as_str)
}

/// misaki's phonemes of eSpeak's mnemonics, or the first mnemonics that are unknown.
fn of_mnemonics(given: &str) -> Result<String, &str> {
    let (mut rest, mut phonemes) = (given, String::new());
    while !rest.is_empty() {
        let found = MNEMONICS.iter().find(|(mnemonic, _)| rest.starts_with(mnemonic));
        let (mnemonic, phoneme) = found.ok_or(rest)?;
        phonemes += phoneme;
        rest = &rest[mnemonic.len()..];
    }
    Ok(phonemes)
}

#[cfg(test)]
mod tests {
    use super::{find, parse};

    #[test]
    fn mnemonics_become_phonemes() {
        let text = "// names\nMynah  m'aIn@ $verb\nhello\th@l'oU // greeting\nword /wˈɜɹd/\n";
        let lexicon = parse(text, "names").unwrap();
        assert_eq!(find(&lexicon, "Mynah"), Some("mˈInə"));
        assert_eq!(find(&lexicon, "Hello"), Some("həlˈO"));
        assert_eq!(find(&lexicon, "word"), Some("wˈɜɹd"));
        let error = parse("a\n", "names").unwrap_err().to_string();
        assert!(error.contains("names, line 1"), "{error}");
        assert!(parse("a b'ü", "names").is_err());
    }
}
