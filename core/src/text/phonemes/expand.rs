//! Abbreviations, dates, times and units as the words and figures that they are read as.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// Abbreviations with a full stop.
const ABBREVIATIONS: &[(&str, &str)] = &[
    ("approx.", "approximately"),
    ("apt.", "apartment"),
    ("ave.", "avenue"),
    ("blvd.", "boulevard"),
    ("capt.", "captain"),
    ("co.", "company"),
    ("col.", "colonel"),
    ("corp.", "corporation"),
    ("dept.", "department"),
    ("e.g.", "for example"),
    ("est.", "estimated"),
    ("fig.", "figure"),
    ("ft.", "fort"),
    ("gen.", "general"),
    ("gov.", "governor"),
    ("hon.", "honorable"),
    ("i.e.", "that is"),
    ("inc.", "incorporated"),
    ("jr.", "junior"),
    ("lt.", "lieutenant"),
    ("ltd.", "limited"),
    ("maj.", "major"),
    ("mt.", "mount"),
    ("prof.", "professor"),
    ("rd.", "road"),
    ("rep.", "representative"),
    ("rev.", "reverend"),
    ("sen.", "senator"),
    ("sgt.", "sergeant"),
    ("sr.", "senior"),
    ("vol.", "volume"),
];
/// Units after a number: one of them, and several.
const UNITS: &[(&str, &str, &str)] = &[
    ("kg", "kilogram", "kilograms"),
    ("g", "gram", "grams"),
    ("mg", "milligram", "milligrams"),
    ("lb", "pound", "pounds"),
    ("lbs", "pound", "pounds"),
    ("oz", "ounce", "ounces"),
    ("km", "kilometer", "kilometers"),
    ("m", "meter", "meters"),
    ("cm", "centimeter", "centimeters"),
    ("mm", "millimeter", "millimeters"),
    ("ft", "foot", "feet"),
    ("mi", "mile", "miles"),
    ("mph", "mile per hour", "miles per hour"),
    ("km/h", "kilometer per hour", "kilometers per hour"),
    ("hr", "hour", "hours"),
    ("hrs", "hour", "hours"),
    ("min", "minute", "minutes"),
    ("sec", "second", "seconds"),
    ("ms", "millisecond", "milliseconds"),
    ("l", "liter", "liters"),
    ("ml", "milliliter", "milliliters"),
    ("hz", "hertz", "hertz"),
    ("khz", "kilohertz", "kilohertz"),
    ("mhz", "megahertz", "megahertz"),
    ("ghz", "gigahertz", "gigahertz"),
    ("kb", "kilobyte", "kilobytes"),
    ("mb", "megabyte", "megabytes"),
    ("gb", "gigabyte", "gigabytes"),
    ("tb", "terabyte", "terabytes"),
    ("kw", "kilowatt", "kilowatts"),
    ("°c", "degree Celsius", "degrees Celsius"),
    ("°f", "degree Fahrenheit", "degrees Fahrenheit"),
    ("°", "degree", "degrees"),
];
const FRACTIONS: &[(&str, &str)] = &[
    ("1/2", "one half"),
    ("1/3", "one third"),
    ("2/3", "two thirds"),
    ("1/4", "one quarter"),
    ("3/4", "three quarters"),
    ("½", "one half"),
    ("¼", "one quarter"),
    ("¾", "three quarters"),
];
const LARGE: [&str; 4] = ["thousand", "million", "billion", "trillion"];
const CURRENCIES: [(char, &str); 3] = [('$', "dollars"), ('£', "pounds"), ('€', "euros")];

