//! Published chat templates render as in transformers.

use mynah::{ChatTemplate, Message, TemplateOptions, civil::date};
use serde::Deserialize;
use serde_json::{Map, Value as Json};
use std::{collections::BTreeMap, env, path::Path, process::Command};

/// What all templates are rendered for.
#[derive(Deserialize)]
struct Known {
    conversations: BTreeMap<String, Vec<Message>>,
    tools: Vec<Json>,
    /// The clock: year, month, day, hour, minute, second.
    now: Vec<i16>,
}

#[derive(Deserialize)]
struct Template {
    name: String,
    source: String,
    cases: Vec<Case>,
}

/// A conversation and options, and what transformers renders or why it refuses.
#[derive(Debug, Deserialize)]
struct Case {
    conversation: String,
    tools: bool,
    add_generation_prompt: bool,
    variables: Map<String, Json>,
    expected: Option<String>,
    error: Option<String>,
}

impl Case {
    /// Whether a result is that of transformers. A loop over `None` is an error there and empty here.
    fn equals(&self, rendered: &mynah::Result<String>) -> bool {
        let is_lenient = || {
            let error = self.error.as_deref().unwrap_or_default();
            error.contains("'NoneType' object is not iterable")
        };
        match rendered {
            Ok(text) => self.expected.as_ref() == Some(text) || is_lenient(),
            Err(_) => self.error.is_some(),
        }
    }
}

/// The templates are those of the package trl and of the folder `MYNAH_TEMPLATES`.
#[test]
fn published_templates_render_as_in_transformers() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/chat_templates.py");
    let mut command = Command::new(mynah_tests::python("templates"));
    command.arg(script).args(env::var_os("MYNAH_TEMPLATES"));
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let output = String::from_utf8(output.stdout).unwrap();
    let mut lines = output.lines();
    let known: Known = serde_json::from_str(lines.next().unwrap()).unwrap();
    let part = |index: usize| i8::try_from(known.now[index]).unwrap();
    let now = date(known.now[0], part(1), part(2)).at(part(3), part(4), part(5), 0);
    let (mut failures, mut texts) = (Vec::new(), 0);
    for line in lines {
        let template: Template = serde_json::from_str(line).unwrap();
        let parsed = ChatTemplate::from_source(&template.source);
        for case in &template.cases {
            let mut variables = case.variables.clone();
            variables.insert("bos_token".into(), "<s>".into());
            variables.insert("eos_token".into(), "</s>".into());
            let options = TemplateOptions::default()
                .add_generation_prompt(case.add_generation_prompt)
                .variables(variables)
                .tools(if case.tools { known.tools.clone() } else { Vec::new() })
                .local_time(now);
            let messages = &known.conversations[&case.conversation];
            let rendered = match &parsed {
                Ok(parsed) => parsed.render(messages, &options),
                Err(error) => Err(mynah::Error::Internal(error.to_string())),
            };
            texts += usize::from(case.expected.is_some());
            if !case.equals(&rendered) {
                failures.push(format!("{}: {case:#?}\n{rendered:#?}", template.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}\n{} differ", failures.join("\n\n"), failures.len());
    assert!(texts > 5_000, "only {texts} conversations rendered");
}
