//! Random walks: whatever tokens are chosen of those that a grammar admits, the text is one of the
//! grammar.

use super::{Compiler, Grammar, OutputFormat, source::LONGEST};
use crate::{answer::schema::check, text::Tokenizer};
use serde_json::{Value as Json, json};
use std::fs;

/// Pseudo-random numbers below `bound` (xorshift).
pub fn random(state: &mut u64, bound: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % bound as u64) as usize
}

/// A text of a grammar, of tokens chosen at random.
pub fn walk(grammar: &mut Grammar, tokenizer: &Tokenizer, seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let before = tokenizer.encode("a", false).unwrap();
    let mut text = tokenizer.detokenizer(false).after(before[0]).unwrap();
    let mut whole = String::new();
    for _ in 0..20_000 {
        let admitted = grammar.mask().unwrap();
        let ids = (0..).zip(&admitted.tokens).flat_map(|(index, bits)| {
            (0..32).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| 32 * index + bit)
        });
        let ids: Vec<u32> = ids.collect();
        if ids.is_empty() || admitted.end && random(&mut state, 2) == 0 {
            assert!(admitted.end, "nothing follows {whole:?}");
            return whole + &text.finish().unwrap();
        }
        let id = ids[random(&mut state, ids.len())];
        grammar.accept(id).unwrap();
        whole += &text.push(id).unwrap();
    }
    panic!("no end of {whole:?}");
}

/// Tokenizers of bytes, of bytes beside pieces, of pieces, and of parts of words.
pub fn tokenizers() -> Vec<(&'static str, Tokenizer)> {
    let ascii: Vec<String> = (' '..='~').skip(1).map(String::from).collect();
    let pieces = ["{\"", "\":", "\",", "true", "null", "10", "\n", "é", "日本"].map(String::from);
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let spaced = ascii.iter().flat_map(|piece| [piece.clone(), format!("▁{piece}")]);
    let spaced: Vec<String> =
        spaced.chain(pieces.clone()).chain(["▁".into(), "▁▁".into()]).collect();
    let parts = ascii.iter().chain(&pieces).flat_map(|piece| [piece.clone(), format!("##{piece}")]);
    let parts: Vec<String> = parts.collect();
    let byte_decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                           "split": true});
    let words = json!({"type": "WordPiece", "prefix": "##", "cleanup": false});
    let level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                       "use_regex": true});
    let letters = ('\u{100}'..='\u{143}').map(String::from);
    let high = ('\u{a1}'..='\u{ff}').filter(|c| *c != '\u{ad}').map(String::from);
    let level_pieces = ascii.iter().cloned().chain(letters).chain(high).chain(pieces.clone());
    vec![
        ("bytes", tokenizer(level_pieces.collect(), level)),
        ("bytes beside pieces", tokenizer([bytes, spaced.clone()].concat(), byte_decoder)),
        ("pieces", tokenizer(spaced, metaspace)),
        ("parts of words", tokenizer(parts, words)),
    ]
}

fn tokenizer(tokens: Vec<String>, decoder: Json) -> Tokenizer {
    let mut vocabulary = serde_json::Map::new();
    for token in tokens {
        let id = vocabulary.len();
        vocabulary.entry(token).or_insert(id.into());
    }
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "added_tokens": [{"id": vocabulary.len(), "content": "<end>", "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary, "merges": []},
    });
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    Tokenizer::load(&folder.path().into()).unwrap()
}

fn schemas() -> Vec<Json> {
    vec![
        json!({"type": "object", "required": ["name", "age"], "additionalProperties": false,
            "properties": {
                "name": {"type": "string", "maxLength": 8},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "tags": {"type": "array", "items": {"enum": ["a", "bb", "ccc"]}, "maxItems": 3},
                "ratio": {"type": "number"}, "whole": {"type": "integer"}}}),
        json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object",
            "required": ["value"], "additionalProperties": false, "properties": {
                "value": {"type": ["null", "boolean"]},
                "next": {"$ref": "#/$defs/node"}}}}}),
        json!({"oneOf": [{"type": "string", "pattern": "^[a-c]{2,4}$"}, {"type": "null"}]}),
        json!({"anyOf": [{"const": {"a": [1, "x"]}}, {"enum": [null, true, "é", 2.5]}]}),
        json!({"type": "array", "minItems": 1, "maxItems": 2,
            "prefixItems": [{"type": "string", "format": "date"}],
            "items": {"type": "string", "format": "date-time"}}),
        json!({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}},
            {"required": ["a"], "properties": {"b": {"type": "boolean"}}}]}),
        json!({"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {
            "a": {"type": "object", "properties": {"x": {"type": "object"}}},
            "b": {"type": "object", "required": ["y"], "properties": {"y": {"type": "array"}}}}}),
        json!({"type": "object", "patternProperties": {"^x_": {"type": "integer"}},
            "additionalProperties": false, "minProperties": 1}),
        json!({"type": "number", "exclusiveMinimum": 0, "maximum": 10, "multipleOf": 0.5}),
        json!({"type": "object"}),
        json!(true),
    ]
}

