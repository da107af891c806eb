//! English text as it is spoken: numbers, amounts of money, abbreviations and signs become words in lower
//! case. Follows `clean_text` of mlx-audio's models of speech; ordinals and numbers with the letter of a
//! thousand, a million or more are read as in the package of its authors, because mlx-audio takes "4th" for
//! trillions and 101st for "one hundred oneth".

use crate::{
    error::{Error, Result},
    text::phonemes::numbers::{cardinal, digits, ordinal},
};
use fancy_regex::{Captures, Regex};
use tokenizers::NormalizedString;

/// Abbreviations with a full stop, in any case.
const ABBREVIATIONS: &[(&str, &str)] = &[
    ("mrs", "misuss"),
    ("ms", "miss"),
    ("mr", "mister"),
    ("dr", "doctor"),
    ("st", "saint"),
    ("co", "company"),
    ("jr", "junior"),
    ("maj", "major"),
    ("gen", "general"),
    ("drs", "doctors"),
    ("rev", "reverend"),
    ("lt", "lieutenant"),
    ("hon", "honorable"),
    ("sgt", "sergeant"),
    ("capt", "captain"),
    ("esq", "esquire"),
    ("ltd", "limited"),
    ("col", "colonel"),
    ("ft", "fort"),
];

/// Abbreviations in exactly these letters.
const UNITS: &[(&str, &str)] = &[
    ("TTS", "text to speech"),
    ("Hz", "hertz"),
    ("kHz", "kilohertz"),
    ("KBs", "kilobytes"),
    ("KB", "kilobyte"),
    ("MBs", "megabytes"),
    ("MB", "megabyte"),
    ("GBs", "gigabytes"),
    ("GB", "gigabyte"),
    ("TBs", "terabytes"),
    ("TB", "terabyte"),
    ("APIs", "a p i's"),
    ("API", "a p i"),
    ("CLIs", "c l i's"),
    ("CLI", "c l i"),
    ("CPUs", "c p u's"),
    ("CPU", "c p u"),
    ("GPUs", "g p u's"),
    ("GPU", "g p u"),
    ("Ave", "avenue"),
    ("etc", "etcetera"),
];

/// Signs, in the order in which they become words.
const SIGNS: &[(char, &str)] = &[
    ('@', " at "),
    ('&', " and "),
    ('%', " percent "),
    (':', "."),
    (';', ","),
    ('+', " plus "),
    ('\\', " backslash "),
    ('~', " about "),
    ('<', " less than "),
    ('>', " greater than "),
    ('=', " equals "),
    ('/', " slash "),
    ('_', " "),
];

/// The words of a text, with the punctuation between them.
///
/// # Errors
/// [`Error::Internal`] for a pattern that fails.
pub fn spoken_english(text: &str) -> Result<String> {
    let text = numbers(&ascii(text))?;
    let text = signs(&abbreviations(&text)?).to_lowercase();
    let known = |c: &char| c.is_ascii_alphanumeric() || " !$%&'*,-.?".contains(*c);
    let text: String = text.chars().filter(known).collect();
    let text = replace(&text, r" +", |_| " ".into())?;
    let text = replace(&text, r" ([.?!,])", |found| group(found, 1).into())?;
    collapse_punctuation(text.trim())
}

/// Letters without their accents; other characters are left out.
fn ascii(text: &str) -> String {
    let mut normalized = NormalizedString::from(text);
    normalized.nfkd();
    let spaced = normalized.get().chars().map(|c| if c.is_ascii_whitespace() { ' ' } else { c });
    spaced.filter(char::is_ascii).collect()
}

