//! Marks: the texts between which a model writes its thoughts, and how they are found in a stream and
//! in a checkpoint.

/// The words of which one is in the name of every tag of thoughts.
const WORDS: [&str; 3] = ["think", "thought", "reason"];

/// The words in the names of tags about thoughts.
const OTHER_WORDS: [&str; 5] = ["instruct", "mode", "effort", "budget", "language"];

/// The words that tell the tag that opens from the one that closes.
const OPENING: [&str; 4] = ["start", "begin", "open", "prefix"];
const CLOSING: [&str; 4] = ["end", "stop", "close", "suffix"];

/// The marks of thoughts that are no pair of tags.
const OTHERS: [(&str, &str); 6] = [
    ("<|channel>thought", "<channel|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<unused94>thought", "<unused95>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ("Here is my thought process:", "Here is my response:"),
];

/// The marks around thoughts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ThoughtMarks {
    pub open: String,
    pub close: String,
    /// Whether thoughts may begin after text. A tag that people write about, such as `<think>`, opens
    /// thoughts only at the beginning.
    pub anywhere: bool,
}

/// A token that a tokenizer adds to its model's vocabulary.
#[derive(Clone, Debug)]
pub(crate) struct AddedToken {
    pub text: String,
    /// Whether decoding can skip it.
    pub special: bool,
}

/// The marks of thoughts that a template or a vocabulary names.
pub(super) fn thought_marks(template: &str, tokens: &[AddedToken]) -> Vec<ThoughtMarks> {
    let is_token = |text: &str| tokens.iter().any(|token| token.text == text);
    let others = OTHERS.iter().filter(|(open, close)| {
        let first = open.find('>').map_or(*open, |end| &open[..=end]);
        (template.contains(open) && template.contains(close))
            || (is_token(first) && is_token(close.split_inclusive('>').next().unwrap_or(close)))
    });
    let others = others.map(|(open, close)| (open.to_string(), close.to_string()));
    let tags = tags(template).chain(tokens.iter().map(|token| token.text.as_str()));
    let mut tags: Vec<&str> = tags.filter(|tag| has_word(tag)).collect();
    tags.sort_unstable();
    tags.dedup();
    let (closing, opening): (Vec<&str>, Vec<&str>) = tags.into_iter().partition(|tag| closes(tag));
    let pairs = opening.into_iter().filter_map(|open| {
        let close = closing.iter().find(|close| neutral(close) == neutral(open))?;
        Some((open.to_string(), close.to_string()))
    });
    let is_special = |open: &str| {
        tokens.iter().any(|token| token.special && open.starts_with(token.text.as_str()))
    };
    let marks = others.chain(pairs).map(|(open, close)| {
        let anywhere = is_special(&open);
        ThoughtMarks { open, close, anywhere }
    });
    marks.collect()
}

/// The tags in a template: text in angle or square brackets without spaces and quotes.
fn tags(template: &str) -> impl Iterator<Item = &str> {
    const LONGEST: usize = 40;
    template.char_indices().filter_map(|(start, first)| {
        let last = match first {
            '<' => '>',
            '[' => ']',
            '◁' => '▷',
            _ => return None,
        };
        let length = template[start..].char_indices().skip(1).take(LONGEST).find_map(|(at, c)| {
            let is_end = c == last || c.is_whitespace() || "<[\"'{}".contains(c);
            is_end.then_some((at + c.len_utf8(), c == last))
        });
        length.filter(|(_, closed)| *closed).map(|(length, _)| &template[start..start + length])
    })
}

fn has_word(tag: &str) -> bool {
    let tag = tag.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| tag.contains(word));
    tag.contains(['<', '[', '◁']) && has(&WORDS) && !has(&OTHER_WORDS)
}

/// Whether a tag ends thoughts.
fn closes(tag: &str) -> bool {
    tag.contains('/') || words(tag).any(|word| CLOSING.contains(&&*word))
}

/// A tag without what distinguishes the one that opens from the one that closes.
fn neutral(tag: &str) -> (Vec<String>, String) {
    let is_side = |word: &str| OPENING.contains(&word) || CLOSING.contains(&word);
    let rest = |c: &char| !c.is_alphanumeric() && *c != '/';
    (words(tag).filter(|word| !is_side(word)).collect(), tag.chars().filter(rest).collect())
}

