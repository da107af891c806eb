//! The command says what the library computes, in the form and with the exit codes that it promises.

use mynah::internals::families;
use mynah_tests::{Case, Fixture, mynah, on_engine};
use serde_json::{Map, Value as Json, json};
use std::{
    env, fs,
    io::{Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// Absolute, on log-probabilities.
const TOLERANCE: f32 = 1e-4;

fn spawn(arguments: &[&str]) -> Child {
    let mut command = mynah();
    command.args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The exit code, standard output and standard error.
fn finish(child: Child) -> (Option<i32>, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn run(arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = spawn(arguments);
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    finish(child)
}

/// The one line of JSON that a command prints.
fn json(arguments: &[&str]) -> Json {
    let (code, out, err) = run(&[arguments, &["--json"]].concat(), "");
    assert_eq!((code, err.as_str()), (Some(0), ""), "{arguments:?}");
    assert_eq!(out.lines().count(), 1, "{out}");
    serde_json::from_str(&out).unwrap()
}

/// The checkpoint, and its adapter, if it has one, in the same folder.
fn write(case: &Case) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (case, path) = (case.clone(), folder.path().to_owned());
    on_engine(move || {
        case.write(&path)?;
        if case.has_adapter() { case.write_adapter(&path) } else { Ok(()) }
    })
    .unwrap();
    folder
}

/// What a command calls a model that has been written.
fn model<'a>(case: &Case, folder: &'a TempDir) -> Vec<&'a str> {
    let folder = path(folder);
    if case.has_adapter() { vec![folder, "--adapter", folder] } else { vec![folder] }
}

fn path(folder: &TempDir) -> &str {
    folder.path().to_str().unwrap()
}

fn list(tokens: &[u32]) -> String {
    tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn ids(json: &Json) -> Vec<u32> {
    serde_json::from_value(json.clone()).unwrap()
}

fn is_close(a: &Json, b: f32) -> bool {
    (a.as_f64().unwrap() as f32 - b).abs() <= TOLERANCE
}

/// The pairs of one position in `top`.
fn row(top: &Json, position: usize) -> Vec<(u32, f32)> {
    // JSON has no minus infinity, which is what tokens that cannot come have.
    let pairs: Vec<(u32, Option<f32>)> = serde_json::from_value(top[position].clone()).unwrap();
    pairs.into_iter().map(|(id, lp)| (id, lp.unwrap_or(f32::NEG_INFINITY))).collect()
}

#[test]
fn scores_are_those_of_the_reference() {
    for (family, fixture) in Fixture::all() {
        let case = &fixture.cases[0];
        let folder = write(case);
        let tokens = list(&case.tokens);
        let model = model(case, &folder);
        let score =
            json(&[&["score"], &model[..], &["--tokens", &tokens, "--top", "1000"]].concat());
        assert_eq!(ids(&score["tokens"]), case.tokens, "{family}");
        let logprobs: Vec<Option<f32>> = serde_json::from_value(score["logprobs"].clone()).unwrap();
        assert_eq!((logprobs.len(), logprobs[0]), (case.tokens.len(), None), "{family}");
        for position in 0..case.tokens.len() {
            let row = row(&score["top"], position);
            assert!(row.is_sorted_by(|a, b| a.1 >= b.1), "{family}: {row:?}");
            let of = |token: u32| row.iter().find(|(id, _)| *id == token).unwrap().1;
            if let Some(next) = case.tokens.get(position + 1) {
                let found = logprobs[position + 1].unwrap_or(f32::NEG_INFINITY);
                assert_eq!(found, of(*next), "{family}");
            }
            if position % case.every == 0 {
                for (probe, expected) in
                    case.probes.iter().zip(&case.logprobs[position / case.every])
                {
                    let found = of(*probe);
                    assert!((found - expected).abs() <= TOLERANCE, "{family}: {found} {expected}");
                }
            }
        }
    }
}

#[test]
fn greedy_tokens_are_the_likeliest_after_their_prefix() {
    const GENERATED: usize = 12;
    for (family, fixture) in Fixture::all() {
        let case = &fixture.cases[0];
        let folder = write(case);
        let (prompt, model) = (&case.tokens[..7], model(case, &folder));
        let answer = json(
            &[
                &["generate"],
                &model[..],
                &["--tokens", &list(prompt), "--max-tokens", "12"],
                &["--temperature", "0", "--repetition-penalty", "1", "--ignore-eos"],
            ]
            .concat(),
        );
        let tokens = ids(&answer["tokens"]);
        assert_eq!(tokens.len(), GENERATED, "{family}");
        assert_eq!(answer["generated_tokens"], GENERATED, "{family}");
        assert_eq!(answer["prompt_tokens"], prompt.len(), "{family}");
        assert_eq!((&answer["text"], &answer["finish_reason"]), (&json!(""), &json!("length")));
        for rate in ["time_to_first_token", "prefill_tokens_per_second", "peak_memory"] {
            assert!(answer[rate].as_f64().unwrap() > 0.0, "{family}: {rate}");
        }
        let sequence = list(&[prompt, &tokens].concat());
        let score =
            json(&[&["score"], &model[..], &["--tokens", &sequence, "--top", "1"]].concat());
        for (i, token) in tokens.iter().enumerate() {
            let (best, logprob) = row(&score["top"], prompt.len() - 1 + i)[0];
            assert_eq!(best, *token, "{family}, token {i}");
            assert!(is_close(&answer["logprobs"][i], logprob), "{family}, token {i}");
        }
    }
}

fn demo() -> Vec<Json> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/demo.json");
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

#[test]
fn the_demo_model_answers() {
    let demo = demo();
    let questions = demo.iter().filter(|entry| entry.get("question").is_some());
    for entry in questions.step_by(8) {
        let question = entry["question"].as_str().unwrap();
        let answer = entry["answer"].as_str().unwrap();
        let (code, out, err) = run(&["generate", question], "");
        assert_eq!((code, out.trim_end()), (Some(0), answer), "{question}");
        assert!(err.contains("tokens/s") && err.lines().count() == 1, "{err}");
        assert_eq!(json(&["generate", "--prompt", question])["text"], answer);
        assert_eq!(run(&["generate", "-"], question).1.trim_end(), answer);
    }
}

#[test]
fn logs_show_the_steps_and_never_the_text() {
    let (code, out, err) = run(&["-vvv", "generate", "What is 3 + 4?"], "");
    assert_eq!((code, out.trim()), (Some(0), "3 + 4 = 7."), "{err}");
    for (span, event) in [
        ("load{model=", "load started"),
        ("load{model=", "load finished"),
        ("prefill{tokens=", "prefill started"),
        ("prefill{tokens=", "prefill finished"),
        ("decode", "decode started"),
        ("decode", "decode step"),
        ("decode", "generation finished"),
    ] {
        let is_it = |line: &str| line.contains(span) && line.contains(event);
        assert!(err.lines().any(is_it), "{span} {event}: {err}");
    }
    assert!(!err.contains("What is") && !err.contains("= 7"), "{err}");
    let (_, _, err) = run(&["-v", "generate", "What is 3 + 4?"], "");
    assert!(err.contains("load finished") && !err.contains("decode step"), "{err}");
}

#[test]
fn a_chat_remembers_until_it_is_cleared() {
    let demo = demo();
    let two_turns = |entry: &&Json| {
        let roles = entry["messages"].as_array().into_iter().flatten();
        roles.map(|message| &message["role"]).eq(["user", "assistant", "user"])
    };
    for entry in demo.iter().filter(two_turns) {
        let turn = |i: usize| entry["messages"][i]["content"].as_str().unwrap();
        let (first, second) = (turn(0), turn(2));
        let input = format!("{first}\n{second}\n/clear\n{first}\n/quit\n{second}\n");
        let (code, out, err) = run(&["chat"], &input);
        let answers: Vec<_> = out.lines().collect();
        let expected = [turn(1), entry["answer"].as_str().unwrap(), turn(1)];
        assert_eq!((code, &answers[..]), (Some(0), &expected[..]), "{err}");
        assert_eq!(err.lines().count(), 4, "{err}");
        assert!(err.contains("new conversation"), "{err}");
        assert!(!format!("{out}{err}").contains('\x1b'));
    }
}

#[test]
fn a_chat_has_commands_and_messages_of_several_lines() {
    let (code, out, err) = run(&["chat"], "/help\n/?\n/nonsense\n");
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out.matches("/clear").count(), 2, "{out}");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.contains("/nonsense") && err.contains("/help"), "{err}");

    let (_, one, _) = run(&["chat"], "What is 3 + 4?\n");
    for several in ["\"\"\"\nWhat is 3 + 4?\n\"\"\"\n", "\"\"\"What is 3 + 4?\"\"\"\n"] {
        let (code, out, err) = run(&["chat"], several);
        assert_eq!((code, out.as_str(), err.lines().count()), (Some(0), one.as_str(), 1), "{err}");
    }
}