fn numbers(text: &str) -> Result<String> {
    let text = replace(text, r"#(\d)", |found| format!("number {}", group(found, 1)))?;
    let text = replace(&text, r"\b(\d+)([KMBTkmbt])\b", |found| {
        let words = match group(found, 2) {
            "K" | "k" => "thousand",
            "M" | "m" => "million",
            "B" | "b" => "billion",
            _ => "trillion",
        };
        format!("{} {words}", group(found, 1))
    })?;
    let text = replace(&text, r"(\d[\d,]+\d)", |found| group(found, 1).replace(',', ""))?;
    let text = replace(&text, r"\$([\d.,]*\d+)", |found| dollars(group(found, 1)))?;
    let text = replace(&text, r"(\d+)(st|nd|rd|th)", |found| {
        let digits = group(found, 1);
        digits.parse().map_or_else(|_| number(digits), |place| ordinal(place).join(" "))
    })?;
    replace(&text, r"\d+", |found| number(group(found, 0)))
}

/// The words of a number; those between 1000 and 3000 are read as years.
fn number(text: &str) -> String {
    let Ok(number) = text.parse::<u64>() else { return digits(text).join(" ") };
    if !(1001..3000).contains(&number) || (2000..2010).contains(&number) {
        return cardinal(number).join(" ");
    }
    let mut words = cardinal(number / 100);
    match number % 100 {
        0 => words.push("hundred".into()),
        rest => {
            words.extend((rest < 10).then(|| "oh".into()));
            words.extend(cardinal(rest));
        }
    }
    words.join(" ")
}

/// An amount of money after its sign.
fn dollars(amount: &str) -> String {
    let amount = amount.replace(',', "");
    let parts: Vec<&str> = amount.split('.').collect();
    let unit = |count: &str, one: &str| {
        let number: u64 = count.parse().unwrap_or(u64::from(!count.is_empty()) * 2);
        let words = if count.parse::<u64>().is_ok() { cardinal(number) } else { digits(count) };
        let plural = if number == 1 { "" } else { "s" };
        (number > 0).then(|| format!("{} {one}{plural}", words.join(" ")))
    };
    match parts.as_slice() {
        [dollars] => unit(dollars, "dollar").unwrap_or_else(|| "zero dollars".into()),
        [dollars, cents] => {
            let both = [unit(dollars, "dollar"), unit(cents, "cent")];
            let both: Vec<String> = both.into_iter().flatten().collect();
            if both.is_empty() { "zero dollars".into() } else { both.join(", ") }
        }
        _ => format!("{amount} dollars"),
    }
}

fn abbreviations(text: &str) -> Result<String> {
    let mut text = text.to_string();
    for (short, long) in ABBREVIATIONS {
        text = replace(&text, &format!(r"(?i)\b{short}\."), |_| (*long).into())?;
    }
    for (short, long) in UNITS {
        text = replace(&text, &format!(r"\b{short}\b"), |_| (*long).into())?;
    }
    Ok(text)
}

fn signs(text: &str) -> String {
    let mut words = String::new();
    for c in text.chars() {
        match SIGNS.iter().find(|(sign, _)| *sign == c) {
            Some((_, word)) => words += word,
            None => words.push(c),
        }
    }
    words
}

/// The strongest mark of several.
fn collapse_punctuation(text: &str) -> Result<String> {
    let text = replace(text, r",+", |_| ",".into())?;
    let text = replace(&text, r"[.,]*\.[.,]*", |_| ".".into())?;
    let text = replace(&text, r"[.,!]*![.,!]*", |_| "!".into())?;
    replace(&text, r"[.,!?]*\?[.,!?]*", |_| "?".into())
}

fn replace(text: &str, pattern: &str, with: impl Fn(&Captures) -> String) -> Result<String> {
    let wrong = |e: fancy_regex::Error| Error::Internal(format!("the pattern `{pattern}`: {e}"));
    let pattern = Regex::new(pattern).map_err(wrong)?;
    Ok(pattern.try_replacen(text, 0, with).map_err(wrong)?.into_owned())
}

fn group<'t>(found: &'t Captures, number: usize) -> &'t str {
    found.get(number).map_or("", |group| group.as_str())
}
