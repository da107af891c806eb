//! [Orpheus](https://github.com/canopyai/Orpheus-TTS): a Llama that continues a text with the codes of SNAC,
//! seven tokens a frame. The codec is a repository of its own.
//!
//! Follows `llama` of mlx-audio's models of speech. As in the authors' code, tokens that are no codes
//! are passed over.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Build, Checkpoint, Entry, prelude::*, synthesis::snac_tokens::SnacTokens, text},
    models::speaker::Speaker,
};

pub const ENTRY: Entry = Entry {
    model_types: &["orpheus", "llama_tts"],
    build: Build::Speaker(build),
    recommended: Recommended::NOTHING,
    files: FileRules {
        // Published configs are those of a Llama with a larger vocabulary.
        matches: Some(|contents| contents.config.is_some_and(|c| TOKENS.are_those_of(c, "llama"))),
        ..FileRules::USUAL
    },
    processor: None,
};

const TOKENS: SnacTokens = SnacTokens {
    start_of_human: 128_259,
    end_of_text: 128_009,
    end_of_human: 128_260,
    start_of_answer: 128_261,
    start_of_speech: 128_257,
    end_of_speech: 128_258,
    end_of_answer: 128_262,
    first_code: 128_266,
};

/// The voices of the English model.
const VOICES: &[&str] = &["tara", "leah", "jess", "leo", "dan", "mia", "zac", "zoe"];

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Speaker>> {
    let decoder = text::language("llama", checkpoint.config, checkpoint.weights)?;
    TOKENS.speaker(checkpoint, decoder.into(), VOICES)
}
