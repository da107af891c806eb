//! Answers of a grammar: whatever a model with random weights prefers, its text is what was asked for.

use mynah::{
    Answer, Error, FinishReason, GenerateOptions, Message, Model, OutputFormat, Prompt, Reasoning,
    Result, Session, SessionOptions, TemplateOptions, Tool, ToolChoice, Tools,
};
use mynah_tests::{Fixture, block_on, on_engine};
use serde_json::{Map, Value as Json, json};
use std::{
    fs,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tempfile::TempDir;

/// The size of the vocabularies.
const TOKENS: i32 = 512;

/// Thoughts between tags, calls as JSON between tags.
const TEMPLATE: &str = "{% if tools %}{{ tools | tojson }}{% endif %}\
    {% for m in messages %}<user>{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n\
    {{ c.function | tojson }}\n</tool_call>{% endfor %}<end>{% endfor %}\
    {% if add_generation_prompt %}<assistant>{% endif %}{# <think> </think> #}";

/// The messages of GPT-OSS.
const HARMONY: &str = "{% if tools %}{{ tools | tojson }}{% endif %}\
    {% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}\
    {% if add_generation_prompt %}<|start|>assistant{% endif %}\
    {# <|channel|>analysis <|return|> <|call|> #}";

struct Fixed {
    kind: &'static str,
    model: Model,
    _folder: TempDir,
}

/// Models with random weights: one for each kind of tokenizer.
fn models() -> &'static [Fixed] {
    static MODELS: LazyLock<Vec<Fixed>> = LazyLock::new(|| {
        let fixed = |(kind, tokenizer): (_, Json)| Fixed::new(kind, &tokenizer, TEMPLATE, "<end>");
        tokenizers().into_iter().map(fixed).collect()
    });
    &MODELS
}

impl Fixed {
    fn new(kind: &'static str, tokenizer: &Json, template: &str, end: &str) -> Self {
        let (_, fixture) = Fixture::all().into_iter().find(|(name, _)| name == "llama").unwrap();
        let case = fixture.cases[0].clone();
        let mut case = case
            .with_shape("model.embed_tokens.weight", &[TOKENS, 64])
            .with_shape("lm_head.weight", &[TOKENS, 64]);
        case.config["vocab_size"] = json!(TOKENS);
        case.config["max_position_embeddings"] = json!(8192);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_path_buf();
        on_engine(move || case.write(&path)).unwrap();
        let config = json!({"chat_template": template, "eos_token": end});
        fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let model = block_on(Model::load(folder.path())).unwrap();
        Fixed { kind, model, _folder: folder }
    }
}

