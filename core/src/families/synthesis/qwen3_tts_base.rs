//! [VyvoTTS](https://github.com/Vyvo-Labs/VyvoTTS): Orpheus with Qwen 3 instead of Llama and other ids.
//! Follows `qwen3` of mlx-audio's models of speech.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Build, Checkpoint, Entry, prelude::*, synthesis::snac_tokens::SnacTokens, text},
    models::speaker::Speaker,
};

pub const ENTRY: Entry = Entry {
    model_types: &["qwen3_tts_base", "qwen3base_tts"],
    build: Build::Speaker(build),
    recommended: Recommended::NOTHING,
    files: FileRules {
        matches: Some(|contents| contents.config.is_some_and(|c| TOKENS.are_those_of(c, "qwen3"))),
        ..FileRules::USUAL
    },
    processor: None,
};

const TOKENS: SnacTokens = SnacTokens {
    start_of_human: 151_672,
    end_of_text: 151_645,
    end_of_human: 151_673,
    start_of_answer: 151_674,
    start_of_speech: 151_670,
    end_of_speech: 151_671,
    end_of_answer: 151_675,
    first_code: 151_679,
};

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Speaker>> {
    let decoder = text::language("qwen3", checkpoint.config, checkpoint.weights)?;
    TOKENS.speaker(checkpoint, decoder.into(), &[])
}
