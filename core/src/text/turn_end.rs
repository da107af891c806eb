//! The tokens with which a chat template closes an assistant's turn.
//!
//! Templates are programs, so short conversations are rendered and searched: what follows the assistant's last words
//! closes its turn. A token that also stands inside of a turn, such as the end of a channel of reasoning, closes none.

use crate::text::tokenizer::ControlTokens;
use crate::text::{ChatTemplate, Content, Message, TemplateOptions, Tokenizer};
use serde_json::json;
use std::collections::BTreeSet;

const QUESTION: &str = "Questionword";
const THOUGHT: &str = "Thoughtword";
const ANSWER: &str = "Answerword";
const ARGUMENT: &str = "Argumentword";

/// The ids of the tokens that close an assistant's turn; none where the template closes it with other text, or refuses
/// such conversations.
pub(crate) fn turn_ends(template: &ChatTemplate, tokenizer: &Tokenizer) -> BTreeSet<u32> {
    let probe = Probe { template, control: template.control_tokens(tokenizer) };
    let mut ends = BTreeSet::new();
    ends.extend(probe.last_turn().or_else(|| probe.earlier_turn()));
    ends.extend(probe.call());
    let inner = probe.inner_tokens();
    ends.iter()
        .filter(|token| !inner.contains(*token))
        .filter_map(|t| tokenizer.token_id(t))
        .collect()
}

struct Probe<'a> {
    template: &'a ChatTemplate,
    control: ControlTokens,
}

/// A part of a rendered conversation.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    Token(String),
    Text(String),
}

impl Probe<'_> {
    fn render(&self, messages: &[Message]) -> Option<String> {
        let options = TemplateOptions::default().add_generation_prompt(false);
        let render = |messages: &[Message]| self.template.render(messages, &options).ok();
        let is_complete = |text: &String| text.contains(QUESTION);
        render(messages).filter(is_complete).or_else(|| {
            // Some templates take texts only as parts of a message.
            let parts = |message: &Message| {
                let mut message = message.clone();
                if let Some(Content::Text(text)) = &message.content {
                    let parts = json!([{"type": "text", "text": text}]);
                    message.content = serde_json::from_value(parts).ok();
                }
                message
            };
            render(&messages.iter().map(parts).collect::<Vec<_>>()).filter(is_complete)
        })
    }

    /// The parts of a text.
    fn parts(&self, text: &str) -> Vec<Part> {
        let (mut at, mut parts) = (0, Vec::new());
        let tokens = self.control.within(text, 0..text.len());
        for token in tokens.into_iter().chain(std::iter::once(text.len()..text.len())) {
            let before = text[at..token.start].trim();
            if !before.is_empty() {
                parts.push(Part::Text(before.into()));
            }
            if !token.is_empty() {
                parts.push(Part::Token(text[token.clone()].into()));
            }
            at = token.end;
        }
        parts
    }

    /// What closes the last turn of a conversation.
    fn last_turn(&self) -> Option<String> {
        let text = self.render(&[Message::user(QUESTION), Message::assistant(ANSWER)])?;
        let question = text.find(QUESTION)? + QUESTION.len();
        let answer = text.rfind(ANSWER).filter(|answer| *answer >= question)?;
        let closing = self.parts(&text[answer + ANSWER.len()..]);
        // A template may write the header of an answer at the end although no prompt is wanted.
        let header = self.parts(&text[question..answer]);
        let is_symmetric = closing == header && self.parts(&text[..question]).len() == 1;
        first_token(if is_symmetric { &closing } else { without_suffix(&closing, &header) })
    }

    /// What closes a turn before another question, whose header follows.
    fn earlier_turn(&self) -> Option<String> {
        let next = "Nextword";
        let talk = [Message::user(QUESTION), Message::assistant(ANSWER), Message::user(next)];
        let text = self.render(&talk)?;
        let header = self.parts(&text[..text.find(QUESTION)?]);
        let answer = text.rfind(ANSWER)? + ANSWER.len();
        let closing = self.parts(text.get(answer..text.rfind(next)?)?);
        first_token(without_suffix(&closing, &header))
    }

    /// What closes a turn that calls a tool.
    fn call(&self) -> Option<String> {
        let text = self.render(&[Message::user(QUESTION), call(None)])?;
        let argument = text.rfind(ARGUMENT)? + ARGUMENT.len();
        let closing = self.parts(&text[argument..]);
        match closing.last()? {
            Part::Token(token) => Some(token.clone()),
            Part::Text(_) => None,
        }
    }

    /// The tokens between an assistant's reasoning and what follows it in the same turn.
    fn inner_tokens(&self) -> BTreeSet<String> {
        let answer =
            Message { reasoning_content: Some(THOUGHT.into()), ..Message::assistant(ANSWER) };
        let talks = [(answer, ANSWER), (call(Some(THOUGHT.into())), ARGUMENT)];
        let between = |(message, end): &(Message, &str)| {
            let text = self.render(&[Message::user(QUESTION), message.clone()])?;
            let thought = text.find(THOUGHT)? + THOUGHT.len();
            let parts = self.parts(text.get(thought..text.rfind(end)?)?);
            Some(parts.into_iter().filter_map(|part| match part {
                Part::Token(token) => Some(token),
                Part::Text(_) => None,
            }))
        };
        talks.iter().filter_map(between).flatten().collect()
    }
}