#[test]
fn every_walk_is_valid_under_its_schema() {
    for (kind, tokenizer) in tokenizers() {
        let compiler = Compiler::new(tokenizer.clone());
        for schema in schemas() {
            let source = OutputFormat::Schema(schema.clone()).source().unwrap().unwrap();
            for seed in 1..12 {
                let mut grammar = compiler.compile(&source).unwrap();
                let text = walk(&mut grammar, &tokenizer, seed);
                let value: Json = match serde_json::from_str(&text) {
                    Ok(value) => value,
                    // What combined schemas leave open has numbers of any size.
                    Err(error) if error.to_string().contains("number out of range") => continue,
                    Err(error) => panic!("{kind}: {text:?}: {error}"),
                };
                check(&value, &schema).unwrap_or_else(|e| panic!("{kind}: {text} {schema}: {e}"));
            }
        }
    }
}

#[test]
fn every_walk_matches_its_regular_expression_or_grammar() {
    for (_, tokenizer) in tokenizers() {
        let compiler = Compiler::new(tokenizer.clone());
        let walks = |output: OutputFormat| {
            let source = output.source().unwrap().unwrap();
            (1..20)
                .map(|seed| walk(&mut compiler.compile(&source).unwrap(), &tokenizer, seed))
                .collect::<Vec<_>>()
        };
        for text in walks(OutputFormat::Regex("^[0-9]{3}-(ab)*x/?$".into())) {
            let (digits, rest) = text.split_at(3);
            assert!(digits.bytes().all(|b| b.is_ascii_digit()), "{text}");
            let rest = rest.trim_end_matches('/').strip_prefix('-').unwrap();
            assert_eq!(rest.trim_end_matches('x').replace("ab", ""), "", "{text}");
        }
        for text in walks(OutputFormat::Regex(" ?a".into())) {
            assert!([" a", "a"].contains(&text.as_str()), "{text:?}");
        }
        let sums = "start: term (\"+\" term)*\nterm: /[0-9]/ | \"(\" start \")\"\n";
        for text in walks(OutputFormat::Lark(sums.into())) {
            assert!(text.chars().all(|c| "+()0123456789".contains(c)), "{text}");
            assert_eq!(text.matches('(').count(), text.matches(')').count(), "{text}");
        }
    }
}

#[test]
fn what_no_grammar_holds_to_is_refused_with_its_place() {
    let (_, tokenizer) = tokenizers().remove(0);
    let compiler = Compiler::new(tokenizer);
    let deep = (0..100).fold(json!({}), |inner, _| json!({"items": inner}));
    let refused = |output: OutputFormat| match output.source().map(Option::unwrap) {
        Ok(source) => compiler.compile(&source).err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    for (schema, expected) in [
        (json!({"properties": {"a/b": {"uniqueItems": true}}}), "`/properties/a~1b/uniqueItems`"),
        (json!({"items": {"if": {}}}), "`/items/if`"),
        (json!({"$defs": {"x": {"not": {}}}, "$ref": "#/$defs/x"}), "`/$defs/x/not`"),
        (json!({"type": "string", "format": "regex"}), "`/format`"),
        (json!({"$ref": "#"}), "requires itself"),
        (
            json!({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}),
            "requires itself",
        ),
        (json!({"$ref": "http://example.org/x"}), "another document"),
        (json!({"$ref": "#/$defs/no"}), "not in the schema"),
        (json!({"anyOf": {}}), "`/anyOf`"),
        (json!("object"), "no JSON schema"),
        (json!(false), "admits no value"),
        (json!({"type": "object", "minProperties": 3}), "`/minProperties`"),
        (json!({"properties": {"a": {"type": "string", "pattern": "(?=x)y"}}}), "/properties/a"),
        (
            json!({"properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}}),
            "/properties/a/oneOf",
        ),
        (json!({"type": "integer", "minimum": 5, "maximum": 1}), "JSON schema"),
        (json!({"enum": ["x".repeat(LONGEST * 20)]}), "longer than"),
        (deep, "nested too deeply"),
    ] {
        let reason = refused(OutputFormat::Schema(schema.clone()));
        let reason = reason.unwrap_or_else(|| panic!("{schema} is not refused"));
        assert!(reason.contains(expected), "{reason}");
    }
    for (output, expected) in [
        (OutputFormat::Regex("(a".into()), "regular expression"),
        (OutputFormat::Regex("a(?!b)".into()), "regular expression"),
        (OutputFormat::Regex("[^\\s\\S]".into()), "regular expression"),
        (OutputFormat::Regex(String::new()), "admits no text"),
        (OutputFormat::Regex("(".repeat(200)), "nested"),
        (OutputFormat::Lark("start: missing".into()), "grammar"),
        (OutputFormat::Lark("start: start".into()), "grammar"),
        (OutputFormat::Lark(String::new()), "grammar"),
        (OutputFormat::Lark("x".repeat(LONGEST + 1)), "longer"),
    ] {
        let reason = refused(output.clone());
        let reason = reason.unwrap_or_else(|| panic!("{output:?} is not refused"));
        assert!(reason.contains(expected), "{reason}");
    }
}
