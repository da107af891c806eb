//! Which files a family needs, where they are not the usual ones, and how it is recognised by them.

use serde_json::Value;

/// The files of a family beside or instead of the usual ones (`config.json`, the tokenizer, and
/// `model*.safetensors` or the shards of its index). Patterns name files in the repository; one `*`
/// stands for any characters but a slash.
pub struct FileRules {
    /// Further files: `am.mvn`, `voices/*.safetensors`.
    pub beside: &'static [&'static str],
    /// The weights, where they have other names: `model-v1_0.safetensors`. Empty for the usual ones.
    pub weights: &'static [&'static str],
    /// Recognises a checkpoint that no `model_type` tells; it is asked before `model_type` is read.
    pub matches: Option<fn(&Contents) -> bool>,
}

impl FileRules {
    /// The usual files, and `model_type`.
    pub const USUAL: FileRules = FileRules { beside: &[], weights: &[], matches: None };

    /// Whether these are the usual files.
    pub fn is_usual(&self) -> bool {
        self.beside.is_empty() && self.weights.is_empty()
    }
}

/// The list of the modules of a model of sentence-transformers.
pub(crate) const MODULES: &str = "modules.json";

/// What a checkpoint shows before its weights are read.
pub struct Contents<'a> {
    /// The names of its files, with the folder of those that are in one.
    pub names: &'a [String],
    /// Its `config.json`, if it has one.
    pub config: Option<&'a Value>,
    /// Its `modules.json`, if it has one: the modules of sentence-transformers.
    pub modules: Option<&'a Value>,
}

/// Whether one of the patterns fits a name.
pub(crate) fn fits(patterns: &[&str], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.split_once('*') {
        None => *pattern == name,
        Some((start, end)) => {
            let middle = name.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
            middle.is_some_and(|middle| !middle.contains('/'))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stay_in_their_folder() {
        let patterns = ["am.mvn", "voices/*.safetensors", "kokoro-v*"];
        for name in ["am.mvn", "voices/af.safetensors", "kokoro-v1_0.safetensors"] {
            assert!(fits(&patterns, name), "{name}");
        }
        for name in
            ["xam.mvn", "am.mvn.bak", "voices/a/b.safetensors", "voices/a.bin", "a/kokoro-v1"]
        {
            assert!(!fits(&patterns, name), "{name}");
        }
    }
}