#[test]
fn an_answer_that_is_cut_says_so_and_how_to_get_more() {
    let options = ["--ignore-eos", "--prompt", "Hello", "--max-tokens"];
    let generate = |tokens: &str| run(&[&["generate"], &options[..], &[tokens]].concat(), "").2;
    assert!(generate("5").contains("--max-tokens"), "the option that cuts is named");
    let full = generate("100000");
    assert!(full.contains("context is full") && !full.contains("--max-tokens"), "{full}");
    let chat = run(&["chat", "--max-tokens", "2"], "What is 3 + 4?\n").2;
    assert!(chat.contains("cut") && chat.contains("--max-tokens"), "{chat}");
    assert!(!run(&["chat"], "What is 3 + 4?\n").2.contains("cut"));
}

#[test]
fn errors_are_one_line_and_have_their_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), r#"{"model_type": "lama"}"#).unwrap();
    let unknown = path(&folder);
    let seeing = tempfile::tempdir().unwrap();
    fs::write(seeing.path().join("config.json"), r#"{"model_type": "moondream3"}"#).unwrap();
    let seeing = path(&seeing);
    let no_vision = format!("{seeing}: vision models of type `moondream3` are not supported yet");
    let dense = write(&Fixture::all().remove(0).1.cases[0]);
    let dense = path(&dense);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["generate", "./nowhere"], 2, "there is no prompt"),
        (&["generate", dense], 2, "there is no prompt"),
        (&["generate", "./nowhere", "Hello"], 1, "./nowhere: "),
        (&["generate", "no/where", "--tokens", "1"], 1, "`no/where@main` is not fully downloaded"),
        (&["chat", "nowhere"], 1, "`nowhere@main` is not fully downloaded"),
        (&["score", "nowhere@v1", "--tokens", "1"], 1, "`nowhere@v1` is not fully downloaded"),
        (&["inspect", "nowhere"], 1, "`nowhere@main` is not fully downloaded"),
        (&["inspect", "./nowhere"], 1, "./nowhere: "),
        (&["inspect", "--context", "16777217"], 1, "option `context`: more than 16777216"),
        (&["download", "nowhere"], 1, "`nowhere@main` is not fully downloaded"),
        (&["download", "../nowhere"], 1, "`../nowhere` is not a repository"),
        (&["download"], 2, "<REPOSITORY>"),
        (&["rm", "no/where"], 1, "`no/where` is not in the cache"),
        (&["rm"], 2, "<REPOSITORY>"),
        (&["generate", unknown, "--tokens", "1"], 1, "`lama` is not supported; did you mean llama"),
        (&["score", unknown, "--tokens", "1"], 1, "`lama` is not supported"),
        (&["generate", seeing, "Hello"], 1, &no_vision),
        (&["generate", dense, "Hello"], 1, "the checkpoint has no tokenizer.json"),
        (&["generate", dense, "--tokens", "1,100000"], 1, "token 100000 is outside"),
        (&["generate", dense, "--tokens", "1", "--top-p", "-1"], 1, "option `top_p`: -1"),
        (&["generate", "Hello", "--temperature", "hot"], 2, "'hot' for '--temperature <T>'"),
        (&["generate", "Hello", "--max-token", "1"], 2, "similar argument exists: '--max-tokens'"),
        (&["generate", "--tokens", "1,two"], 2, "'two' for '--tokens <IDS>'"),
        (&["generate", "--tokens", "1", "--prompt", "Hello"], 2, "cannot be used with"),
        (&["generate"], 2, "there is no prompt"),
        (&["score"], 2, "--tokens <IDS>"),
        (&["sing"], 2, "unrecognized subcommand 'sing'"),
    ];
    for (arguments, code, message) in cases {
        let (found, out, err) = run(arguments, "");
        assert_eq!((found, out.as_str()), (Some(*code), ""), "{arguments:?}: {err}");
        assert!(err.starts_with("mynah: ") && err.contains(message), "{arguments:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{arguments:?}: {err}");
    }
}

