//! Python's formats: `'%s' % value` and `'{}'.format(value)`.

use super::arguments::{Arguments, bounded, width};
use super::failure::{Failure, Result};
use super::text::Text;
use super::value::{Kind, Number, Value};
use super::{operators, print};

/// How a value is written.
#[derive(Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    is_alternate: bool,
    is_zero_padded: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// `template % arguments`.
pub fn percent(template: &Text, arguments: &Value) -> Result<Text> {
    let items = match arguments {
        Value::List(list) if list.kind == Kind::Tuple => list.to_vec(),
        other => vec![other.clone()],
    };
    let mut percent = Percent { source: template.as_str(), at: 0, items: items.into_iter() };
    let mut out = Text::default();
    while let Some(found) = percent.source[percent.at..].find('%') {
        out.push_slice(template, percent.at..percent.at + found);
        percent.at += found + 1;
        percent.conversion(arguments, &mut out)?;
    }
    out.push_slice(template, percent.at..percent.source.len());
    // Only the items of a tuple and a single plain value must be used up.
    let may_remain = match arguments {
        Value::Dict(_) => true,
        Value::List(list) => list.kind != Kind::Tuple,
        _ => false,
    };
    match percent.items.next() {
        Some(_) if !may_remain => Err(Failure::of("not all arguments were converted")),
        _ => Ok(out),
    }
}

/// The state of `%`: the place in the template and the arguments that are left.
struct Percent<'a> {
    source: &'a str,
    at: usize,
    items: std::vec::IntoIter<Value>,
}

impl Percent<'_> {
    fn peek(&self) -> Result<char> {
        self.source[self.at..].chars().next().ok_or_else(|| Failure::of("incomplete format"))
    }

    fn next_if(&mut self, is_wanted: impl Fn(char) -> bool) -> Result<Option<char>> {
        let c = self.peek()?;
        if !is_wanted(c) {
            return Ok(None);
        }
        self.at += c.len_utf8();
        Ok(Some(c))
    }

    fn argument(&mut self) -> Result<Value> {
        self.items.next().ok_or_else(|| Failure::of("not enough arguments for the format"))
    }

    /// A number, or a star for one from the arguments.
    fn number(&mut self) -> Result<usize> {
        if self.next_if(|c| c == '*')?.is_some() {
            return width(&self.argument()?);
        }
        let mut number = 0;
        while let Some(digit) = self.next_if(|c| c.is_ascii_digit())? {
            number = bounded(number * 10 + digit.to_digit(10).unwrap_or_default() as usize)?;
        }
        Ok(number)
    }

    /// The part after a `%`.
    fn conversion(&mut self, arguments: &Value, out: &mut Text) -> Result<()> {
        let mut value = None;
        if self.next_if(|c| c == '(')?.is_some() {
            let rest = &self.source[self.at..];
            let end = rest.find(')').ok_or_else(|| Failure::of("incomplete format"))?;
            let found = operators::item(arguments, &Value::written(&rest[..end]))?;
            operators::refuse_undefined(&found)?;
            value = Some(found);
            self.at += end + 1;
        }
        let mut spec = Spec::default();
        while let Some(flag) = self.next_if(|c| "-+ 0#".contains(c))? {
            match flag {
                '-' => spec.align = Some('<'),
                '0' => spec.is_zero_padded = true,
                '#' => spec.is_alternate = true,
                sign => spec.sign = Some(sign),
            }
        }
        spec.width = self.number()?;
        if self.next_if(|c| c == '.')?.is_some() {
            spec.precision = Some(self.number()?);
        }
        while self.next_if(|c| "hlL".contains(c))?.is_some() {}
        let kind = self.peek()?;
        self.at += kind.len_utf8();
        if kind == '%' {
            out.push_str("%", false);
            return Ok(());
        }
        let value = match value {
            Some(value) => value,
            None => self.argument()?,
        };
        let (number, text) = (Number::of(&value), value.as_text());
        match (kind, number) {
            ('s' | 'r' | 'a', _) | ('c', None) if kind != 'c' || text.is_some() => {
                let is_repr = matches!(kind, 'r' | 'a');
                let text = if is_repr { print::repr(&value) } else { print::text(&value) };
                spec.align = spec.align.or(Some('>'));
                spec.text(&text, out);
                Ok(())
            }
            ('d' | 'i' | 'u', Some(Number::Float(number))) => {
                spec.write(&Value::Int(number as i128), 'd', out)
            }
            ('d' | 'i' | 'u', Some(_)) => spec.write(&value, 'd', out),
            ('x' | 'X' | 'o' | 'c' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G', Some(_)) => {
                spec.write(&value, kind, out)
            }
            _ => {
                let name = value.type_name();
                Err(Failure::of(format!("a {name} cannot be formatted as '{kind}'")))
            }
        }
    }
}

/// `template.format(…)`.
pub fn format(template: &Text, arguments: &Arguments) -> Result<Text> {
    let mut fields = Fields { arguments, next: 0 };
    fields.format(template, 0)
}

