//! The pronunciation of one word: of a lexicon of the application, of the dictionary, of a word of the
//! dictionary with an ending, or by the rules of letters.

use super::{
    dictionary::{Dictionary, Entry},
    lexicon::{self, Lexicon},
    stress::{PRIMARY, SECONDARY, Stress, stressed},
};

/// What follows a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Following {
    /// Whether it begins with a vowel; none at the end of a clause.
    pub vowel: Option<bool>,
    /// Whether it is "to".
    pub is_to: bool,
}

/// Looks words up.
pub struct Words<'a> {
    pub dictionary: &'a Dictionary,
    pub lexicon: &'a Lexicon,
}

/// Symbols that are words.
const SYMBOLS: &[(&str, &str)] = &[
    ("%", "percent"),
    ("&", "and"),
    ("+", "plus"),
    ("@", "at"),
    ("=", "equals"),
    ("°", "degrees"),
];
/// Before these, American English has a flap for /t/.
const BEFORE_FLAP: &str = "AIOWYiuæɑəɛɪɹʊʌ";

/// The phonemes of a stem, with this stress.
type Look<'a> = &'a dyn Fn(&str, Stress) -> Option<String>;

impl Words<'_> {
    /// The phonemes of a word with a part of speech in the tags of the Penn Treebank; none when neither
    /// the lexicon nor the dictionary leads to it.
    pub fn known(&self, word: &str, tag: &str, following: Following) -> Option<String> {
        if let Some(given) = lexicon::find(self.lexicon, word) {
            return Some(given.to_string());
        }
        let stress = match word {
            word if word == word.to_lowercase() => Stress::Kept,
            word if word == word.to_uppercase() => Stress::Primary,
            _ => Stress::AtLeastSecondary,
        };
        self.special(word, tag, following).or_else(|| self.inflected(word, tag, stress, following))
    }

    /// The phonemes of a plain word.
    pub fn plain(&self, word: &str) -> String {
        self.known(word, "", Following { vowel: Some(false), is_to: false })
            .unwrap_or_else(|| self.dictionary.by_letters(word))
    }

    /// Words whose form depends on what follows.
    fn special(&self, word: &str, tag: &str, following: Following) -> Option<String> {
        let is_initials = word.trim_matches('.').contains('.')
            && word.chars().all(|c| c == '.' || c.is_ascii_alphabetic())
            && word.split('.').all(|part| part.len() < 3);
        let lower = word.to_lowercase();
        let vowel = following.vowel;
        let text = |text: &str| Some(text.to_string());
        if let Some((_, name)) = SYMBOLS.iter().find(|(symbol, _)| *symbol == word) {
            return self.inflected(name, "", Stress::Kept, following);
        }
        match &*lower {
            _ if is_initials => self.spelled(word),
            "a" if tag == "DT" => text("ɐ"),
            "an" if word != "AN" => text("ɐn"),
            "am" if word == "am" && vowel.is_some() => text("ɐm"),
            "i" if word == "I" => text("ˌI"),
            "by" if tag == "RB" => text("bˈI"),
            "to" => text(match vowel {
                None => "tu",
                Some(false) => "tə",
                Some(true) => "tʊ",
            }),
            "in" if vowel.is_none() || tag == "RP" => text("ˈɪn"),
            "in" => text("ɪn"),
            "the" => text(if vowel == Some(true) { "ði" } else { "ðə" }),
            "vs" | "vs." => self.inflected("versus", "", Stress::Kept, following),
            "used" => text(if following.is_to { "jˈust" } else { "jˈuzd" }),
            _ => None,
        }
    }

    fn inflected(
        &self,
        word: &str,
        tag: &str,
        stress: Stress,
        following: Following,
    ) -> Option<String> {
        let lower = word.to_lowercase();
        let is_one_case =
            word == word.to_uppercase() || word.chars().skip(1).all(char::is_lowercase);
        let look = |word: &str, stress| {
            self.is_known(word).then(|| self.look_up(word, tag, stress, following)).flatten()
        };
        let inflected = |word: &str| {
            Self::with_s(word, &look, stress)
                .or_else(|| Self::with_ed(word, &look, stress))
                .or_else(|| Self::with_ing(word, &look, stress))
        };
        let mut word = word;
        if word != lower
            && word.len() > 1
            && word.chars().all(|c| c.is_ascii_alphabetic() || c == '\'')
            && is_one_case
            && (tag != "NNP" || word.len() > 7)
            && self.dictionary.find(word).is_none()
            && (self.dictionary.find(&lower).is_some() || inflected(&lower).is_some())
        {
            word = &lower;
        }
        if let Some(phonemes) = look(word, stress) {
            return Some(phonemes);
        }
        if let Some(stem) = word.strip_suffix('\'') {
            let possessive = stem.strip_suffix('s').map(|stem| format!("{stem}'s"));
            let found = possessive.and_then(|word| look(&word, stress));
            if let Some(phonemes) = found.or_else(|| look(stem, stress)) {
                return Some(phonemes);
            }
        }
        inflected(word)
    }

    fn is_known(&self, word: &str) -> bool {
        if self.dictionary.find(word).is_some() {
            return true;
        }
        let is_word = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphabetic());
        is_word && (word.len() == 1 || word[1..] == word[1..].to_uppercase())
    }

    fn look_up(
        &self,
        word: &str,
        tag: &str,
        stress: Stress,
        following: Following,
    ) -> Option<String> {
        let checked = |word: &str| self.dictionary.find(word).filter(|entry| entry.is_checked);
        let is_capitals = word == word.to_uppercase() && checked(word).is_none();
        let lower = word.to_lowercase();
        let word = if is_capitals { &lower } else { word };
        let is_name = is_capitals && tag == "NNP";
        let entry = self.dictionary.find(word).filter(|entry| entry.is_checked || !is_name);
        let end = if following.vowel.is_none() { "None" } else { "" };
        let found = entry.as_ref().and_then(|entry: &Entry| {
            let group = match tag {
                tag if tag.starts_with("VB") => "VERB",
                tag if tag.starts_with("NN") => "NOUN",
                tag if tag.starts_with("RB") => "ADV",
                tag if tag.starts_with("JJ") => "ADJ",
                _ => "",
            };
            entry.phonemes(&[end, tag, group])
        });
        match found {
            Some(phonemes) if !is_name || phonemes.contains(PRIMARY) => {
                Some(stressed(phonemes, stress))
            }
            _ => self.spelled(word),
        }
    }

    /// The names of the letters of a word, the last one with the stress.
    fn spelled(&self, word: &str) -> Option<String> {
        let letters = word.chars().filter(|c| c.is_alphabetic());
        let names: Option<String> = letters
            .map(|c| {
                let entry = self.dictionary.find(&c.to_uppercase().to_string())?;
                Some(entry.phonemes(&[])?.to_string())
            })
            .collect();
        let names = stressed(&names.filter(|names| !names.is_empty())?, Stress::Weaker);
        Some(match names.rsplit_once(SECONDARY) {
            Some((before, last)) => format!("{before}{PRIMARY}{last}"),
            None => names,
        })
    }

    fn with_s(word: &str, look: Look, stress: Stress) -> Option<String> {
        if word.len() < 3 || !word.ends_with('s') {
            return None;
        }
        let stem = |end: &str| word.strip_suffix(end);
        let found = stem("s").filter(|_| !word.ends_with("ss")).and_then(|stem| look(stem, stress));
        let found = found.or_else(|| stem("'s").and_then(|stem| look(stem, stress)));
        let found = found.or_else(|| {
            let stem = stem("es").filter(|_| word.len() > 4 && !word.ends_with("ies"))?;
            look(stem, stress)
        });
        let found = found.or_else(|| {
            let stem = stem("ies").filter(|_| word.len() > 4)?;
            look(&format!("{stem}y"), stress)
        });
        found.map(|stem| plural(&stem))
    }

    fn with_ed(word: &str, look: Look, stress: Stress) -> Option<String> {
        if word.len() < 4 || !word.ends_with('d') {
            return None;
        }
        let first = word.strip_suffix('d').filter(|stem| !stem.ends_with('d'));
        let found = first.and_then(|stem| look(stem, stress));
        let found = found.or_else(|| {
            let stem = word.strip_suffix("ed")?;
            look(stem, stress).filter(|_| word.len() > 4 && !stem.ends_with('e'))
        });
        found.map(|stem| past(&stem))
    }

    fn with_ing(word: &str, look: Look, stress: Stress) -> Option<String> {
        let stem = word.strip_suffix("ing").filter(|stem| stem.len() > 1)?;
        let stress = if stress == Stress::Kept { Stress::AtLeastSecondary } else { stress };
        let found = Some(stem).filter(|stem| stem.len() > 2).and_then(|stem| look(stem, stress));
        let found = found.or_else(|| look(&format!("{stem}e"), stress));
        let found = found.or_else(|| {
            let letters = stem.as_bytes();
            let [.., before, last] = letters else { return None };
            let is_doubled = before == last && b"bcdgklmnprstvxz".contains(last);
            let is_doubled = (is_doubled || letters.ends_with(b"ck")) && letters.len() > 2;
            is_doubled.then(|| look(&stem[..stem.len() - 1], stress)).flatten()
        });
        found.map(|stem| flapped(&stem) + "ɪŋ")
    }
}

/// Phonemes with the ending of a plural.
pub fn plural(stem: &str) -> String {
    stem.to_string()
        + match stem.chars().next_back() {
            Some('p' | 't' | 'k' | 'f' | 'θ') => "s",
            Some('s' | 'z' | 'ʃ' | 'ʒ' | 'ʧ' | 'ʤ') => "ᵻz",
            _ => "z",
        }
}

/// Phonemes with the ending of a past tense.
fn past(stem: &str) -> String {
    match stem.chars().next_back() {
        Some('p' | 'k' | 'f' | 'θ' | 'ʃ' | 's' | 'ʧ') => format!("{stem}t"),
        Some('d') => format!("{stem}ᵻd"),
        Some('t') => flapped(stem) + "ᵻd",
        _ => format!("{stem}d"),
    }
}

/// A /t/ after a vowel is a flap before an ending that begins with one.
fn flapped(stem: &str) -> String {
    match stem.strip_suffix('t') {
        Some(rest) if rest.ends_with(|c| BEFORE_FLAP.contains(c)) => format!("{rest}ɾ"),
        _ => stem.to_string(),
    }
}
