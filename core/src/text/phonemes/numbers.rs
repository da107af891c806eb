//! Numbers in English words, without "and" after hundreds.

const SMALL: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 10] =
    ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
const POWERS: [&str; 7] =
    ["", "thousand", "million", "billion", "trillion", "quadrillion", "quintillion"];
const ORDINALS: &[(&str, &str)] = &[
    ("one", "first"),
    ("two", "second"),
    ("three", "third"),
    ("five", "fifth"),
    ("eight", "eighth"),
    ("nine", "ninth"),
    ("twelve", "twelfth"),
];

/// The words of a whole number.
pub fn cardinal(number: u64) -> Vec<String> {
    if number == 0 {
        return vec![SMALL[0].into()];
    }
    let mut groups = Vec::new();
    let (mut rest, mut power) = (number, 0);
    while rest > 0 {
        let mut words = below_thousand(rest % 1000);
        if !words.is_empty() && power > 0 {
            words.push(POWERS[power]);
        }
        groups.push(words);
        (rest, power) = (rest / 1000, power + 1);
    }
    groups.into_iter().rev().flatten().map(Into::into).collect()
}

fn below_thousand(number: u64) -> Vec<&'static str> {
    let mut words = Vec::new();
    let (hundreds, rest) = ((number / 100) as usize, (number % 100) as usize);
    if hundreds > 0 {
        words.extend([SMALL[hundreds], "hundred"]);
    }
    if rest >= 20 {
        words.push(TENS[rest / 10]);
    }
    match if rest < 20 { rest } else { rest % 10 } {
        0 => {}
        ones => words.push(SMALL[ones]),
    }
    words
}

/// The words of a place in an order.
pub fn ordinal(number: u64) -> Vec<String> {
    let mut words = cardinal(number);
    if let Some(last) = words.last_mut() {
        let irregular = ORDINALS.iter().find(|(cardinal, _)| cardinal == last);
        *last = match irregular {
            Some((_, ordinal)) => (*ordinal).into(),
            None => match last.strip_suffix('y') {
                Some(stem) => format!("{stem}ieth"),
                None => format!("{last}th"),
            },
        };
    }
    words
}

/// The words of a year of four digits.
pub fn year(number: u64) -> Vec<String> {
    let (century, rest) = (number / 100, number % 100);
    if century == 0 || (century % 10 == 0 && rest < 10) {
        return cardinal(number);
    }
    let mut words = cardinal(century);
    match rest {
        0 => words.push("hundred".into()),
        1..10 => words.extend(["oh".into(), SMALL[rest as usize].into()]),
        _ => words.extend(cardinal(rest)),
    }
    words
}

/// The words of digits one by one.
pub fn digits(text: &str) -> Vec<String> {
    text.chars().filter_map(|c| Some(SMALL[c.to_digit(10)? as usize].into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_read_them() {
        let text = |words: Vec<String>| words.join(" ");
        assert_eq!(text(cardinal(1234)), "one thousand two hundred thirty four");
        assert_eq!(text(cardinal(2_000_017)), "two million seventeen");
        assert_eq!(text(ordinal(22)), "twenty second");
        assert_eq!(text(ordinal(30)), "thirtieth");
        assert_eq!(text(year(1984)), "nineteen eighty four");
        assert_eq!(text(year(1905)), "nineteen oh five");
        assert_eq!(text(year(2000)), "two thousand");
        assert_eq!(text(year(1900)), "nineteen hundred");
        assert!(!text(cardinal(u64::MAX)).is_empty());
    }
}
