//! What models of speech are tried with.

use mynah::Audio;
use serde_json::{Map, Value as Json, json};
use std::f64::consts::TAU;

/// The sound of scripts/fixtures_speech.py.
pub fn sound(seconds: f64) -> Audio {
    let sample = |i: usize| {
        let t = i as f64 / 16_000.0;
        let swell = 0.5 + 0.5 * (TAU * 1.3 * t).sin();
        let tone = 0.4 * swell * (TAU * (220.0 + 30.0 * t) * t).sin();
        (tone + 0.05 * (TAU * 3100.0 * t).sin()) as f32
    };
    Audio::mono((0..(seconds * 16_000.0) as usize).map(sample).collect(), 16_000)
}

/// A tokenizer of bytes with the special tokens of a multilingual model at their usual ids, and words that
/// no text is encoded to.
pub fn multilingual_tokenizer() -> String {
    let is_visible = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let hidden: Vec<u32> = (0..256).filter(|byte| !is_visible(byte)).collect();
    let name = |byte: u32| match hidden.iter().position(|hidden| *hidden == byte) {
        Some(index) => char::from_u32(256 + index as u32).unwrap().to_string(),
        None => char::from_u32(byte).unwrap().to_string(),
    };
    let mut vocabulary: Map<String, Json> =
        (0..256).map(|byte| (name(byte), json!(byte))).collect();
    vocabulary.extend((256..50_257).map(|id| (format!("Ġw{id}"), json!(id))));
    let languages = ["en", "zh", "de"].map(String::from);
    let others = (3..99).map(|i| format!("x{i}"));
    let mut special = vec!["<|endoftext|>".to_string(), "<|startoftranscript|>".into()];
    special.extend(languages.into_iter().chain(others).map(|code| format!("<|{code}|>")));
    for name in
        ["translate", "transcribe", "startoflm", "startofprev", "nocaptions", "notimestamps"]
    {
        special.push(format!("<|{name}|>"));
    }
    special.extend((0..=1500).map(|step| format!("<|{:.2}|>", f64::from(step) * 0.02)));
    let added = special.iter().zip(50_257..).map(|(content, id)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    let level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "added_tokens": added.collect::<Vec<_>>(),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": [],
        },
    })
    .to_string()
}
