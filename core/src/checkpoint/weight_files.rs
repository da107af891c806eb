//! Which files hold the weights of a model, told by the index of the shards and by the names of the
//! files. A folder and a hub's list of files are judged alike.

use crate::error::{Error, Result};
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// The file that maps each tensor to its shard.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The names of the files of weights.
#[derive(Debug, Default)]
pub(crate) struct WeightFiles {
    pub names: BTreeSet<String>,
    /// Whether there is an index and it names none of them: a conversion has kept the index of its
    /// source.
    pub index_is_stale: bool,
}

impl WeightFiles {
    /// Chooses among the `present` files: the shards that the index names, or else
    /// `model*.safetensors`. `path` is what errors call a file.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when there are none, when a shard is missing, or when there are two sets
    /// of shards and no index that chooses.
    pub fn choose(
        index: Option<&Json>,
        present: &BTreeSet<String>,
        path: impl Fn(&str) -> PathBuf,
    ) -> Result<Self> {
        let damaged = |file: &str, reason: String| Error::Checkpoint { file: path(file), reason };
        let indexed = index.map(indexed).transpose().map_err(|reason| damaged(INDEX, reason))?;
        let first_missing =
            indexed.as_ref().and_then(|names| names.iter().find(|name| !present.contains(*name)));
        let names = match (indexed.as_ref(), first_missing) {
            (Some(names), None) => {
                return Ok(WeightFiles { names: names.clone(), ..Self::default() });
            }
            (Some(names), Some(_)) if names.is_disjoint(present) => usual(present),
            (Some(_), Some(_)) => BTreeSet::new(),
            (None, _) => usual(present),
        };
        match (names.is_empty(), first_missing) {
            (true, Some(missing)) => {
                let reason =
                    format!("this shard is missing, and {INDEX} names it; download it again");
                Err(damaged(missing, reason))
            }
            (true, None) => {
                let reason = "is missing, and there is no model*.safetensors in its place".into();
                Err(damaged("model.safetensors", reason))
            }
            _ => {
                check_sets(&names).map_err(|(file, reason)| damaged(&file, reason))?;
                Ok(WeightFiles { names, index_is_stale: index.is_some() })
            }
        }
    }
}

/// The shards that an index names; an error says what is wrong with it.
fn indexed(index: &Json) -> Result<BTreeSet<String>, String> {
    let map = index.get("weight_map").and_then(Json::as_object).ok_or("has no weight_map")?;
    let shard = |(tensor, shard): (&String, &Json)| match shard.as_str() {
        // A shard outside of the directory is not part of this checkpoint.
        Some(name) if !name.contains(['/', '\\']) && name.ends_with(".safetensors") => {
            Ok(name.to_string())
        }
        _ => Err(format!("`{tensor}` is mapped to {shard}, not to a shard")),
    };
    let shards = map.iter().map(shard).collect::<Result<BTreeSet<_>, _>>()?;
    if shards.is_empty() { Err("maps no tensor".into()) } else { Ok(shards) }
}

/// The files of weights where no index names them.
fn usual(present: &BTreeSet<String>) -> BTreeSet<String> {
    let is_usual = |name: &&String| name.starts_with("model") && name.ends_with(".safetensors");
    present.iter().filter(is_usual).cloned().collect()
}

/// Checks that the shards of each set are complete and that no weights are there twice; the error has
/// the file that it is about.
fn check_sets(names: &BTreeSet<String>) -> Result<(), (String, String)> {
    // By the name before the numbers: the number of shards that names announce, and one of these names.
    let mut sets = BTreeMap::<&str, BTreeMap<usize, Vec<&String>>>::new();
    for name in names {
        let (stem, count) = set_of(name);
        sets.entry(stem).or_default().entry(count).or_default().push(name);
    }
    for set in sets.values() {
        let mut kinds = set.iter();
        let Some((count, shards)) = kinds.next() else { continue };
        if let Some((_, others)) = kinds.next() {
            let reason = format!(
                "this file and {} belong to two sets of the same weights, and no index chooses; keep \
                 one set",
                others[0]
            );
            return Err((shards[0].clone(), reason));
        }
        if *count != shards.len() {
            let reason =
                format!("{} of {count} shards are here; download the missing ones", shards.len());
            return Err((shards[0].clone(), reason));
        }
    }
    Ok(())
}

/// The name before the numbers, and the number of shards: 3 of `model-00001-of-00003.safetensors`.
fn set_of(name: &str) -> (&str, usize) {
    let name = name.strip_suffix(".safetensors").unwrap_or(name);
    let numbered = name.rsplit_once("-of-").and_then(|(start, count)| {
        let (stem, number) = start.rsplit_once('-')?;
        number.parse::<usize>().ok()?;
        Some((stem, count.parse().ok()?))
    });
    numbered.unwrap_or((name, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn choose(index: Option<&Json>, present: &[&str]) -> Result<WeightFiles> {
        let present = present.iter().map(|name| (*name).to_string()).collect();
        WeightFiles::choose(index, &present, |name| name.into())
    }

    fn index(shards: &[&str]) -> Json {
        let map: serde_json::Map<_, _> =
            shards.iter().enumerate().map(|(i, shard)| (format!("t{i}"), json!(shard))).collect();
        json!({ "weight_map": map })
    }

    #[test]
    fn an_index_that_names_no_file_that_exists_is_ignored() {
        let stale =
            index(&["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
        let chosen = choose(Some(&stale), &["config.json", "model.safetensors"]).unwrap();
        assert!(chosen.index_is_stale && chosen.names.contains("model.safetensors"));
        let refused = choose(Some(&stale), &["model-00001-of-00003.safetensors"]);
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("1 of 3 shards"), "{refused}");
        // A part of it exists, or nothing does.
        for present in [&["model-00001-of-00002.safetensors", "model.safetensors"][..], &[]] {
            let refused = choose(Some(&stale), present).unwrap_err().to_string();
            let missing = if present.is_empty() { "model-00001" } else { "model-00002" };
            assert!(refused.starts_with(missing) && refused.contains("missing"), "{refused}");
        }
        let whole = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "x"];
        assert!(!choose(Some(&stale), &whole).unwrap().index_is_stale);
    }

    #[test]
    fn two_sets_of_weights_need_an_index() {
        let two = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let three = [1, 2, 3].map(|i| format!("model-0000{i}-of-00003.safetensors"));
        let sets = [&two[..], &three.each_ref().map(|name| &**name)].concat();
        for present in [sets.clone(), [&two[..], &["model.safetensors"]].concat()] {
            let refused = choose(None, &present).unwrap_err().to_string();
            assert!(refused.contains("two sets"), "{refused}");
        }
        assert_eq!(choose(Some(&index(&two)), &sets).unwrap().names.len(), 2);
        let parts =
            [&two[..], &["model-mtp.safetensors", "model_extra-00001-of-00001.safetensors"]];
        assert_eq!(choose(None, &parts.concat()).unwrap().names.len(), 4);
    }
}