fn words(tag: &str) -> impl Iterator<Item = String> {
    tag.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// What [`find`] finds in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A mark, by its index.
    Mark { at: usize, index: usize },
    /// None, and no mark begins before this place.
    Nothing { before: usize },
}

/// The first mark in a text; of several at one place, the longest. More text may follow unless it
/// `ended`.
pub(super) fn find(text: &str, marks: &[&str], ended: bool) -> Found {
    for (at, _) in text.char_indices() {
        let rest = &text[at..];
        let whole = marks.iter().enumerate().filter(|(_, mark)| rest.starts_with(**mark));
        let whole = whole.max_by_key(|(_, mark)| mark.len()).map(|(index, _)| index);
        let length = whole.map_or(0, |index| marks[index].len());
        let begun = marks.iter().any(|mark| mark.len() > length && begins(rest, mark));
        match whole {
            _ if begun && !ended => return Found::Nothing { before: at },
            Some(index) => return Found::Mark { at, index },
            None => {}
        }
    }
    Found::Nothing { before: text.len() }
}

/// Whether more text could make `text` a mark.
pub(super) fn begins(text: &str, mark: &str) -> bool {
    text.len() < mark.len() && mark.starts_with(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(template: &str, tokens: &[&str]) -> Vec<(String, String)> {
        let token = |text: &&str| AddedToken { text: text.to_string(), special: false };
        let tokens: Vec<_> = tokens.iter().map(token).collect();
        let pair = |marks: ThoughtMarks| (marks.open, marks.close);
        thought_marks(template, &tokens).into_iter().map(pair).collect()
    }

    #[test]
    fn pairs_of_tags_are_found_in_vocabularies_and_templates() {
        for (open, close) in [
            ("<think>", "</think>"),
            ("<thinking>", "</thinking>"),
            ("<thought>", "</thought>"),
            ("<reasoning>", "</reasoning>"),
            ("<|think|>", "<|/think|>"),
            ("<seed:think>", "</seed:think>"),
            ("<longcat_think>", "</longcat_think>"),
            ("[THINK]", "[/THINK]"),
            ("<|think:start|>", "<|think:end|>"),
            ("<|START_THINKING|>", "<|END_THINKING|>"),
            ("<|begin_of_thought|>", "<|end_of_thought|>"),
            ("<|thinking_start|>", "<|thinking_end|>"),
            ("<extended_thinking>", "</extended_thinking>"),
            ("◁think▷", "◁/think▷"),
            ("<|inner_prefix|>", "<|inner_suffix|>"),
        ] {
            let pair = vec![(open.to_string(), close.to_string())];
            assert_eq!(marks("", &["<s>", open, "<|end|>", close]), pair);
            let template = format!("{{{{ '{open}\\n' + m.thinking + '{close}\\n\\n' }}}}");
            assert_eq!(marks(&template, &[]), pair, "{template}");
        }
        assert!(marks("{% if a < b and thinking > c[reason] %}", &["/nothink"]).is_empty());
        assert!(marks("", &["<|think|>", "<think>", "<|end|>", "<pad>"]).is_empty());
        let channel = [("<|channel>thought".to_string(), "<channel|>".to_string())];
        assert_eq!(marks("", &["<|channel>", "<channel|>", "<|think|>"]), channel);
    }

    #[test]
    fn the_first_and_longest_mark_is_found() {
        let marks = ["<tool>", "<tool>all", ">>"];
        let mark = |at, index| Found::Mark { at, index };
        for (text, ended, expected) in [
            ("é<tool>x", false, mark(2, 0)),
            ("<tool>a", false, Found::Nothing { before: 0 }),
            ("<tool>a", true, mark(0, 0)),
            ("<tool>all", false, mark(0, 1)),
            ("a<to", false, Found::Nothing { before: 1 }),
            ("a<to", true, Found::Nothing { before: 4 }),
            ("a<to>>", false, mark(4, 2)),
            ("", false, Found::Nothing { before: 0 }),
        ] {
            assert_eq!(find(text, &marks, ended), expected, "{text:?}");
        }
    }
}
