//! The pronunciations of English words, and the rules for others: `english.bin`, which `scripts/phonemes.py`
//! writes and describes. The words are those of misaki (Apache-2.0).

use super::stress::{PRIMARY, SECONDARY, is_vowel};
use miniz_oxide::inflate::decompress_to_vec_zlib;
use std::sync::OnceLock;

static DATA: &[u8] = include_bytes!("english.bin");
/// Every such line has its word in full.
const STRIDE: usize = 64;
/// Letters around the one that is read, in the order in which the rules ask for them.
const PLACES: [isize; 9] = [0, 1, -1, 2, -2, 3, -3, 4, -4];

/// The words and the rules.
pub struct Dictionary {
    lines: Vec<u8>,
    /// Where every 64th line begins.
    starts: Vec<usize>,
    /// The phonemes that a letter may become.
    classes: Vec<String>,
    rules: Vec<u8>,
}

/// The pronunciations of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// For each tag, or `DEFAULT`, its phonemes; none for a word that is spelled.
    tagged: Vec<(String, Option<String>)>,
    /// Whether people have checked its phonemes: entries of misaki's gold list, not of the silver one.
    pub is_checked: bool,
}

impl Entry {
    fn read(text: &str) -> Self {
        let (is_checked, text) = match text.strip_prefix('~') {
            Some(text) => (false, text),
            None => (true, text),
        };
        let tagged = |part: &str| match part.split_once('=') {
            Some((tag, phonemes)) => {
                (tag.to_string(), (!phonemes.is_empty()).then(|| phonemes.to_string()))
            }
            None => ("DEFAULT".to_string(), Some(part.to_string())),
        };
        Entry { tagged: text.split('|').map(tagged).collect(), is_checked }
    }

    /// The phonemes of the first of these tags that the word has, or of any tag.
    pub fn phonemes(&self, tags: &[&str]) -> Option<&str> {
        let of = |tag: &str| self.tagged.iter().find(|(known, _)| known == tag);
        let found = tags.iter().find_map(|tag| of(tag)).or_else(|| of("DEFAULT"))?;
        found.1.as_deref()
    }

    /// Whether its phonemes depend on tags.
    pub fn is_tagged(&self) -> bool {
        self.tagged.len() > 1
    }
}

impl Dictionary {
    /// The dictionary, which is unpacked once.
    pub fn english() -> &'static Dictionary {
        static ENGLISH: OnceLock<Dictionary> = OnceLock::new();
        ENGLISH.get_or_init(|| {
            let (size, rest) = DATA.split_at(4);
            let size = u32::from_le_bytes([size[0], size[1], size[2], size[3]]) as usize;
            let unpack = |bytes: &[u8]| decompress_to_vec_zlib(bytes).unwrap_or_default();
            let (lines, letters) = (unpack(&rest[..size]), unpack(&rest[size..]));
            let ends = lines.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
            let starts = std::iter::once(0).chain(ends.map(|(end, _)| end + 1));
            let starts = starts.step_by(STRIDE).collect();
            let end = letters.windows(2).position(|pair| pair == b"\n\n").unwrap_or(0);
            let classes = String::from_utf8_lossy(&letters[..end]);
            Dictionary {
                lines,
                starts,
                classes: classes.split('\n').map(Into::into).collect(),
                rules: letters[end + 2..].to_vec(),
            }
        })
    }

    /// The entry of a word as it is written, or of its other spelling with or without a capital letter.
    pub fn find(&self, word: &str) -> Option<Entry> {
        self.exactly(word).or_else(|| {
            let lower = word.to_lowercase();
            let mut letters = lower.chars();
            let first = letters.next()?.to_uppercase().to_string();
            letters.clone().next()?;
            let capitalised = first + letters.as_str();
            match word {
                word if word == capitalised => self.exactly(&lower),
                word if word == lower => self.exactly(&capitalised),
                _ => None,
            }
        })
    }

    fn exactly(&self, word: &str) -> Option<Entry> {
        let line = |start: usize| {
            let rest = &self.lines[start..];
            &rest[..rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())]
        };
        let first_word = |start: usize| line(start)[1..].split(|byte| *byte == b'\t').next();
        let after =
            self.starts.partition_point(|start| first_word(*start) <= Some(word.as_bytes()));
        let mut start = *self.starts.get(after.checked_sub(1)?)?;
        let mut found: Vec<u8> = Vec::new();
        for _ in 0..STRIDE {
            let text = line(start);
            let (shared, rest) = text.split_first()?;
            let tab = rest.iter().position(|byte| *byte == b'\t')?;
            found.truncate(usize::from(shared - b'0'));
            found.extend(&rest[..tab]);
            if found == word.as_bytes() {
                return Some(Entry::read(&String::from_utf8_lossy(&rest[tab + 1..])));
            }
            start += text.len() + 1;
            if start >= self.lines.len() {
                break;
            }
        }
        None
    }

    /// The phonemes of a word in small letters by the rules.
    pub fn by_letters(&self, word: &str) -> String {
        let letters: Vec<u8> = word.bytes().filter(u8::is_ascii_lowercase).collect();
        let phonemes: String = (0..letters.len()).map(|i| self.letter(&letters, i)).collect();
        with_one_primary_stress(&phonemes)
    }

    fn letter(&self, word: &[u8], i: usize) -> &str {
        let (mut class, mut branches, mut at) = self.node(0);
        for place in PLACES {
            let letter = i.checked_add_signed(place).and_then(|i| word.get(i)).copied();
            let letter = letter.unwrap_or(b'#');
            let mut found = None;
            for _ in 0..branches {
                if self.rules[at] == letter {
                    found = Some(self.node(at + 1));
                    break;
                }
                at = self.after(at + 1);
            }
            let Some(next) = found else { break };
            (class, branches, at) = next;
        }
        &self.classes[class]
    }

    /// The phonemes of a node, how many branches it has, and where they begin.
    fn node(&self, at: usize) -> (usize, u8, usize) {
        let class = u16::from_le_bytes([self.rules[at], self.rules[at + 1]]);
        (usize::from(class), self.rules[at + 2], at + 3)
    }

    /// Where the node here ends.
    fn after(&self, at: usize) -> usize {
        let (_, branches, start) = self.node(at);
        (0..branches).fold(start, |at, _| self.after(at + 1))
    }
}

/// The first primary stress stays, later ones become secondary; a word without any gets it on its first
/// vowel that is not reduced.
fn with_one_primary_stress(phonemes: &str) -> String {
    if let Some(first) = phonemes.find(PRIMARY) {
        let after = first + PRIMARY.len_utf8();
        let rest = phonemes[after..].replace(PRIMARY, &SECONDARY.to_string());
        return phonemes[..after].to_string() + &rest;
    }
    let is_full = |c: char| is_vowel(c) && !"əᵻ".contains(c);
    let mut marked = phonemes.replace(SECONDARY, "");
    if let Some(place) = marked.find(is_full).or_else(|| marked.find(is_vowel)) {
        marked.insert(place, PRIMARY);
    }
    marked
}
