//! Round trips: what a chat template writes for thoughts and calls is read back as they were, however
//! the text is cut into pieces.

use crate::{
    answer::{
        CallGrammars, Compiler, Dialect, Part, Reader, RejectedToolCall, ToolCall, Toolbox,
        formats, grammar::tests::walk,
    },
    text::{ChatTemplate, Message, TemplateOptions, with_added},
};
use serde_json::{Map, Value as Json, json};
use std::{collections::BTreeSet, sync::Arc};

/// Chat templates that write calls in one format each, in the manner of those of its models: the name
/// of the format, and what stands for the calls of a message.
const TEMPLATES: &[(&str, &str)] = &[
    ("json_tools", "{% for c in calls %}<tool_call>\n{{ c | tojson }}\n</tool_call>\n{% endfor %}"),
    (
        "qwen3_coder",
        "{% for c in calls %}<tool_call>\n<function={{ c.name }}>\n\
         {% for k, v in c.arguments | items %}<parameter={{ k }}>\n{{ text(v) }}\n</parameter>\n\
         {% endfor %}</function>\n</tool_call>\n{% endfor %}",
    ),
    (
        "glm47",
        "{% for c in calls %}<tool_call>{{ c.name }}\n{% for k, v in c.arguments | items %}\
         <arg_key>{{ k }}</arg_key>\n<arg_value>{{ text(v) }}</arg_value>\n{% endfor %}\
         </tool_call>\n{% endfor %}",
    ),
    (
        "longcat",
        "{% for c in calls %}<longcat_tool_call>{{ c.name }}\n{% for k, v in c.arguments | items %}\
         <longcat_arg_key>{{ k }}</longcat_arg_key>\n<longcat_arg_value>{{ text(v) }}\
         </longcat_arg_value>\n{% endfor %}</longcat_tool_call>\n{% endfor %}",
    ),
    (
        "seed_oss",
        "{% for c in calls %}<seed:tool_call>\n<function={{ c.name }}>\n\
         {% for k, v in c.arguments | items %}<parameter={{ k }}>{{ text(v) }}</parameter>\n\
         {% endfor %}</function>\n</seed:tool_call>{% endfor %}",
    ),
    (
        "minimax_m2",
        "<minimax:tool_call>\n{% for c in calls %}<invoke name=\"{{ c.name }}\">\n\
         {% for k, v in c.arguments | items %}<parameter name=\"{{ k }}\">{{ text(v) }}</parameter>\n\
         {% endfor %}</invoke>\n{% endfor %}</minimax:tool_call>",
    ),
    (
        "minimax_m3",
        "]<]minimax[>[<tool_call>\n{% for c in calls %}]<]minimax[>[<invoke name=\"{{ c.name }}\">\
         {% for k, v in c.arguments | items %}]<]minimax[>[<{{ k }}>{{ text(v) }}\
         ]<]minimax[>[</{{ k }}>{% endfor %}]<]minimax[>[</invoke>\n{% endfor %}\
         ]<]minimax[>[</tool_call>",
    ),
    (
        "deepseek_v32",
        "<｜DSML｜function_calls>\n{% for c in calls %}<｜DSML｜invoke name=\"{{ c.name }}\">\n\
         {% for k, v in c.arguments | items %}<｜DSML｜parameter name=\"{{ k }}\" \
         string=\"{{ 'true' if v is string else 'false' }}\">{{ text(v) }}</｜DSML｜parameter>\n\
         {% endfor %}</｜DSML｜invoke>\n{% endfor %}</｜DSML｜function_calls>",
    ),
    (
        "deepseek",
        "<｜tool▁calls▁begin｜>{% for c in calls %}<｜tool▁call▁begin｜>function<｜tool▁sep｜>\
         {{ c.name }}\n```json\n{{ c.arguments | tojson }}\n```<｜tool▁call▁end｜>\n{% endfor %}\
         <｜tool▁calls▁end｜>",
    ),
    (
        "deepseek",
        "<｜tool▁calls▁begin｜>{% for c in calls %}<｜tool▁call▁begin｜>{{ c.name }}<｜tool▁sep｜>\
         {{ c.arguments | tojson }}<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>",
    ),
    (
        "kimi_k2",
        "<|tool_calls_section_begin|>{% for c in calls %}<|tool_call_begin|>functions.{{ c.name }}:\
         {{ loop.index0 }}<|tool_call_argument_begin|>{{ c.arguments | tojson }}<|tool_call_end|>\
         {% endfor %}<|tool_calls_section_end|>",
    ),
    (
        "kimi_k3",
        "<|open|>tools<|sep|>{% for c in calls %}<|open|>call tool=\"{{ c.name }}\" \
         index=\"{{ loop.index }}\"<|sep|>{% for k, v in c.arguments | items %}\
         <|open|>argument key=\"{{ k }}\" type=\"{{ 'string' if v is string else 'other' }}\"<|sep|>\
         {{ text(v) }}<|close|>argument<|sep|>{% endfor %}<|close|>call<|sep|>{% endfor %}\
         <|close|>tools<|sep|>",
    ),
    (
        "atem",
        "{% for c in calls %}<atem:function_calls>\n<atem:invoke name=\"{{ c.name }}\">\n\
         {% for k, v in c.arguments | items %}<atem:parameter name=\"{{ k }}\">{{ text(v) }}\
         </atem:parameter>\n{% endfor %}</atem:invoke>\n</atem:function_calls>{% endfor %}",
    ),
    ("mistral", "[TOOL_CALLS]{{ calls | tojson }}"),
    (
        "mistral",
        "{% for c in calls %}[TOOL_CALLS]{{ c.name }}[CALL_ID]abcdefgh{{ loop.index }}[ARGS]\
         {{ c.arguments | tojson }}{% endfor %}",
    ),
    (
        "pythonic",
        "<|tool_call_start|>[{% for c in calls %}{{ c.name }}({% for k, v in c.arguments | items %}\
         {{ k }}={{ v | tojson }}{% if not loop.last %}, {% endif %}{% endfor %})\
         {% if not loop.last %}, {% endif %}{% endfor %}]<|tool_call_end|>",
    ),
    (
        "gemma4",
        "{% for c in calls %}<|tool_call>call:{{ c.name }}{{ braces(c.arguments, '<|\"|>') }}\
         <tool_call|>{% endfor %}",
    ),
    (
        "function_gemma",
        "{% for c in calls %}<start_function_call>call:{{ c.name }}\
         {{ braces(c.arguments, '<escape>') }}<end_function_call>{% endfor %}",
    ),
    (
        "cohere",
        "<|START_ACTION|>[{% for c in calls %}\n    {\"tool_call_id\": \"{{ loop.index0 }}\", \
         \"tool_name\": \"{{ c.name }}\", \"parameters\": {{ c.arguments | tojson }}}\
         {% if not loop.last %},{% endif %}{% endfor %}\n]<|END_ACTION|>",
    ),
    (
        "solar_open",
        "<|tool_calls|>{% for c in calls %}<|tool_call:begin|>id{{ loop.index }}<|tool_call:name|>\
         {{ c.name }}<|tool_call:args|>{{ c.arguments | tojson }}<|tool_call:end|>{% endfor %}<|calls|>",
    ),
    ("hunyuan", "<tool_calls>{{ calls | tojson }}</tool_calls>"),
    ("granite", "<|tool_call|>{{ calls | tojson }}"),
    ("nemotron", "<TOOLCALL>{{ calls | tojson }}</TOOLCALL>"),
    (
        "apertus",
        "<|tools_prefix|>[{% for c in calls %}{\"{{ c.name }}\": {{ c.arguments | tojson }}}\
         {% if not loop.last %}, {% endif %}{% endfor %}]<|tools_suffix|>",
    ),
    (
        "minicpm5",
        "{% for c in calls %}<function name=\"{{ c.name }}\">{% for k, v in c.arguments | items %}\
         <param name=\"{{ k }}\">{{ text(v) }}</param>{% endfor %}</function>\n{% endfor %}",
    ),
    (
        "functionary31",
        "{% for c in calls %}<function={{ c.name }}>{{ c.arguments | tojson }}</function>{% endfor %}",
    ),
    (
        "functionary32",
        "{% for c in calls %}>>>{{ c.name }}\n{{ c.arguments | tojson }}{% endfor %}",
    ),
    (
        "commandR",
        "{% for c in calls %}Action: {{ c.name }}\nAction Input: {{ c.arguments | tojson }}\n\
         {% endfor %}",
    ),
    (
        "harmony",
        "{% for c in calls %}<|start|>assistant to=functions.{{ c.name }}<|channel|>commentary json\
         <|message|>{{ c.arguments | tojson }}<|call|>{% endfor %}",
    ),
    (
        "llama3",
        "<|python_tag|>{% for c in calls %}{\"name\": \"{{ c.name }}\", \"parameters\": \
         {{ c.arguments | tojson }}}{% if not loop.last %}; {% endif %}{% endfor %}",
    ),
    (
        "generic_json",
        "{% for c in calls %}{\"name\": \"{{ c.name }}\", \"arguments\": {{ c.arguments | tojson }}}\n\
         {% endfor %}",
    ),
];

