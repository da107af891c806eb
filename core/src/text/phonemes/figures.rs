//! The phonemes of numbers, alone, with a currency, as years and places in an order.

use super::{
    numbers::{cardinal, digits, ordinal, year},
    stress::{Stress, stressed},
    words::{Words, plural},
};

const ORDINALS: [&str; 4] = ["st", "nd", "rd", "th"];
const ENDINGS: [&str; 6] = ["st", "nd", "rd", "th", "'s", "s"];

/// The names of a currency and of its hundredth.
pub type Currency = (&'static str, &'static str);

const CURRENCIES: [(char, Currency); 3] =
    [('$', ("dollar", "cent")), ('£', ("pound", "pence")), ('€', ("euro", "cent"))];

/// The currency of a symbol.
pub fn currency(symbol: char) -> Option<Currency> {
    CURRENCIES.iter().find(|(known, _)| *known == symbol).map(|(_, currency)| *currency)
}

/// A number that stands in a text.
pub struct Figure<'a> {
    number: &'a str,
    ending: &'a str,
    is_negative: bool,
    /// Whether it begins its word.
    is_first: bool,
}

impl<'a> Figure<'a> {
    /// Reads a number with its ending; none for anything else.
    pub fn read(word: &'a str, is_first: bool) -> Option<Self> {
        let ending = ENDINGS.into_iter().find(|ending| word.ends_with(ending)).unwrap_or("");
        let number = &word[..word.len() - ending.len()];
        let is_negative = is_first && number.starts_with('-');
        let number = if is_negative { &number[1..] } else { number };
        let is_number = number.chars().all(|c| c.is_ascii_digit() || ",.".contains(c))
            && number.contains(|c: char| c.is_ascii_digit());
        is_number.then_some(Figure { number, ending, is_negative, is_first })
    }

    /// Its phonemes.
    pub fn phonemes(&self, words: &Words, currency: Option<Currency>) -> String {
        let mut said = Vec::new();
        if self.is_negative {
            said.push(words.plain("minus"));
        }
        match currency.filter(|_| is_amount(self.number)) {
            Some(currency) => self.amount(words, currency, &mut said),
            None => {
                said.extend(self.words(currency).iter().map(|word| match &**word {
                    "point" => stressed(&words.plain(word), Stress::None),
                    word => words.plain(word),
                }));
                if let Some((unit, _)) = currency {
                    said.push(plural(&words.plain(unit)));
                }
            }
        }
        let said = said.join(" ");
        if self.ending.ends_with('s') { plural(&said) } else { said }
    }

    fn amount(&self, words: &Words, (unit, part): Currency, said: &mut Vec<String>) {
        let number = self.number.replace(',', "");
        let (whole, cents) = number.split_once('.').unwrap_or((&number, ""));
        let cents = match cents.len() {
            1 => format!("{cents}0"),
            _ => cents.to_string(),
        };
        let pairs = [(whole, unit), (&*cents, part)];
        let is_nothing = |text: &str| text.chars().all(|c| c == '0');
        let is_free = is_nothing(whole) && is_nothing(&cents);
        for (number, unit) in pairs.into_iter().filter(|(number, _)| !is_nothing(number)) {
            if !said.is_empty() && unit == part {
                said.push(words.plain("and"));
            }
            said.extend(spelled_out(number).iter().map(|word| words.plain(word)));
            let name = words.plain(unit);
            let is_one = number.trim_start_matches('0') == "1" || unit == "pence";
            said.push(if is_one { name } else { plural(&name) });
        }
        if is_free {
            said.extend([words.plain("zero"), plural(&words.plain(unit))]);
        }
    }

    fn words(&self, currency: Option<Currency>) -> Vec<String> {
        let number = self.number.replace(',', "");
        let is_whole = !number.contains('.');
        if ORDINALS.contains(&self.ending) && is_whole {
            return number.parse().map_or_else(|_| digits(&number), ordinal);
        }
        if self.number.len() == 4 && is_whole && currency.is_none() && !self.number.contains(',') {
            // Places behind a leading zero are no years.
            let is_year = !number.starts_with('0') && !self.is_negative;
            return if is_year {
                number.parse().map_or_else(|_| digits(&number), year)
            } else {
                digits(&number)
            };
        }
        if is_whole {
            let is_code = !self.is_first && number.len() > 3;
            return if is_code { digits(&number) } else { spelled_out(&number) };
        }
        if number.matches('.').count() > 1 {
            let parts = number.split('.').filter(|part| !part.is_empty());
            return parts.map(spelled_out).collect::<Vec<_>>().join(&"point".to_string());
        }
        let (whole, rest) = number.split_once('.').unwrap_or((&number, ""));
        let mut words = if whole.is_empty() { Vec::new() } else { spelled_out(whole) };
        words.push("point".into());
        words.extend(digits(rest));
        words
    }
}

/// Whether a number is one of a currency and hundredths of it.
fn is_amount(number: &str) -> bool {
    match number.split_once('.') {
        Some((_, cents)) => cents.len() < 3 && !cents.contains('.'),
        None => true,
    }
}

/// The words of a whole number; its digits where it begins with a zero or is too long.
fn spelled_out(number: &str) -> Vec<String> {
    let is_code = number.len() > 1 && number.starts_with('0');
    match number.parse() {
        Ok(value) if !is_code => cardinal(value),
        _ => digits(number),
    }
}