/// A generation that has begun: the demo model, with a context that nobody fills.
fn endless() -> Child {
    let folder = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/demo");
    for file in fs::read_dir(demo).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let config = folder.path().join("config.json");
    let mut fields: Json = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    fields["max_position_embeddings"] = json!(1 << 24);
    fs::write(config, fields.to_string()).unwrap();
    let options = ["--ignore-eos", "--max-tokens", "100000000"];
    let mut child = spawn(&[&["generate", path(&folder), "Hello"][..], &options].concat());
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    child
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_a_generation_with_its_statistics() {
    let mut child = endless();
    let interrupt = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &interrupt]).status().unwrap().success());
    child.stdin.take();
    let (code, out, err) = finish(child);
    assert_eq!(code, Some(130), "{err}");
    assert!(out.ends_with('\n') && err.contains("tokens/s"), "{err}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = endless();
    child.stdout.take();
    let (code, _, err) = finish(child);
    assert_eq!((code, err.as_str()), (Some(0), ""));
}

#[test]
fn an_inspection_counts_what_the_headers_say() {
    for (family, fixture) in Fixture::all() {
        for case in fixture.cases {
            let folder = write(&case);
            let inspection = json(&["inspect", path(&folder)]);
            let name = case.name.clone();
            let label = format!("{family}, {name}: {inspection}");
            assert_eq!(inspection["model_type"], case.config["model_type"], "{label}");
            assert_eq!(inspection["problem"], Json::Null, "{label}");
            assert_eq!(inspection["tokenizer"], false, "{label}");
            let parameters = inspection["parameters"].as_u64().unwrap();
            let packings = inspection["quantization"].as_array().unwrap();
            let (elements, bytes) = on_engine(move || {
                let tensors = case.checkpoint()?;
                let is_weight = |name: &str| {
                    let scales = [
                        "weight_scale",
                        "weight_scale_2",
                        "scale_inv",
                        "activation_scale",
                        "input_scale",
                    ];
                    !scales.iter().any(|scale| name.ends_with(scale))
                };
                let weights = tensors.iter().filter(|(name, _)| is_weight(name));
                let elements = weights.map(|(_, tensor)| tensor.size()).sum::<usize>();
                let bytes = tensors.values().map(mlx_rs::Array::nbytes).sum::<usize>();
                Ok((elements as u64, bytes))
            })
            .unwrap();
            assert_eq!(inspection["bytes"], bytes, "{label}");
            if let Some(bits) =
                name.strip_suffix(" bit").and_then(|name| name.split(' ').next_back())
            {
                assert_eq!(packings[0]["bits"].to_string(), bits, "{label}");
            }
            if packings.is_empty() {
                assert_eq!(parameters, elements, "{label}");
            } else {
                assert!(parameters >= elements, "{label}");
            }
        }
    }
}