struct Fields<'a> {
    arguments: &'a Arguments,
    /// The place of the next `{}`.
    next: usize,
}

impl Fields<'_> {
    fn format(&mut self, template: &Text, depth: usize) -> Result<Text> {
        let source = template.as_str();
        let (mut out, mut at) = (Text::default(), 0);
        while let Some(found) = source[at..].find(['{', '}']) {
            out.push_slice(template, at..at + found);
            at += found;
            let (brace, rest) = source[at..].split_at(1);
            if rest.starts_with(brace) {
                out.push_slice(template, at..at + 1);
                at += 2;
                continue;
            }
            let end = matching(rest).filter(|_| brace == "{" && depth < 2);
            let end = end.ok_or_else(|| Failure::of(format!("single '{brace}' in a format")))?;
            self.field(&rest[..end], depth, &mut out)?;
            at += end + 2;
        }
        out.push_slice(template, at..source.len());
        Ok(out)
    }

    fn field(&mut self, field: &str, depth: usize, out: &mut Text) -> Result<()> {
        let (field, spec) = match field.find(':') {
            Some(at) => (&field[..at], &field[at + 1..]),
            None => (field, ""),
        };
        let (name, conversion) = field.split_once('!').unwrap_or((field, ""));
        let mut value = self.value(name)?;
        value = match conversion {
            "" => value,
            "r" | "a" => print::repr(&value).into(),
            "s" => print::text(&value).into(),
            other => return Err(Failure::of(format!("unknown conversion '{other}'"))),
        };
        if spec.is_empty() {
            print::push(&value, out);
            return Ok(());
        }
        let spec = self.format(&Text::written(spec), depth + 1)?;
        let spec = Spec::parse(spec.as_str())?;
        let kind = spec.kind.unwrap_or('\0');
        spec.write(&value, kind, out)
    }

    /// The value of a name with attributes and subscripts, such as `0.name[key]`.
    fn value(&mut self, name: &str) -> Result<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let arguments = self.arguments;
        let found = match first.parse::<usize>() {
            Ok(index) => arguments.positional.get(index),
            Err(_) if first.is_empty() => {
                self.next += 1;
                arguments.positional.get(self.next - 1)
            }
            Err(_) => {
                let mut named = arguments.named.iter();
                named.find(|(name, _)| &**name == first).map(|(_, value)| value)
            }
        };
        let mut value = found
            .cloned()
            .ok_or_else(|| Failure::of(format!("the format has no argument `{first}`")))?;
        while !rest.is_empty() {
            let is_item = rest.starts_with('[');
            let inner = &rest[1..];
            let end = if is_item { inner.find(']') } else { inner.find(['.', '[']) };
            let end = end.unwrap_or(inner.len());
            let key = &inner[..end];
            value = match key.parse() {
                Ok(index) if is_item => operators::item(&value, &Value::Int(index))?,
                _ if is_item => operators::item(&value, &Value::written(key))?,
                _ => operators::attribute(&value, &key.into())?,
            };
            operators::refuse_undefined(&value)?;
            rest = inner.get(end + usize::from(is_item)..).unwrap_or_default();
        }
        Ok(value)
    }
}