/// Tokenizers of bytes, of pieces beside bytes, of pieces, and of parts of words.
fn tokenizers() -> Vec<(&'static str, Json)> {
    let ascii: Vec<String> = ('!'..='~').map(String::from).collect();
    let words = ["{\"", "\":", "\",", "true", "null", "10"].map(String::from);
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let spaced = ascii.iter().chain(&words).flat_map(|piece| [piece.clone(), format!("▁{piece}")]);
    let spaced: Vec<String> = spaced.chain(["▁".into(), "\n".into()]).collect();
    let parts = ascii.iter().chain(&words).flat_map(|piece| [piece.clone(), format!("##{piece}")]);
    let high = ('\u{a1}'..='\u{ff}').filter(|c| *c != '\u{ad}').map(String::from);
    let letters = ('\u{100}'..='\u{143}').map(String::from).chain(high);
    let letters = ascii.iter().cloned().chain(letters).chain(words.clone()).collect();
    vec![
        (
            "bytes",
            tokenizer(
                letters,
                json!({"type": "ByteLevel", "add_prefix_space": true,
            "trim_offsets": true, "use_regex": true}),
            ),
        ),
        (
            "bytes and pieces",
            tokenizer(
                [&bytes[..], &spaced[..200]].concat(),
                json!({
            "type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
            ),
        ),
        (
            "pieces",
            tokenizer(
                spaced,
                json!({"type": "Metaspace", "replacement": "▁",
            "prepend_scheme": "always", "split": true}),
            ),
        ),
        (
            "parts of words",
            tokenizer(
                parts.collect(),
                json!({"type": "WordPiece",
            "prefix": "##", "cleanup": false}),
            ),
        ),
    ]
}

fn tokenizer(tokens: Vec<String>, decoder: Json) -> Json {
    let special = ["<end>", "<user>", "<assistant>", "<think>", "</think>"];
    tokenizer_with(&special, tokens, decoder)
}

fn tokenizer_with(special: &[&str], tokens: Vec<String>, decoder: Json) -> Json {
    let mut vocabulary = Map::new();
    for token in special.iter().map(|token| token.to_string()).chain(tokens) {
        let id = vocabulary.len();
        vocabulary.entry(token).or_insert(id.into());
    }
    let added: Vec<Json> = special
        .iter()
        .map(|token| {
            json!({
        "id": vocabulary[*token], "content": token, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder, "added_tokens": added,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary, "merges": []},
    })
}

fn options(seed: u64) -> GenerateOptions {
    GenerateOptions::default().temperature(1.0).seed(seed).max_tokens(4000)
}

fn answer(model: &Model, prompt: impl Into<Prompt>, options: &GenerateOptions) -> Result<Answer> {
    block_on(model.generate(prompt, options)?.answer())
}

fn finish(answer: &Answer) -> FinishReason {
    answer.summary.as_ref().unwrap().finish_reason
}

fn schemas() -> Vec<Json> {
    vec![
        json!({"type": "object", "required": ["name", "age"], "additionalProperties": false,
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "ratio": {"type": "number", "minimum": -1, "maximum": 1},
                "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3}}}),
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object",
            "required": ["leaf"], "additionalProperties": false, "properties": {
                "leaf": {"type": ["null", "boolean"]}, "left": {"$ref": "#/$defs/tree"}}}}}),
        json!({"type": "array", "minItems": 1, "maxItems": 2,
            "items": {"anyOf": [{"type": "string", "format": "date"}, {"const": 7}]}}),
        json!({"type": "string", "pattern": "^[a-z]+@[a-z]+\\.(org|net)$", "maxLength": 30}),
    ]
}

#[test]
fn every_answer_is_valid_under_its_schema() {
    for schema in schemas() {
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        for Fixed { kind, model, .. } in models() {
            for seed in 0..5 {
                let options = options(seed).output(OutputFormat::Schema(schema.clone()));
                for prompt in [Prompt::from("?"), Prompt::Raw("?".into())] {
                    let answer = answer(model, prompt, &options.clone().reasoning(Reasoning::OFF));
                    let answer = answer.unwrap();
                    assert_eq!(finish(&answer), FinishReason::Stop, "{kind}: {}", answer.text);
                    let value: Json = serde_json::from_str(&answer.text)
                        .unwrap_or_else(|error| panic!("{kind}: {:?}: {error}", answer.text));
                    assert!(validator.is_valid(&value), "{kind}: {value} under {schema}");
                }
            }
        }
    }
}

#[test]
fn every_answer_matches_its_regular_expression_or_grammar() {
    for Fixed { kind, model, .. } in models() {
        for seed in 0..5 {
            let text = |output| answer(model, "?", &options(seed).output(output)).unwrap().text;
            let regex = text(OutputFormat::Regex("(yes|no), [0-9]{2}( [a-c]{1,3})*".into()));
            let (word, rest) =
                regex.split_once(", ").unwrap_or_else(|| panic!("{kind}: {regex:?}"));
            assert!(["yes", "no"].contains(&word), "{kind}: {regex:?}");
            assert!(rest[..2].bytes().all(|b| b.is_ascii_digit()), "{kind}: {regex:?}");
            let lark = "start: \"[\" /[0-9]/ (\",\" start)? \"]\"".to_string();
            let lark = text(OutputFormat::Lark(lark));
            assert!(lark.chars().all(|c| "[],0123456789".contains(c)), "{kind}: {lark:?}");
            assert_eq!(lark.matches('[').count(), lark.matches(']').count(), "{kind}: {lark:?}");
        }
    }
}

#[test]
fn a_grammar_begins_behind_the_thoughts() {
    let schema = json!({"type": "integer", "minimum": 1, "maximum": 99});
    let (mut thoughts, mut direct) = (0, 0);
    for Fixed { kind, model, .. } in models() {
        for seed in 0..12 {
            let options = options(seed).output(OutputFormat::Schema(schema.clone()));
            let answer = answer(model, "?", &options.reasoning(Reasoning::budget(5))).unwrap();
            let number: u8 = answer.text.parse().unwrap_or_else(|_| panic!("{kind}: {answer:?}"));
            assert!((1..100).contains(&number));
            if answer.tokens.len() > 3 { thoughts += 1 } else { direct += 1 }
        }
    }
    assert!(thoughts > 0 && direct > 0, "{thoughts} with thoughts, {direct} without");
}

/// A model that writes messages: their channels follow from what is asked of it.
#[test]
fn a_grammar_begins_behind_the_header_of_a_message() {
    let special = [
        "<|start|>",
        "<|channel|>",
        "<|message|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|constrain|>",
    ];
    let words = ["assistant", "analysis", "commentary", "final", "functions", "json", "user"];
    let ascii = (' '..='~').map(String::from);
    let decoder = json!({"type": "Fuse"});
    let tokens = ascii.chain(words.map(String::from)).collect();
    let tokenizer = tokenizer_with(&special, tokens, decoder);
    let Fixed { model, _folder, .. } = Fixed::new("messages", &tokenizer, HARMONY, "<|return|>");
    for seed in 0..6 {
        let schema = json!({"type": "integer", "minimum": 1, "maximum": 99});
        let asked = options(seed).output(OutputFormat::Schema(schema));
        let answer = answer(&model, "?", &asked).unwrap();
        let number: u8 = answer.text.parse().unwrap_or_else(|_| panic!("{answer:?}"));
        assert!((1..100).contains(&number));
    }
    for seed in 0..6 {
        let asked = options(seed).tool_choice(ToolChoice::Named("lookup".into()));
        let answer = answer(&model, chat(&[tool()]), &asked).unwrap();
        assert!(answer.rejected_tool_calls.is_empty() && answer.text.is_empty(), "{answer:?}");
        assert_eq!(answer.tool_calls.len(), 1, "{answer:?}");
        assert_eq!(answer.tool_calls[0].name, "lookup");
    }
}

fn tool() -> Tool {
    Tool::new(
        "lookup",
        "",
        json!({"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "maximum": 9,
        "minimum": 1}}}),
    )
}