fn call(reasoning_content: Option<String>) -> Message {
    let function = json!({"name": "look", "arguments": {"what": ARGUMENT}});
    let call = json!({"id": "call12345", "type": "function", "function": function});
    let tool_calls = Some(vec![call]);
    Message { reasoning_content, tool_calls, ..Message::assistant("") }
}

fn first_token(parts: &[Part]) -> Option<String> {
    parts.iter().find_map(|part| match part {
        Part::Token(token) => Some(token.clone()),
        Part::Text(_) => None,
    })
}

/// The parts before those that are equal at the ends of both.
fn without_suffix<'a>(parts: &'a [Part], other: &[Part]) -> &'a [Part] {
    let equal = parts.iter().rev().zip(other.iter().rev()).take_while(|(a, b)| a == b).count();
    &parts[..parts.len() - equal]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::tests::with_added;

    const TOKENS: [&str; 9] = [
        "<|end|>",
        "<|start|>",
        "<|eot|>",
        "</s>",
        "<s>",
        "<|return|>",
        "<|call|>",
        "<|message|>",
        "<|user|>",
    ];

    fn ends(template: &str) -> Vec<String> {
        let tokenizer = with_added(&TOKENS);
        let template = ChatTemplate::from_source(template).unwrap();
        let ids = turn_ends(&template, &tokenizer);
        ids.iter().filter_map(|id| tokenizer.token(*id)).collect()
    }

    #[test]
    fn what_closes_an_answer_ends_it() {
        let each = |body: &str| format!("{{% for m in messages %}}{body}{{% endfor %}}");
        for (template, expected) in [
            // Users and assistants close with the same token.
            (each("<|start|>{{ m.role }}\n{{ m.content }}<|eot|>\n"), &["<|eot|>"][..]),
            // Text between the content and the token.
            (each("<|start|>{{ m.role }}: {\"say\": \"{{ m.content }}\"}<|eot|>"), &["<|eot|>"]),
            // No token, and only the start of the next turn.
            (each("<s>{{ m.role }}: {{ m.content }}\n"), &[]),
            (
                each(
                    "{% if m.role == 'user' %}<s>[{{ m.content }}]{% else %}{{ m.content }}{% endif %}",
                ),
                &[],
            ),
            (
                each(
                    "{% if m.role == 'user' %}<s>[{{ m.content }}]{% else %}{{ m.content }}</s>{% endif %}",
                ),
                &["</s>"],
            ),
            // The token comes only before the next turn.
            (
                each(
                    "{% if m.role == 'user' %}{% if not loop.first %}<|eot|>{% endif %}<|user|>{{ m.content }}{% else %}<|start|>{{ m.content }}{% endif %}",
                ),
                &["<|eot|>"],
            ),
            // A header although no prompt is wanted.
            (
                format!(
                    "{}<|start|>",
                    each(
                        "{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}<|start|>{{ m.content }}{% endif %}"
                    )
                ),
                &[],
            ),
            (each("{{ m.content }}</s>"), &["</s>"]),
            (each("<|start|>{{ m.content[0].text }}<|eot|>"), &["<|eot|>"]),
            ("{{ raise_exception('no') }}".into(), &[]),
            // Channels: `<|end|>` closes the reasoning too.
            (
                each(
                    "{% if m.role == 'assistant' %}{% if m.thinking %}<|start|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}\
                     {% if m.tool_calls %}<|start|>call<|message|>{{ m.tool_calls[0].function.arguments|tojson }}<|call|>\
                     {% elif loop.last %}<|start|>final<|message|>{{ m.content }}<|return|>{% else %}<|start|>{{ m.content }}<|end|>{% endif %}\
                     {% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}",
                ),
                &["<|return|>", "<|call|>"],
            ),
        ] {
            assert_eq!(ends(&template), expected, "{template}");
        }
    }
}