const MACROS: &str = "\
{% macro text(v) %}{{ v if v is string else v | tojson }}{% endmacro %}\
{% macro braces(v, q) %}{% if v is string %}{{ q + v + q }}{% elif v is mapping %}{{ '{' }}\
{% for k, x in v | items %}{{ k }}:{{ braces(x, q) }}{% if not loop.last %},{% endif %}{% endfor %}}\
{% elif v is sequence %}[{% for x in v %}{{ braces(x, q) }}{% if not loop.last %},{% endif %}\
{% endfor %}]{% else %}{{ v | tojson }}{% endif %}{% endmacro %}";

/// A template around what stands for calls.
fn template(calls: &str) -> ChatTemplate {
    let source = format!(
        "{MACROS}{{% for m in messages %}}{{% if m.role == 'assistant' %}}{{{{ m.content or '' }}}}\
         {{% set calls = m.tool_calls | map(attribute='function') | list if m.tool_calls else [] %}}\
         {{% if calls %}}{calls}{{% endif %}}{{% else %}}<|user|>{{{{ m.content }}}}\
         {{% if tools %}}{{{{ tools | length }}}} tools{{% endif %}}<|assistant|>{{% endif %}}\
         {{% endfor %}}"
    );
    ChatTemplate::from_source(&source).unwrap()
}