/// A text whose words are all written out, but for numbers.
pub fn expand(text: &str) -> String {
    let chunks: Vec<&str> = text.split_whitespace().collect();
    let mut out: Vec<String> = Vec::with_capacity(chunks.len());
    let mut i = 0;
    while i < chunks.len() {
        let (chunk, next) = (chunks[i], chunks.get(i + 1).copied());
        let before = out.last().map(|word| word.rsplit(' ').next().unwrap_or_default().to_string());
        let Some((lead, core, trail)) = split(chunk) else {
            out.push(chunk.to_string());
            i += 1;
            continue;
        };
        if let Some((words, count)) = amount(core, next) {
            out.push(format!("{lead}{words}{}", if count > 1 { "" } else { trail }));
            i += count;
            continue;
        }
        let words = abbreviation(core, trail, next, before.as_deref());
        match words {
            Some((words, trail)) => out.push(format!("{lead}{words}{trail}")),
            None => match figure(core, before.as_deref(), next) {
                Some(words) => out.push(format!("{lead}{words}{trail}")),
                None => out.push(chunk.to_string()),
            },
        }
        i += 1;
    }
    out.join(" ")
}

/// The marks before a word, the word, and the marks after it.
fn split(chunk: &str) -> Option<(&str, &str, &str)> {
    let is_inner = |c: char| c.is_alphanumeric() || "$£€#°%".contains(c);
    let start = chunk.find(is_inner)?;
    let last = chunk.char_indices().rev().find(|(_, c)| is_inner(*c))?;
    let end = last.0 + last.1.len_utf8();
    Some((&chunk[..start], &chunk[start..end], &chunk[end..]))
}

/// `$5 million` as five million dollars; with the number of chunks that it takes.
fn amount(core: &str, next: Option<&str>) -> Option<(String, usize)> {
    let (_, currency) = CURRENCIES.iter().find(|(symbol, _)| core.starts_with(*symbol))?;
    let (number, next) = (core.trim_start_matches(['$', '£', '€']), next?);
    let (_, large, trail) = split(next)?;
    let is_number = number.starts_with(|c: char| c.is_ascii_digit());
    (is_number && LARGE.contains(&large))
        .then(|| (format!("{number} {large} {currency}{trail}"), 2))
}

fn abbreviation<'a>(
    core: &str,
    trail: &'a str,
    next: Option<&str>,
    before: Option<&str>,
) -> Option<(String, &'a str)> {
    let starts = |is: fn(char) -> bool| next.is_some_and(|next| next.starts_with(is));
    let is_number = |word: &str| word.chars().all(|c| c.is_ascii_digit() || ".,".contains(c));
    let months = MONTHS.iter().find(|month| core.len() == 3 && month.starts_with(core));
    if let Some(month) = months.filter(|_| starts(|c| c.is_ascii_digit())) {
        return Some((month.to_string(), trail.strip_prefix('.').unwrap_or(trail)));
    }
    if let Some(unit) = before.filter(|before| is_number(before)).and_then(|n| unit(core, n)) {
        return Some((unit, trail));
    }
    let rest = trail.strip_prefix('.')?;
    let written = core.to_lowercase() + ".";
    if written == "st." {
        let name = if starts(char::is_uppercase) { "Saint" } else { "street" };
        return Some((name.into(), rest));
    }
    if written == "no." && starts(|c| c.is_ascii_digit()) {
        return Some(("number".into(), rest));
    }
    let (_, words) = ABBREVIATIONS.iter().find(|(short, _)| *short == written)?;
    // The full stop of an abbreviation at the end of a text ends the sentence, too.
    let is_last = next.is_none() && rest.is_empty();
    Some((words.to_string(), if is_last { trail } else { rest }))
}

fn unit(name: &str, number: &str) -> Option<String> {
    let lower = name.to_lowercase();
    let (_, one, several) = UNITS.iter().find(|(short, ..)| *short == lower)?;
    Some(if number == "1" { one } else { several }.to_string())
}

