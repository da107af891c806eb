//! Stress marks and vowels of misaki's alphabet.

/// The mark of primary stress.
pub const PRIMARY: char = 'ˈ';
/// The mark of secondary stress.
pub const SECONDARY: char = 'ˌ';
const VOWELS: &str = "AIOQWYaiuæɑɒɔəɛɜɪʊʌᵻɐ";
const DIPHTHONGS: &str = "AIOQWYʤʧ";

/// What happens to the stress of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stress {
    /// It stays.
    Kept,
    /// It has none.
    None,
    /// Its primary stress becomes secondary.
    Weaker,
    /// It has secondary stress at least, as a capitalised word.
    AtLeastSecondary,
    /// It has primary stress, as a word in capitals.
    Primary,
}

/// Whether a phoneme is a vowel.
pub fn is_vowel(phoneme: char) -> bool {
    VOWELS.contains(phoneme)
}

/// Phonemes with another stress.
pub fn stressed(phonemes: &str, stress: Stress) -> String {
    let has = |mark: char| phonemes.contains(mark);
    let (primary, secondary) = (has(PRIMARY), has(SECONDARY));
    match stress {
        Stress::None => phonemes.replace([PRIMARY, SECONDARY], ""),
        Stress::Weaker if primary => {
            phonemes.replace(SECONDARY, "").replace(PRIMARY, &SECONDARY.to_string())
        }
        Stress::AtLeastSecondary if !primary && !secondary => at_first_vowel(phonemes, SECONDARY),
        Stress::Primary if !primary && secondary => {
            phonemes.replace(SECONDARY, &PRIMARY.to_string())
        }
        Stress::Primary if !primary => at_first_vowel(phonemes, PRIMARY),
        _ => phonemes.to_string(),
    }
}

/// Phonemes with a mark before the first vowel, where there is one.
fn at_first_vowel(phonemes: &str, mark: char) -> String {
    let mut marked = phonemes.to_string();
    if let Some(place) = phonemes.find(is_vowel) {
        marked.insert(place, mark);
    }
    marked
}

/// How heavy a part of a compound is: of several, the lightest lose their primary stress.
pub fn weight(phonemes: &str) -> usize {
    phonemes.chars().map(|phoneme| if DIPHTHONGS.contains(phoneme) { 2 } else { 1 }).sum()
}