fn tools() -> Vec<Json> {
    let parameters = json!({"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "ratio": {"type": "number"},
        "flag": {"type": "boolean"},
        "nothing": {"type": ["null", "integer"]},
        "deep": {"type": "object", "properties": {"a": {"type": "array"}}},
        "list": {"type": "array", "items": {"type": "string"}},
        "empty": {"type": "string"},
    }});
    let tool = |name: &str, parameters: Json| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    vec![tool("get_weather", parameters), tool("clock", json!({}))]
}

fn arguments() -> Vec<Json> {
    vec![
        json!({"city": "Bern"}),
        json!({"city": "Zürich \"x\" {a: [1]}, it's\n\tthere <b></b> } ] ) , 日本 😀 \\ /",
               "days": -3, "ratio": 2.5, "flag": true, "nothing": null, "deep": {"a": [1, {"b": "c"}]},
               "list": ["a, b", "c}"], "empty": ""}),
        json!({"city": "5", "list": ["true", "<tool", "]<", "</"]}),
        json!({"city": " spaces\n\n", "flag": false}),
    ]
}

/// The parts of a text that arrives in pieces of `step` characters.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    text: String,
    reasoning: String,
    calls: Vec<ToolCall>,
    rejected: Vec<RejectedToolCall>,
    /// The joined parts of the arguments of each call.
    deltas: Vec<String>,
}

fn read(mut reader: Reader, text: &str, step: usize) -> Answer {
    let characters: Vec<char> = text.chars().collect();
    let mut parts = Vec::new();
    for piece in characters.chunks(step) {
        parts.extend(reader.push(&piece.iter().collect::<String>()));
    }
    parts.extend(reader.finish());
    let mut answer = Answer::default();
    for part in parts {
        match part {
            Part::Text(text) => answer.text += &text,
            Part::Reasoning(text) => answer.reasoning += &text,
            Part::Call(call) => answer.calls.push(call),
            Part::Rejected(call) => answer.rejected.push(call),
            Part::CallDelta(delta) => {
                answer.deltas.resize(answer.deltas.len().max(delta.index + 1), String::new());
                answer.deltas[delta.index] += &delta.arguments;
            }
        }
    }
    answer
}

/// A reader for a dialect, with tools.
fn reader(dialect: &Arc<Dialect>, header: &str) -> Reader {
    let tools = Arc::new(Toolbox::new(&tools()).unwrap());
    Reader::new(dialect.clone(), Some(tools), header, 1)
}

