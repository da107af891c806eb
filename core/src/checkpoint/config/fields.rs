//! Ways to read fields, and to prepare a config for a reader: defaults, other names, less.

use crate::{
    checkpoint::config::json::Json,
    error::{Error, Result},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads the fields of `T` from a config.
///
/// # Errors
/// [`Error::Config`] with the path of the field that is missing or has a wrong type or value.
pub fn read<T: DeserializeOwned>(config: &Json) -> Result<T> {
    serde_path_to_error::deserialize(config).map_err(|error| {
        let (path, reason) = (error.path().to_string(), error.inner().to_string());
        let path = if path == "." { String::new() } else { path };
        let missing =
            reason.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        match missing {
            Some(field) if path.is_empty() => Error::config(field, "missing"),
            Some(field) => Error::config(format!("{path}.{field}"), "missing"),
            None => Error::config(path, reason),
        }
    })
}

/// Reads one field of a config; one that is absent is like null.
///
/// # Errors
/// [`Error::Config`] with the path of what is missing or has a wrong type or value.
pub fn field<T: DeserializeOwned>(config: &Json, name: &str) -> Result<T> {
    let Some(value) = config.peek(name).filter(|value| !value.is_null()) else {
        return T::deserialize(Value::Null).map_err(|_| Error::config(name, "missing"));
    };
    read(value).map_err(|error| {
        error.with_field(|field| {
            let dot = if field.is_empty() || field.starts_with('[') { "" } else { "." };
            format!("{name}{dot}{field}")
        })
    })
}

/// Refuses a config in which one of these fields has another value; they may be absent or null.
///
/// # Errors
/// [`Error::Unsupported`] with the field at fault.
pub fn only(config: &Json, supported: Value) -> Result<()> {
    for (field, only) in supported.as_object().into_iter().flatten() {
        only_one_of(config, field, std::slice::from_ref(only))?;
    }
    Ok(())
}

/// As [`only`], for one field with several values that mean the same to a family. A list may have
/// any of them as its elements.
///
/// # Errors
/// As [`only`].
pub fn only_one_of(config: &Json, field: &str, supported: &[Value]) -> Result<()> {
    let Some(value) = config.get(field).filter(|value| !value.is_null()) else { return Ok(()) };
    let given = value.to_value();
    let is_same = |given: &Value, only: &Value| match (given.as_f64(), only.as_f64()) {
        (Some(given), Some(only)) => given == only,
        _ => given == only,
    };
    let is_supported = |given: &Value| supported.iter().any(|only| is_same(given, only));
    if is_supported(&given)
        || given.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(is_supported))
    {
        return Ok(());
    }
    let supported: Vec<String> = supported.iter().map(Value::to_string).collect();
    let reason = format!("{given} is not supported, only {} is", supported.join(" or "));
    Err(Error::unsupported(field, reason))
}

/// `config` with the fields that it does not have, or that are null, taken from `defaults`; a null
/// there is no default.
pub fn with_defaults(config: &Json, defaults: impl Into<Json>) -> Json {
    let defaults = defaults.into();
    let (Some(given), Some(defaults)) = (config.fields(), defaults.fields()) else {
        return config.clone();
    };
    let mut fields = given.clone();
    for (name, default) in defaults.iter().filter(|(_, default)| !default.is_null()) {
        let is_null = |value: &Json| value.is_null() && !NULL_IS_NONE.contains(&name.as_str());
        if fields.get(name).is_none_or(is_null) {
            fields.insert(name.clone(), default.clone());
        }
    }
    Json::object(fields)
}

/// An object in a config, with these fields where it does not have them; it may be absent.
pub fn part(config: &Json, name: &str, defaults: Value) -> Json {
    let given = config.get(name).filter(|given| !given.is_null());
    with_defaults(&given.cloned().unwrap_or_else(|| Json::object(Default::default())), defaults)
}

/// Fields of which null says that there is none, or that others decide, whatever the default is.
const NULL_IS_NONE: &[&str] = &[
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "global_head_dim",
    "mup_embedding_multiplier",
    "mup_width_multiplier",
    "num_key_value_heads",
    "q_lora_rank",
    "rotary_dim",
];

/// `config` less these fields, which do not count as read.
pub fn without(config: &Json, names: &[&str]) -> Json {
    let Some(fields) = config.fields() else { return config.clone() };
    let mut fields = fields.clone();
    fields.retain(|field, _| !names.contains(&field.as_str()));
    Json::object(fields)
}

/// Reads a config that has other names for fields: `(theirs, ours)`. A field of theirs is used before
/// one of ours, and an earlier one of theirs before a later one.
///
/// # Errors
/// Those of `read`, with their names.
pub fn read_renamed<T>(
    config: &Json,
    names: &[(&str, &str)],
    read: impl FnOnce(&Json) -> Result<T>,
) -> Result<T> {
    let is_given = |name: &str| config.peek(name).is_some_and(|value| !value.is_null());
    let mut fields = config.fields().cloned().unwrap_or_default();
    for (theirs, ours) in names.iter().rev().filter(|(theirs, _)| is_given(theirs)) {
        fields.extend(config.peek(theirs).map(|value| (ours.to_string(), value.clone())));
    }
    read(&Json::object(fields)).map_err(|error| {
        error.with_field(|field| {
            let of_field = || names.iter().filter(|(_, ours)| *ours == field);
            let given = of_field().find(|(theirs, _)| is_given(theirs));
            let missing = || of_field().next().filter(|_| !is_given(field));
            given.or_else(missing).map_or(field, |(theirs, _)| theirs).into()
        })
    })
}

