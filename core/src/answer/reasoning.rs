//! How much a model thinks before it answers.

use crate::answer::Dialect;
use crate::error::{Error, Result};
use serde_json::{Map, Value as Json};
use std::str::FromStr;

/// The switches of chat templates, and whether `true` turns thoughts on.
const SWITCHES: [(&str, bool); 4] = [
    ("enable_thinking", true),
    ("thinking", true),
    ("force_reasoning", true),
    ("skip_reasoning", false),
];

/// The variables of chat templates that hold an effort.
const EFFORTS: [&str; 3] = ["reasoning_effort", "thinking_effort", "reasoning_strength"];

/// The variable of chat templates that holds a mode, and its values without and with thoughts.
const MODE: &str = "thinking_mode";
const MODES: [[&str; 5]; 2] = [
    ["disabled", "off", "chat", "no_think", "none"],
    ["enabled", "on", "thinking", "think", "auto"],
];

/// How hard a model thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    /// No thoughts.
    None,
    /// As few thoughts as possible.
    Minimal,
    /// Few thoughts.
    Low,
    /// The usual amount.
    Medium,
    /// Many thoughts.
    High,
    /// Very many thoughts.
    ExtraHigh,
    /// As many thoughts as the model can have.
    Max,
}

impl Effort {
    /// All efforts in ascending order.
    pub const ALL: [Effort; 7] = [
        Effort::None,
        Effort::Minimal,
        Effort::Low,
        Effort::Medium,
        Effort::High,
        Effort::ExtraHigh,
        Effort::Max,
    ];

    /// The name in chat templates.
    pub fn name(self) -> &'static str {
        match self {
            Effort::None => "none",
            Effort::Minimal => "minimal",
            Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High => "high",
            Effort::ExtraHigh => "xhigh",
            Effort::Max => "max",
        }
    }
}

/// How much a model thinks before it answers. By default its chat template decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reasoning {
    /// The effort, or the nearest that the chat template knows. [`Effort::None`] turns thoughts off.
    pub effort: Option<Effort>,
    /// The maximum number of tokens of thoughts. After it, the thoughts are closed for the model, which
    /// goes on with its answer.
    pub budget: Option<usize>,
}

impl Reasoning {
    /// No thoughts. Where the chat template has no switch, thoughts are closed as soon as they begin.
    pub const OFF: Reasoning = Reasoning { effort: Some(Effort::None), budget: None };

    /// Thoughts with an effort.
    pub const fn effort(effort: Effort) -> Self {
        Reasoning { effort: Some(effort), budget: None }
    }

    /// Thoughts of at most this number of tokens.
    pub const fn budget(tokens: usize) -> Self {
        Reasoning { effort: None, budget: Some(tokens) }
    }

    /// Whether thoughts are wanted; `None` leaves that to the chat template.
    fn is_on(self) -> Option<bool> {
        match (self.effort, self.budget) {
            (Some(effort), _) => Some(effort != Effort::None),
            (None, Some(budget)) => Some(budget > 0),
            (None, None) => None,
        }
    }
}

impl FromStr for Reasoning {
    type Err = Error;

    /// `off`, the name of an effort, or `budget:N`.
    fn from_str(text: &str) -> Result<Self> {
        let budget = text.strip_prefix("budget:").map(str::parse);
        let effort = || Effort::ALL.into_iter().find(|effort| effort.name() == text);
        match (text, budget) {
            ("off", _) => Ok(Reasoning::OFF),
            (_, Some(Ok(tokens))) => Ok(Reasoning::budget(tokens)),
            _ => effort().map(Reasoning::effort).ok_or_else(|| {
                let names = Effort::ALL.map(Effort::name).join(", ");
                Error::option("reasoning", format!("`{text}` is not off, {names} or budget:N"))
            }),
        }
    }
}

impl Dialect {
    /// The variables that tell the chat template how much to think.
    pub fn reasoning_variables(&self, reasoning: Reasoning) -> Map<String, Json> {
        let mut variables = Map::new();
        let Some(is_on) = reasoning.is_on() else { return variables };
        for (name, on) in SWITCHES {
            if self.variables.contains(name) {
                variables.insert(name.into(), (is_on == on).into());
            }
        }
        if self.variables.contains(MODE)
            && let Some(mode) = MODES[usize::from(is_on)].iter().find(|name| self.quotes(name))
        {
            variables.insert(MODE.into(), (*mode).into());
        }
        if self.variables.contains("thinking_budget")
            && let Some(tokens) = reasoning.budget.or((!is_on).then_some(0))
        {
            variables.insert("thinking_budget".into(), tokens.into());
        }
        let has_switch = !variables.is_empty();
        if let Some(effort) = reasoning.effort.filter(|_| is_on || !has_switch) {
            for name in EFFORTS.into_iter().filter(|name| self.variables.contains(*name)) {
                variables.insert(name.into(), self.nearest(effort).name().into());
            }
        }
        variables
    }

