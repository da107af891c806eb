//! What is known of fields that no reader consumed: which of them change no number, and which do.

use crate::{
    checkpoint::config::json::Json,
    error::{Error, Result},
};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, sync::LazyLock};

/// The fields that are known, as `known_fields.json` lists them.
#[derive(Deserialize)]
struct Known {
    /// Fields that change no number of a model that loads, under the reason why.
    harmless: BTreeMap<String, Vec<String>>,
    /// Fields that change the numbers of a family that does not use them, and the values with which
    /// they change none, beside null. A list is neutral where each of its elements is.
    decisive: BTreeMap<String, BTreeMap<String, Vec<Value>>>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    serde_json::from_str(include_str!("known_fields.json")).expect("the list of fields is JSON")
});

impl Known {
    fn harmless(&self) -> impl Iterator<Item = &str> {
        self.harmless.values().flatten().map(String::as_str)
    }

    fn decisive(&self) -> impl Iterator<Item = (&String, &Vec<Value>)> {
        self.decisive.values().flatten()
    }
}

/// The fields that no reader consumed and of which nothing is known.
///
/// # Errors
/// [`Error::Unsupported`] for a field that no reader consumed and that changes the numbers.
pub fn ignored_fields(config: &Json) -> Result<Vec<String>> {
    let (mut ignored, mut refused) = (Vec::new(), None);
    config.visit_unread("", &mut |path, value| match judge(path, &value.to_value()) {
        Judgement::Harmless => {}
        Judgement::Unknown => ignored.push(path.to_string()),
        Judgement::Decisive(path, value) => {
            refused.get_or_insert((path, value));
        }
    });
    match refused {
        Some((path, value)) => {
            let reason = format!(
                "{value} is not supported: this model's family does not use the field, which \
                 changes the numbers"
            );
            Err(Error::unsupported(path, reason))
        }
        None => Ok(ignored),
    }
}

enum Judgement {
    /// It changes no number, or has the value that changes none.
    Harmless,
    Unknown,
    /// It changes the numbers.
    Decisive(String, Value),
}

fn judge(path: &str, value: &Value) -> Judgement {
    if value.is_null() || KNOWN.harmless().any(|name| names_field(name, path)) {
        return Judgement::Harmless;
    }
    if let Some((_, neutral)) = KNOWN.decisive().find(|(name, _)| names_field(name, path)) {
        return match is_neutral(value, neutral) {
            true => Judgement::Harmless,
            false => Judgement::Decisive(path.into(), value.clone()),
        };
    }
    // Of an object as a whole, all that is in it must be known.
    let Some(fields) = value.as_object() else { return Judgement::Unknown };
    let mut judgement = Judgement::Harmless;
    for (name, value) in fields {
        match judge(&format!("{path}.{name}"), value) {
            Judgement::Harmless => {}
            Judgement::Unknown => judgement = Judgement::Unknown,
            decisive => return decisive,
        }
    }
    judgement
}

/// Whether an entry of the lists is about a field. An entry with dots is the end of its path;
/// `*_id` is any name that ends so, `use_*` any that starts so; and a plain name is that of the field
/// or of an object around it.
fn names_field(entry: &str, path: &str) -> bool {
    if entry.contains('.') {
        return path == entry || path.strip_suffix(entry).is_some_and(|rest| rest.ends_with('.'));
    }
    let is_named = |part: &str| match (entry.strip_prefix('*'), entry.strip_suffix('*')) {
        (Some(end), _) => part.ends_with(end),
        (_, Some(start)) => part.starts_with(start),
        _ => part == entry,
    };
    path.split('.').any(is_named)
}

/// Whether a value, or each element of a list, is one of these.
fn is_neutral(value: &Value, neutral: &[Value]) -> bool {
    if let Value::Array(items) = value {
        return items.iter().all(|item| item.is_null() || is_neutral(item, neutral));
    }
    neutral.iter().any(|neutral| match (value.as_f64(), neutral.as_f64()) {
        (Some(value), Some(neutral)) => value == neutral,
        _ => value == neutral,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ignored(config: Value) -> Result<Vec<String>> {
        ignored_fields(&config.into())
    }

    #[test]
    fn a_field_is_unknown_harmless_or_decisive() {
        let known = json!({
            "use_cache": true, "eos_token_id": [1, 2], "attention_dropout": 0.1, "use_alibi": false,
            "attention_multiplier": 1, "residual_multiplier": 1.0, "qk_norm": null,
            "no_rope_layers": [1, 1], "vision_config": {"hidden_act": "gelu"},
            "quantization": {"bits": 4, "group_size": 64},
        });
        assert!(ignored(known).unwrap().is_empty());
        let unknown = json!({"my_field": 1, "nested": {"use_cache": true, "other": 2}});
        assert_eq!(ignored(unknown).unwrap(), ["my_field", "nested"]);
        for (field, value) in [
            ("use_alibi", json!(true)),
            ("attention_multiplier", json!(0.5)),
            ("no_rope_layers", json!([1, 0])),
            ("clip_qkv", json!(8)),
            ("rope_scaling", json!({"rope_type": "yarn"})),
        ] {
            let error = ignored(json!({ field: value })).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: `{field}")), "{error}");
        }
    }

    #[test]
    fn an_entry_stands_in_one_list_and_once() {
        let mut all: Vec<&str> = KNOWN.harmless().collect();
        all.extend(KNOWN.decisive().map(|(name, _)| name.as_str()));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(count, all.len());
        let is_shadowed = |name: &str| KNOWN.harmless().any(|entry| names_field(entry, name));
        let shadowed: Vec<_> = KNOWN.decisive().filter(|(name, _)| is_shadowed(name)).collect();
        assert!(shadowed.is_empty(), "{shadowed:?}");
    }
}