#[test]
fn the_demo_model_is_what_its_config_says() {
    let inspection = json(&["inspect", "--context", "1024"]);
    let config = mynah::DEMO.json("config.json").unwrap().unwrap();
    let size = |field: &str| config[field].as_u64().unwrap();
    let (h, ffn, layers) = (128, 384, 4);
    let kv = size("num_key_value_heads") * size("head_dim");
    let layer = 2 * h * h + 2 * h * kv + 3 * h * ffn + 2 * h;
    assert_eq!((&inspection["layers"], &inspection["hidden_size"]), (&json!(layers), &json!(h)));
    assert_eq!(inspection["parameters"], size("vocab_size") * h + layers * layer + h);
    let packing = json!([{"mode": "affine", "bits": 8, "group_size": 64, "matrices": 4 * 7 + 1}]);
    assert_eq!(inspection["quantization"], packing);
    let known = json!({"family": "llama", "problem": null, "capabilities": ["text"],
        "context": 512, "tokenizer": true, "chat_template": true, "gated": null});
    for (field, value) in known.as_object().unwrap() {
        assert_eq!(inspection[field], *value, "{field}");
    }
    let memory = &inspection["memory"];
    assert_eq!(memory["weights"], inspection["bytes"]);
    assert_eq!(memory["cache"], 1024 * 2 * layers * kv * 4);
    assert_eq!((&memory["context"], &memory["fits"]), (&json!(1024), &json!(true)));
    let longer = json(&["inspect", "--context", "16777216"]);
    assert_eq!(longer["memory"]["cache"], (1 << 24) * 2 * layers * kv * 4);
}

#[test]
fn families_are_listed_with_their_model_types() {
    let types =
        |family: &families::Entry| (family.model_types[0].into(), json!(family.model_types));
    let all: Map<String, Json> = families::all().map(types).collect();
    assert_eq!(json(&["families"]), Json::Object(all));
}