/// The place of the brace that closes a field.
fn matching(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

impl Spec {
    /// `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
    fn parse(text: &str) -> Result<Self> {
        let mut spec = Spec::default();
        let mut chars = text.chars().peekable();
        let second = text.chars().nth(1);
        if second.is_some_and(|c| "<>=^".contains(c)) {
            spec.fill = chars.next();
            spec.align = chars.next();
        } else {
            spec.align = chars.next_if(|c| "<>=^".contains(*c));
        }
        spec.sign = chars.next_if(|c| "+- ".contains(*c));
        spec.is_alternate = chars.next_if_eq(&'#').is_some();
        spec.is_zero_padded = chars.next_if_eq(&'0').is_some();
        while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
            chars.next();
            spec.width = bounded(spec.width * 10 + digit as usize)?;
        }
        spec.grouping = chars.next_if(|c| ",_".contains(*c));
        if chars.next_if_eq(&'.').is_some() {
            let mut precision = 0;
            while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                chars.next();
                precision = bounded(precision * 10 + digit as usize)?;
            }
            spec.precision = Some(precision);
        }
        spec.kind = chars.next();
        match chars.next() {
            None => Ok(spec),
            Some(_) => Err(Failure::of(format!("invalid format '{text}'"))),
        }
    }

    fn write(&self, value: &Value, kind: char, out: &mut Text) -> Result<()> {
        let number = Number::of(value).filter(|_| kind != 's');
        let Some(number) = number else {
            if !matches!(kind, '\0' | 's') {
                let kind_of = value.type_name();
                return Err(Failure::of(format!("a {kind_of} cannot be formatted as '{kind}'")));
            }
            self.text(&print::text(value), out);
            return Ok(());
        };
        let digits = match (kind, number) {
            ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%', number) => self.float(number.float(), kind),
            ('\0' | 'n', Number::Float(number)) => match self.precision {
                Some(_) => self.float(number, 'g'),
                None => print::float(number),
            },
            ('\0' | 'd' | 'n', Number::Int(number)) => number.to_string(),
            ('c', Number::Int(number)) => {
                let c = u32::try_from(number).ok().and_then(char::from_u32);
                c.ok_or_else(|| Failure::of("not a character"))?.to_string()
            }
            ('x' | 'X' | 'o' | 'b', Number::Int(number)) => {
                let (size, sign) = (number.unsigned_abs(), if number < 0 { "-" } else { "" });
                let (prefix, digits) = match kind {
                    'x' => ("0x", format!("{size:x}")),
                    'X' => ("0X", format!("{size:X}")),
                    'o' => ("0o", format!("{size:o}")),
                    _ => ("0b", format!("{size:b}")),
                };
                format!("{sign}{}{digits}", if self.is_alternate { prefix } else { "" })
            }
            _ => return Err(Failure::of(format!("a float cannot be formatted as '{kind}'"))),
        };
        self.number(&digits, out);
        Ok(())
    }

    fn float(&self, number: f64, kind: char) -> String {
        let precision = self.precision.unwrap_or(6);
        let text = match kind.to_ascii_lowercase() {
            _ if !number.is_finite() => print::float(number),
            'e' => exponent(&format!("{number:.precision$e}")),
            'f' => format!("{number:.precision$}"),
            '%' => format!("{:.precision$}%", number * 100.0),
            _ => self.general(number, precision.max(1)),
        };
        if kind.is_uppercase() { text.to_uppercase() } else { text }
    }

    /// The shorter one of fixed and scientific notation, with `precision` digits.
    fn general(&self, number: f64, precision: usize) -> String {
        let scientific = format!("{number:.*e}", precision - 1);
        let power: i32 =
            scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or_default();
        let is_fixed = -4 <= power && i64::from(power) < precision as i64;
        let decimals = (precision as i64 - 1 - i64::from(power)).max(0) as usize;
        let text = if is_fixed { format!("{number:.decimals$}") } else { scientific };
        let (digits, power) = text.split_once('e').map_or((&*text, None), |(d, e)| (d, Some(e)));
        let strips = !self.is_alternate && digits.contains('.');
        let digits =
            if strips { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
        power.map_or_else(|| digits.into(), |power| exponent(&format!("{digits}e{power}")))
    }

    /// Pads a number, whose sign comes before the padding.
    fn number(&self, digits: &str, out: &mut Text) {
        let (sign, digits) = match digits.strip_prefix('-') {
            Some(digits) => ("-".to_string(), digits),
            None => (
                self.sign.filter(|sign| *sign != '-').map(String::from).unwrap_or_default(),
                digits,
            ),
        };
        let digits = match self.grouping {
            Some(mark) => grouped(digits, mark),
            None => digits.to_string(),
        };
        let align = self.align.unwrap_or(if self.is_zero_padded { '=' } else { '>' });
        let is_inner = align == '=';
        let fill = self.fill.unwrap_or(if self.is_zero_padded && is_inner { '0' } else { ' ' });
        let missing = self.width.saturating_sub(sign.chars().count() + digits.chars().count());
        let text = if is_inner {
            format!("{sign}{}{digits}", fill.to_string().repeat(missing))
        } else {
            sign + &digits
        };
        Spec { align: Some(align), fill: Some(fill), ..Spec::of_width(self.width) }
            .text(&Text::written(&text), out);
    }

    fn of_width(width: usize) -> Self {
        Spec { width, ..Spec::default() }
    }

    /// Cuts a text to the precision and pads it to the width.
    fn text(&self, text: &Text, out: &mut Text) {
        let length = text.as_str().chars().count();
        let kept = self.precision.map_or(length, |precision| precision.min(length));
        let missing = self.width.saturating_sub(kept);
        let left = match self.align {
            Some('>' | '=') => missing,
            Some('^') => missing / 2,
            _ => 0,
        };
        let fill = |count: usize| self.fill.unwrap_or(' ').to_string().repeat(count);
        out.push_str(&fill(left), false);
        out.push_slice(text, operators::bytes(text, 0..kept));
        out.push_str(&fill(missing - left), false);
    }
}

/// An exponent with a sign and at least two digits.
fn exponent(text: &str) -> String {
    let (digits, power) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
    format!("{digits}e{sign}{power:0>2}")
}

/// Marks between groups of three digits.
fn grouped(digits: &str, mark: char) -> String {
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let mut out = String::new();
    for (index, c) in digits[..end].chars().enumerate() {
        if index > 0 && (end - index).is_multiple_of(3) {
            out.push(mark);
        }
        out.push(c);
    }
    out + &digits[end..]
}

/// `str.zfill`: zeros after the sign.
pub fn zero_filled(text: &Text, zeros: &Value) -> Result<Text> {
    let missing = width(zeros)?.saturating_sub(text.as_str().chars().count());
    let sign = usize::from(text.as_str().starts_with(['+', '-']));
    let mut out = text.slice(0..sign);
    out.push_str(&"0".repeat(missing), false);
    out.push_slice(text, sign..text.as_str().len());
    Ok(out)
}