fn messages(json: Json) -> Vec<Message> {
    serde_json::from_value(json).unwrap()
}

#[test]
fn a_rendered_call_is_read_back_in_every_format() {
    let (mut formats_seen, mut failures) = (BTreeSet::new(), Vec::new());
    for (name, calls) in TEMPLATES {
        let template = template(calls);
        let dialect = Arc::new(Dialect::of(Some(&template), None, Some(name)));
        formats_seen.insert(dialect.format.unwrap().names[0]);
        let options = TemplateOptions::default().add_generation_prompt(false).tools(tools());
        for arguments in &arguments() {
            for (content, count) in [("", 1), ("Sure.", 1), ("", 2)] {
                let call = |name: &str, arguments: &Json| json!({"type": "function", "function": {"name": name, "arguments": arguments}});
                let calls = [call("get_weather", arguments), call("clock", &json!({}))];
                let conversation = messages(json!([
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": content, "tool_calls": calls[..count]},
                ]));
                let whole = template.render(&conversation, &options).unwrap();
                let answer = whole.split_once("<|assistant|>").unwrap().1;
                let expected: Vec<Map<String, Json>> = [arguments, &json!({})][..count]
                    .iter()
                    .map(|a| a.as_object().unwrap().clone())
                    .collect();
                for step in [1, 2, 3, 7, 10_000] {
                    let read = read(reader(&dialect, ""), answer, step);
                    let found: Vec<_> = read.calls.iter().map(|c| c.arguments.clone()).collect();
                    let whole = |call: &ToolCall| Json::Object(call.arguments.clone());
                    let joined = |delta: &String| {
                        serde_json::from_str(if delta.is_empty() { "{}" } else { delta }).ok()
                    };
                    let is_joined = read.calls.iter().zip(&read.deltas);
                    let is_joined = is_joined.clone().all(|(c, d)| joined(d) == Some(whole(c)));
                    let is_clean = read.text == content && read.reasoning.is_empty();
                    if found != expected || !is_clean || !is_joined || !read.rejected.is_empty() {
                        failures.push(format!("{name} {step}: {answer}\n{read:#?}"));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}\n{}", failures.join("\n\n"), failures.len());
    let all = formats::FORMATS.iter().map(|format| format.names[0]);
    let missing: Vec<_> = all.filter(|name| !formats_seen.contains(name)).collect();
    assert_eq!(missing, ["olmo3", "internlm2", "gigachat"], "formats without a round trip");
}

/// Tools whose texts are short: no choice by chance ends a long one.
fn bounded_tools() -> Vec<Json> {
    let parameters = json!({"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "maxLength": 9},
        "days": {"type": "integer", "minimum": 1},
        "flag": {"type": "boolean"},
        "ratio": {"type": ["null", "number"]},
        "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
        "list": {"type": "array", "items": {"enum": ["a, b", "c}", "</x>"]}},
        "deep": {"type": "object", "additionalProperties": false, "required": ["unit"],
                 "properties": {"unit": {"const": "km"}, "size": {"type": "number"}}},
    }});
    let tool = |name: &str, parameters: Json| json!({"function": {"name": name, "parameters": parameters}});
    vec![tool("get_weather", parameters), tool("clock", json!({}))]
}

/// Whatever tokens are chosen of those that the grammar of calls admits, the reader finds calls with
/// arguments of their schemas, and nothing else.
#[test]
fn grammars_of_calls_write_what_readers_read() {
    let mut failures = Vec::new();
    for (name, calls) in TEMPLATES {
        let template = template(calls);
        let plain = Dialect::of(Some(&template), None, Some(name));
        let marks = plain.format.unwrap().marks();
        let is_token = |mark: &&&str| mark.starts_with("<|") || mark.starts_with("[TOOL");
        let tokens: Vec<&str> = marks.iter().filter(is_token).copied().collect();
        for tokens in [&tokens[..], &[]] {
            let tokenizer = with_added(tokens);
            let special = tokenizer.all_special_tokens();
            let dialect = Arc::new(Dialect::of(Some(&template), Some(&tokenizer), Some(name)));
            let tools = Arc::new(Toolbox::new(&bounded_tools()).unwrap());
            let grammars =
                CallGrammars { dialect: &dialect, tools: &tools, special: &special, ends: &[] };
            let compiler = Compiler::new(tokenizer.clone());
            for choice in [None, Some("clock"), Some("get_weather")] {
                let source = match grammars.answer(choice) {
                    Ok(source) => source,
                    Err(error) => {
                        failures.push(format!("{name}: {error}"));
                        continue;
                    }
                };
                for seed in 1..4 {
                    let mut grammar = match compiler.compile(&source) {
                        Ok(grammar) => grammar,
                        Err(error) => {
                            failures.push(format!("{name}: {error}"));
                            break;
                        }
                    };
                    let text = walk(&mut grammar, &tokenizer, seed);
                    let reader = Reader::new(dialect.clone(), Some(tools.clone()), "", 1);
                    let read = read(reader, &text, 7);
                    let is_named = |call: &ToolCall| choice.is_none_or(|name| call.name == name);
                    let is_called = !read.calls.is_empty() && read.calls.iter().all(is_named);
                    if !is_called || !read.text.trim().is_empty() || !read.rejected.is_empty() {
                        failures.push(format!("{name} {choice:?}: {text}\n{read:#?}"));
                        break;
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}\n{}", failures.join("\n\n"), failures.len());
}

#[test]
fn a_format_is_recognised_from_what_the_template_writes() {
    for (name, calls) in TEMPLATES {
        // These have no mark that no other text has.
        if ["functionary31", "functionary32", "commandR", "harmony"].contains(name) {
            continue;
        }
        let dialect = Dialect::of(Some(&template(calls)), None, None);
        let found = dialect.format.unwrap();
        assert!(found.names.contains(name), "{name}: {:?}", found.names);
    }
}

#[test]
fn a_lookalike_stays_text() {
    for (name, text) in [
        ("json_tools", "Write <tool_call> before a call, and </tool_call> behind."),
        ("json_tools", "<tool_call> is a tag, <tool_ca is none"),
        ("json_tools", "a < b and <tool"),
        ("generic_json", "{\"name\": \"Ada\", \"born\": 1815}"),
        ("generic_json", "[1, 2, 3]"),
        ("generic_json", "{x}"),
        ("llama3", "{\"name\": \"unknown\", \"parameters\": {}}"),
        ("commandR", "Action: we wait.\nThen we go."),
        ("functionary31", "Use <function=f> here"),
        ("mistral", "[TOOL_CALLS] is a token"),
        ("pythonic", "<|tool_call_start|> starts a call"),
        ("gemma4", "<|tool_call> and so on"),
    ] {
        let dialect = Arc::new(Dialect::of(None, None, Some(name)));
        let dialect = Arc::new(Dialect { calls_are_bare: true, ..(*dialect).clone() });
        for step in [1, 2, 5, 1000] {
            let read = read(reader(&dialect, ""), text, step);
            assert_eq!(read, Answer { text: text.into(), ..Answer::default() }, "{name} {step}");
        }
    }
}

#[test]
fn what_is_no_valid_call_is_rejected_with_its_text() {
    for (name, text, reason, rest) in [
        (
            "json",
            "<tool_call>{\"name\": \"no_such\", \"arguments\": {}}</tool_call>",
            "no tool",
            "",
        ),
        (
            "json",
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": {}}</tool_call>",
            "`city`",
            "",
        ),
        (
            "json",
            "a<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": 5}}</tool_call>b",
            "`city` is integer instead of string",
            "ab",
        ),
        ("json", "<tool_call>{\"name\": \"get_weather\", \"argum", "ended before", ""),
        ("json", "<tool_call>{\"name\": \"get_weather\" oops}</tool_call>x", "malformed", "x"),
        (
            "glm47",
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>x</arg_value>\n\
             <arg_key>days</arg_key>\n<arg_value>many</arg_value>\n</tool_call>",
            "`days` is string instead of integer",
            "",
        ),
        ("pythonic", "<|tool_call_start|>[get_weather(city=x y)]<|tool_call_end|>", "no value", ""),
        (
            "kimi_k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.clock:0\
          <|tool_call_argument_begin|>{\"a\": }<|tool_call_end|><|tool_calls_section_end|>",
            "JSON",
            "",
        ),
    ] {
        let dialect = Arc::new(Dialect::of(None, None, Some(name)));
        for step in [1, 3, 1000] {
            let read = read(reader(&dialect, ""), text, step);
            assert_eq!(read.text, rest, "{text}");
            assert!(read.calls.is_empty(), "{text}");
            let [rejected] = &read.rejected[..] else { panic!("{text}: {read:#?}") };
            assert!(rejected.reason.contains(reason), "{text}: {rejected:?}");
            let raw = text.trim_start_matches('a').trim_end_matches(['b', 'x']);
            assert!(raw.starts_with(&rejected.raw), "{rejected:?}");
        }
    }
}

#[test]
fn a_call_without_end_is_bounded() {
    let dialect = Arc::new(Dialect::of(None, None, Some("json")));
    let mut reader = reader(&dialect, "");
    let mut parts =
        reader.push("<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"");
    for _ in 0..100 {
        parts.extend(reader.push(&"x".repeat(40_000)));
    }
    parts.extend(reader.finish());
    let Some(Part::Rejected(rejected)) = parts.last() else { panic!() };
    assert!(rejected.reason.contains("longer than") && rejected.raw.len() < 1_200_000);
}

/// What stands for thoughts and text in a template, and the generation prompt.
const THOUGHTS: &[(&str, &str, &str)] = &[
    ("<think>\n{t}\n</think>\n\n{c}", "", ""),
    ("{t}\n</think>\n\n{c}", "<think>\n", "<think></think>"),
    ("<seed:think>{t}</seed:think>{c}", "", ""),
    ("[THINK]{t}[/THINK]{c}", "", ""),
    ("<|channel>thought\n{t}\n<channel|>{c}", "", ""),
    (
        "{t}<|close|>think<|sep|><|open|>response<|sep|>{c}<|close|>response<|sep|>",
        "<|open|>think<|sep|>",
        "<|open|>response<|sep|>",
    ),
    ("<think>\n{t}\n</think>\n<answer>\n{c}", "", ""),
    (
        "<|channel|>analysis<|message|>{t}<|end|><|start|>assistant<|channel|>final<|message|>{c}<|return|>",
        "<|start|>assistant",
        "<|channel|>",
    ),
    (
        " to=self<|message|>{t}<|eom|><|start|>assistant to=user<|message|>{c}<|eot|>",
        "<|start|>assistant",
        "<|start|><|message|>to=self<|eom|>",
    ),
    ("{t}\n[BEGIN FINAL RESPONSE]\n{c}", "Here are my reasoning steps:\n", ""),
];

#[test]
fn thoughts_are_read_apart_from_the_text() {
    for (form, header, more) in THOUGHTS {
        let source = format!("{{# {form} {header} {more} #}}{{{{ messages }}}}");
        let template = ChatTemplate::from_source(&source).unwrap();
        let dialect = Arc::new(Dialect::of(Some(&template), None, None));
        assert!(dialect.has_thoughts(), "{form}");
        let text = form.replace("{t}", "Hm.\n\n a < b").replace("{c}", "Four: 2 < 3");
        for step in [1, 2, 3, 5, 1000] {
            let read = read(Reader::new(dialect.clone(), None, header, 0), &text, step);
            assert_eq!(read.reasoning, "Hm.\n\n a < b", "{form} {step}");
            assert_eq!(read.text, "Four: 2 < 3", "{form} {step}");
        }
        // Thoughts without an end are thoughts.
        let cut = &text[..text.find("< b").unwrap()];
        let read = read(Reader::new(dialect, None, header, 0), cut, 2);
        assert_eq!((&*read.reasoning, &*read.text), ("Hm.\n\n a ", ""), "{form}");
    }
}

#[test]
fn text_about_thoughts_stays_text() {
    let template = ChatTemplate::from_source("{# <think> </think> #}{{ messages }}").unwrap();
    let dialect = Arc::new(Dialect::of(Some(&template), None, None));
    for text in ["The tags <think> and </think> mark thoughts.", "  \n", "x</think>y"] {
        let read = read(Reader::new(dialect.clone(), None, "", 0), text, 1);
        assert_eq!((&*read.text, &*read.reasoning), (text, ""));
    }
    // The prompt has closed its thoughts.
    let header = "<|assistant|>\n<think>\n\n</think>\n\n";
    assert_eq!(read(Reader::new(dialect, None, header, 0), "Yes.", 1).text, "Yes.");
}
