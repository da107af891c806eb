//! Parts of speech of words that are pronounced by them, from the words around. They are those of the Penn
//! Treebank; a word that is none of these has no tag.

const DETERMINERS: &[&str] = &[
    "a", "an", "the", "this", "that", "these", "those", "my", "your", "his", "her", "its", "our",
    "their", "some", "any", "no", "every", "each", "another", "what", "which", "whose", "first",
    "one",
];
const PREPOSITIONS: &[&str] = &[
    "of", "in", "on", "for", "with", "at", "from", "by", "about", "into", "through", "over",
    "under", "without", "between", "after", "before", "than", "as", "like",
];
const SUBJECTS: &[&str] = &["i", "you", "we", "they", "he", "she", "it", "who", "people"];
const AUXILIARIES: &[&str] = &[
    "to",
    "will",
    "would",
    "can",
    "could",
    "may",
    "might",
    "must",
    "shall",
    "should",
    "do",
    "does",
    "did",
    "let",
    "let's",
    "please",
    "don't",
    "doesn't",
    "didn't",
    "won't",
    "wouldn't",
    "can't",
    "cannot",
    "couldn't",
    "shouldn't",
    "i'll",
    "you'll",
    "he'll",
    "she'll",
    "we'll",
    "they'll",
    "it'll",
    "i'd",
    "you'd",
    "he'd",
    "she'd",
    "we'd",
    "they'd",
    "not",
    "never",
    "always",
    "often",
    "and",
];
const BEING: &[&str] = &[
    "am", "is", "are", "was", "were", "be", "been", "being", "i'm", "you're", "we're", "they're",
    "he's", "she's", "it's", "so", "very", "too", "more", "most", "seem", "seems", "felt", "stay",
    "isn't", "aren't", "wasn't", "weren't", "quite", "get", "gets", "got",
];
const HAVING: &[&str] = &[
    "have", "has", "had", "having", "i've", "you've", "we've", "they've", "haven't", "hasn't",
    "hadn't",
];

/// Past tenses that are pronounced in their own way.
const PAST: &[&str] = &["read", "wound"];

/// The tag of a word between others, all in small letters; none at the ends of a clause.
pub fn tag(word: &str, before: Option<&str>, after: Option<&str>) -> &'static str {
    let is = |list: &[&str], word: Option<&str>| word.is_some_and(|word| list.contains(&word));
    match word {
        "a" => return "DT",
        "that" | "that's" => return of_that(before, after),
        // Without a thing that it stands before, it belongs to a verb.
        "in" => {
            return if is(&["here", "there", "and", "for", "with"], after) { "RP" } else { "IN" };
        }
        _ => {}
    }
    if is(HAVING, before) || (word == "read" && is(BEING, before)) {
        return "VBN";
    }
    if PAST.contains(&word) && is(SUBJECTS, before) {
        return "VBD";
    }
    if is(BEING, before) {
        return "JJ";
    }
    if is(SUBJECTS, before) || is(AUXILIARIES, before) {
        return "VB";
    }
    let is_object =
        is(DETERMINERS, after) || is(SUBJECTS, after) || is(&["me", "him", "them", "us"], after);
    if is(DETERMINERS, before) || is(PREPOSITIONS, before) {
        // Between a determiner and another noun stands an adjective.
        let goes_on = after.is_some_and(|after| {
            !is_object
                && !is(PREPOSITIONS, Some(after))
                && !is(AUXILIARIES, Some(after))
                && !is(BEING, Some(after))
                && !is(HAVING, Some(after))
        });
        return if goes_on { "JJ" } else { "NN" };
    }
    // A verb has an object after it, or stands between several things and a place.
    let is_after_noun = before.is_some_and(|before| before.ends_with('s') || before == word);
    if is_object || (is_after_noun && is(PREPOSITIONS, after)) { "VB" } else { "NN" }
}

/// "That" points at something before a verb and after another word of its clause that is a conjunction.
fn of_that(before: Option<&str>, after: Option<&str>) -> &'static str {
    let is_verb = after.is_none_or(|after| {
        BEING.contains(&after)
            || HAVING.contains(&after)
            || [
                "will", "would", "can", "could", "should", "might", "must", "does", "did", "one",
                "way",
            ]
            .contains(&after)
    });
    let is_first = before.is_none_or(|before| {
        ["that", "if", "because", "but", "and", "or", "when"].contains(&before)
            || PREPOSITIONS.contains(&before)
    });
    let is_relative = before.is_some_and(|before| !is_function_word(before));
    if is_first || (is_verb && !is_relative) { "DT" } else { "IN" }
}

fn is_function_word(word: &str) -> bool {
    [DETERMINERS, PREPOSITIONS, SUBJECTS, AUXILIARIES, BEING, HAVING]
        .iter()
        .any(|list| list.contains(&word))
}