fn chat(tools: &[Tool]) -> Prompt {
    let tools = tools.iter().map(Tool::to_json).collect();
    Prompt::Chat(vec![Message::user("?")], TemplateOptions::default().tools(tools))
}

#[test]
fn a_required_call_is_made_with_arguments_of_its_schema() {
    let other = Tool::new("clock", "", json!({}));
    for Fixed { kind, model, .. } in models() {
        for seed in 0..2 {
            for choice in [ToolChoice::Required, ToolChoice::Named("lookup".into())] {
                let options = options(seed).tool_choice(choice.clone()).reasoning(Reasoning::OFF);
                let prompt = chat(&[tool(), other.clone()]);
                let answer = answer(model, prompt, &options).unwrap();
                assert!(answer.rejected_tool_calls.is_empty(), "{kind}: {answer:?}");
                assert!(
                    !answer.tool_calls.is_empty() && answer.text.is_empty(),
                    "{kind}: {answer:?}"
                );
                if choice != ToolChoice::Required {
                    assert_eq!(answer.tool_calls.len(), 1, "{kind}");
                    assert_eq!(answer.tool_calls[0].name, "lookup");
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_enforced_is_refused_before_anything_is_computed() {
    let model = &models()[0].model;
    for output in [
        OutputFormat::Schema(json!({"uniqueItems": true})),
        OutputFormat::Schema(json!({"$ref": "#"})),
        OutputFormat::Regex("(".into()),
        OutputFormat::Lark("start: x".into()),
    ] {
        let error = model.generate("?", &options(1).output(output)).err().unwrap();
        assert!(matches!(error, Error::Grammar { .. }), "{error}");
    }
    let named = Tool::new("f", "", json!({"type": "object", "properties": {"a": {"not": {}}}}));
    let options = options(1).tool_choice(ToolChoice::Required);
    let error = model.generate(chat(&[named]), &options).err().unwrap();
    assert!(matches!(error, Error::Tool { .. }), "{error}");
}

fn session() -> Session {
    models()[0].model.session(SessionOptions::default())
}

#[test]
fn tools_are_called_at_once_and_their_results_go_back() {
    let running = Arc::new(AtomicUsize::new(0));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let tools = Tools::new().max_rounds(1).with(tool(), {
        let (running, seen) = (running.clone(), seen.clone());
        move |arguments| {
            running.fetch_add(1, Ordering::Relaxed);
            seen.lock().unwrap().push(arguments);
            async move { Ok(json!({"degrees": 20})) }
        }
    });
    let options = options(2).tool_choice(ToolChoice::Named("lookup".into())).max_tokens(400);
    let options = options.reasoning(Reasoning::OFF);
    let mut events = Vec::new();
    let asked = vec![Message::user("?")];
    let session = session();
    let response = session.respond(asked, &tools, &options, |event| events.push(event.clone()));
    let response = block_on(response).unwrap();
    assert_eq!(running.load(Ordering::Relaxed), 1);
    assert!(seen.lock().unwrap()[0].contains_key("city"));
    let roles: Vec<_> = response.messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["assistant", "tool", "assistant"]);
    let result = serde_json::to_value(&response.messages[1]).unwrap();
    assert_eq!(result["content"], json!("{\"degrees\":20}"));
    let call = &response.messages[0].tool_calls.as_ref().unwrap()[0];
    assert_eq!(result["tool_call_id"], call["id"]);
    assert!(response.answer.tool_calls.is_empty() || response.answer.summary.is_some());
}

#[test]
fn a_refusal_and_a_failure_are_results_that_the_model_reads() {
    let named = ToolChoice::Named("lookup".into());
    let options = options(3).tool_choice(named).max_tokens(300).reasoning(Reasoning::OFF);
    let fails = Tools::new().max_rounds(1).with(tool(), |_| async { Err("no network".into()) });
    for (tools, expected) in [
        (fails.clone(), "Error: no network"),
        (fails.approve(|_| async { false }), "Error: the user did not allow this call."),
    ] {
        let asked = vec![Message::user("?")];
        let response = block_on(session().respond(asked, &tools, &options, |_| {})).unwrap();
        let result = serde_json::to_value(&response.messages[1]).unwrap();
        assert_eq!(result["content"], json!(expected));
    }
}