    /// The maximum number of tokens of thoughts.
    pub fn thought_budget(&self, reasoning: Reasoning) -> Option<usize> {
        let is_off = reasoning.is_on() == Some(false);
        if is_off { Some(0) } else { reasoning.budget }
    }

    /// The effort that the chat template knows and that is nearest to this one.
    fn nearest(&self, effort: Effort) -> Effort {
        let mut known: Vec<Effort> =
            Effort::ALL.into_iter().filter(|effort| self.quotes(effort.name())).collect();
        if known.len() < 2 {
            known = vec![Effort::Low, Effort::Medium, Effort::High];
        }
        let above = known.iter().copied().find(|known| *known >= effort);
        let below = known.iter().copied().rfind(|known| *known <= effort);
        match effort {
            // More than the template knows is the most that it knows.
            Effort::High | Effort::ExtraHigh | Effort::Max => below.or(above),
            _ => above.or(below),
        }
        .unwrap_or(effort)
    }

    /// Whether the template contains a string.
    fn quotes(&self, text: &str) -> bool {
        ["'", "\""].iter().any(|quote| self.source.contains(&format!("{quote}{text}{quote}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::ChatTemplate;

    fn variables(template: &str, reasoning: Reasoning) -> String {
        let template = ChatTemplate::from_source(template).unwrap();
        let dialect = Dialect::of(Some(&template), None, None);
        Json::Object(dialect.reasoning_variables(reasoning)).to_string()
    }

    #[test]
    fn an_effort_becomes_the_variables_that_a_template_reads() {
        let switch = "{% if enable_thinking is defined and not enable_thinking %}x{% endif %}";
        let set =
            "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ thinking }}";
        let efforts = "{% set e = reasoning_effort or 'medium' %}{{ e }}";
        let levels = "{% if thinking_effort not in ['low', 'high', 'max'] %}{% endif %}";
        let mode =
            "{% if thinking_mode == 'disabled' %}x{% elif thinking_mode == 'enabled' %}{% endif %}";
        for (template, reasoning, expected) in [
            (switch, Reasoning::OFF, r#"{"enable_thinking":false}"#),
            (switch, Reasoning::effort(Effort::Low), r#"{"enable_thinking":true}"#),
            (switch, Reasoning::budget(5), r#"{"enable_thinking":true}"#),
            (switch, Reasoning::default(), "{}"),
            (set, Reasoning::OFF, r#"{"thinking":false}"#),
            (efforts, Reasoning::effort(Effort::Max), r#"{"reasoning_effort":"high"}"#),
            (efforts, Reasoning::OFF, r#"{"reasoning_effort":"low"}"#),
            (levels, Reasoning::effort(Effort::Medium), r#"{"thinking_effort":"high"}"#),
            (levels, Reasoning::effort(Effort::ExtraHigh), r#"{"thinking_effort":"high"}"#),
            (levels, Reasoning::effort(Effort::Max), r#"{"thinking_effort":"max"}"#),
            (mode, Reasoning::OFF, r#"{"thinking_mode":"disabled"}"#),
            (mode, Reasoning::effort(Effort::High), r#"{"thinking_mode":"enabled"}"#),
            ("{{ messages }}", Reasoning::OFF, "{}"),
        ] {
            assert_eq!(variables(template, reasoning), expected, "{template}");
        }
    }

    #[test]
    fn a_text_names_how_much_to_think() {
        assert_eq!("off".parse::<Reasoning>().unwrap(), Reasoning::OFF);
        assert_eq!("xhigh".parse::<Reasoning>().unwrap(), Reasoning::effort(Effort::ExtraHigh));
        assert_eq!("budget:40".parse::<Reasoning>().unwrap(), Reasoning::budget(40));
        for text in ["", "on", "budget:", "budget:-1"] {
            assert!(text.parse::<Reasoning>().is_err(), "{text}");
        }
    }
}