/// The config of the language model, which those of whole models nest. Whether embeddings are tied
/// is what the whole model says.
///
/// # Errors
/// [`Error::Config`] when it is no object.
pub fn text(config: &Json) -> Result<Json> {
    const TIED: &str = "tie_word_embeddings";
    let Some(text) = config.get("text_config").filter(|text| !text.is_null()) else {
        return Ok(config.clone());
    };
    if !text.is_object() {
        return Err(Error::config("text_config", "not an object"));
    }
    let own: Result<Option<bool>> = field(text, TIED);
    own.map_err(|error| error.with_field(|name| format!("text_config.{name}")))?;
    Ok(match config.get(TIED).filter(|tied| !tied.is_null()) {
        Some(tied) => text.with(TIED, tied),
        None => text.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::config::numbers::{Count, Size};
    use serde::Deserialize;
    use serde_json::json;

    fn refused<T>(result: Result<T>) -> String {
        result.err().expect("it is refused").to_string()
    }

    #[test]
    fn a_field_is_read_alone_and_named_with_its_path() {
        let config = Json::from(json!({"heads": 4, "sizes": [1, 0], "nested": {}, "none": null}));
        assert_eq!(*field::<Size>(&config, "heads").unwrap(), 4);
        assert!(field::<Option<Size>>(&config, "none").unwrap().is_none());
        assert!(field::<Option<Size>>(&config, "absent").unwrap().is_none());
        assert_eq!(refused(field::<Size>(&config, "absent")), "config.json: `absent`: missing");
        let error = refused(field::<Vec<Size>>(&config, "sizes"));
        assert!(error.starts_with("config.json: `sizes[1]`: 0 is not a size"), "{error}");
        #[derive(Deserialize)]
        struct Nested {
            #[serde(rename = "width")]
            _width: Size,
        }
        let error = refused(field::<Nested>(&config, "nested"));
        assert_eq!(error, "config.json: `nested.width`: missing");
    }

    #[test]
    fn only_one_value_is_supported() {
        let supported = json!({"loops": 2, "shares": false});
        for config in [json!({}), json!({"loops": 2}), json!({"loops": null, "shares": false})] {
            only(&config.into(), supported.clone()).unwrap();
        }
        let error = refused(only(&json!({"loops": 3}).into(), supported));
        assert_eq!(error, "config.json: `loops`: 3 is not supported, only 2 is");
    }

    #[test]
    fn null_is_as_absent_unless_it_says_none() {
        let config = Json::from(json!({"a": null, "b": 1, "final_logit_softcapping": null}));
        let defaults = json!({"a": 2, "b": 2, "c": 2, "d": null, "final_logit_softcapping": 30});
        let config = with_defaults(&config, defaults);
        for (name, expected) in [("a", 2), ("b", 1), ("c", 2)] {
            assert_eq!(field::<Option<i32>>(&config, name).unwrap(), Some(expected));
        }
        assert_eq!(field::<Option<i32>>(&config, "final_logit_softcapping").unwrap(), None);
        assert_eq!(refused(field::<i32>(&config, "d")), "config.json: `d`: missing");
    }

    #[test]
    fn a_struct_reads_a_null_field_as_an_absent_one() {
        #[derive(Deserialize)]
        struct Fields {
            #[serde(default)]
            layers: i32,
            heads: Count,
        }
        for config in [json!({}), json!({"layers": null, "heads": null})] {
            let Fields { layers, heads } = read(&config.into()).unwrap();
            assert_eq!([layers, *heads], [0, 0]);
        }
    }

    #[test]
    fn a_familys_own_name_is_used_before_another_one() {
        let config = Json::from(json!({"norm_eps": 1, "rms_norm_eps": 2, "eps": 3}));
        let read = |names| read_renamed(&config, names, |c| field::<i32>(c, "rms_norm_eps"));
        assert_eq!(read(&[("norm_eps", "rms_norm_eps"), ("eps", "rms_norm_eps")]).unwrap(), 1);
        assert_eq!(read(&[("epsilon", "rms_norm_eps")]).unwrap(), 2);
        let wrong = |c: &Json| field::<bool>(c, "rms_norm_eps");
        let error = refused(read_renamed(&config, &[("eps", "rms_norm_eps")], wrong));
        assert!(error.starts_with("config.json: `eps`: "), "{error}");
    }

    fn unread(config: &Json) -> Vec<String> {
        let mut paths = Vec::new();
        config.visit_unread("", &mut |path, _| paths.push(path.to_string()));
        paths
    }

    #[test]
    fn a_field_counts_as_read_under_another_name_and_behind_defaults() {
        let config = Json::from(json!({
            "n_embd": 4, "other": {"x": 1}, "rope": {"factor": 2, "truncate": true}, "none": null,
        }));
        #[derive(Deserialize)]
        struct Rope {
            #[serde(rename = "factor")]
            _factor: f32,
        }
        #[derive(Deserialize)]
        struct Fields {
            #[serde(rename = "hidden_size")]
            _hidden_size: Size,
            #[serde(rename = "rope")]
            _rope: Rope,
        }
        assert_eq!(unread(&config), ["n_embd", "other", "rope"]);
        let complete = with_defaults(&config, json!({"vocab_size": 3}));
        read_renamed(&complete, &[("n_embd", "hidden_size")], read::<Fields>).unwrap();
        assert_eq!(unread(&config), ["other", "rope.truncate"]);
    }
}