/// Dates, times, fractions, units and numbers of things.
fn figure(core: &str, before: Option<&str>, next: Option<&str>) -> Option<String> {
    if let Some((_, words)) = FRACTIONS.iter().find(|(written, _)| *written == core) {
        return Some(words.to_string());
    }
    if let Some(number) = core.strip_prefix('#').filter(|rest| rest.parse::<u32>().is_ok()) {
        return Some(format!("number {number}"));
    }
    let day: Option<u32> = core.parse().ok().filter(|day| (1..=31).contains(day));
    let is_month = before.is_some_and(|before| MONTHS.contains(&before));
    if let Some(day) = day.filter(|_| is_month && core.len() < 3) {
        return Some(ordinal_day(day));
    }
    date(core).or_else(|| time(core, next)).or_else(|| {
        let end = core.find(|c: char| !(c.is_ascii_digit() || ".,".contains(c)))?;
        let (number, rest) = core.split_at(end);
        let has_digits = number.ends_with(|c: char| c.is_ascii_digit());
        match &*rest.to_lowercase() {
            "am" | "pm" if has_digits => Some(format!("{number} {}", rest.to_uppercase())),
            _ if has_digits => Some(format!("{number} {}", unit(rest, number)?)),
            _ => None,
        }
    })
}

fn ordinal_day(day: u32) -> String {
    let end = match day {
        1 | 21 | 31 => "st",
        2 | 22 => "nd",
        3 | 23 => "rd",
        _ => "th",
    };
    format!("{day}{end}")
}

/// `1/5/2024`, as Americans write it, and `2024-01-05`.
fn date(core: &str) -> Option<String> {
    let slashed: Vec<&str> = core.split('/').collect();
    let dashed: Vec<&str> = core.split('-').collect();
    let (year, month, day) = match (&slashed[..], &dashed[..]) {
        ([month, day, year], _) if [2, 4].contains(&year.len()) => (*year, *month, *day),
        (_, [year, month, day]) if year.len() == 4 => (*year, *month, *day),
        _ => return None,
    };
    let numbers = [year, month, day].map(|part| part.parse::<u32>().ok());
    let [Some(mut year), Some(month @ 1..=12), Some(day @ 1..=31)] = numbers else { return None };
    if year < 100 {
        year += if year < 50 { 2000 } else { 1900 };
    }
    let month = MONTHS[month as usize - 1];
    Some(format!("{month} {}, {year}", ordinal_day(day)))
}

/// `3:05`, with `pm` or without.
fn time(core: &str, next: Option<&str>) -> Option<String> {
    let (hours, rest) = core.split_once(':')?;
    let minutes = rest.get(..2)?;
    let half = rest[2..].to_uppercase();
    let (hour, minute): (u32, u32) = (hours.parse().ok()?, minutes.parse().ok()?);
    let has_half = ["AM", "PM"].contains(&&*half);
    if hour > 24 || minute > 59 || !(half.is_empty() || has_half) {
        return None;
    }
    let next = next.map(|next| next.replace('.', "").to_lowercase());
    let is_half_next = next.is_some_and(|next| next.starts_with("am") || next.starts_with("pm"));
    let mut words = match minute {
        0 if has_half || is_half_next => format!("{hour}"),
        0 => format!("{hour} o'clock"),
        1..10 => format!("{hour} oh {minute}"),
        _ => format!("{hour} {minute}"),
    };
    if has_half {
        words += &format!(" {half}");
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn what_is_abbreviated_is_written_out() {
        for (text, expected) in [
            ("On 1/5/2024 at 3:05pm.", "On January 5th, 2024 at 3 oh 5 PM."),
            ("(2024-12-31)", "(December 31st, 2024)"),
            ("Jan. 3, at 4:00.", "January 3rd, at 4 o'clock."),
            ("5kg or 1 km", "5 kilograms or 1 kilometer"),
            ("St. Louis, Main St.", "Saint Louis, Main street"),
            ("$5 million, e.g. #3", "5 million dollars, for example number 3"),
            ("20°C is 1/2", "20 degrees Celsius is one half"),
            ("No. 5? No.", "number 5? No."),
        ] {
            assert_eq!(expand(text), expected);
        }
    }
}
