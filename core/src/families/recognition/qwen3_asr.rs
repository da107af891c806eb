//! Qwen3-ASR ([Shi et al. 2026](https://arxiv.org/abs/2601.21337)): an encoder of chunks, and Qwen 3, which
//! writes the language and the text. Follows `qwen3_asr` of mlx-audio.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Checkpoint, Entry, prelude::*, recognition::chunked_encoder::ChunkedEncoder, text},
    models::speech::{Output, PromptedDecoder, Said, SpeechRequest, Transcriber},
    text::Tokenizer,
};
use std::rc::Rc;

pub const ENTRY: Entry = Entry::transcriber(&["qwen3_asr"], build, FileRules::USUAL);

/// The samples to which shorter clips are padded: mlx-audio pads to a second, transformers to half of it.
const SHORTEST: usize = 16_000;
const SHORTEST_OF_TRANSFORMERS: usize = 8000;
/// References cut longer clips at 20 minutes.
const LONGEST: f64 = 1200.0;
const ENDS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];
const TEXT: &str = "<asr_text>";
const LANGUAGES: &[(&str, &str)] = &[
    ("zh", "Chinese"),
    ("en", "English"),
    ("yue", "Cantonese"),
    ("ar", "Arabic"),
    ("de", "German"),
    ("fr", "French"),
    ("es", "Spanish"),
    ("pt", "Portuguese"),
    ("id", "Indonesian"),
    ("it", "Italian"),
    ("ko", "Korean"),
    ("ru", "Russian"),
    ("th", "Thai"),
    ("vi", "Vietnamese"),
    ("ja", "Japanese"),
    ("tr", "Turkish"),
    ("hi", "Hindi"),
    ("ms", "Malay"),
    ("nl", "Dutch"),
    ("sv", "Swedish"),
    ("da", "Danish"),
    ("fi", "Finnish"),
    ("pl", "Polish"),
    ("cs", "Czech"),
    ("fil", "Filipino"),
    ("fa", "Persian"),
    ("el", "Greek"),
    ("ro", "Romanian"),
    ("hu", "Hungarian"),
    ("mk", "Macedonian"),
];

/// The names of tensors in transformers, and those of the authors.
const OF_TRANSFORMERS: &[(&str, &str)] = &[
    ("model.audio_tower.", "audio_tower."),
    ("model.multi_modal_projector.linear_1.", "audio_tower.proj1."),
    ("model.multi_modal_projector.linear_2.", "audio_tower.proj2."),
    ("model.language_model.", "model."),
];

struct Qwen3Asr {
    encoder: ChunkedEncoder,
    decoder: Rc<dyn LanguageModel>,
    tokenizer: Tokenizer,
    placeholder: u32,
    ends: Vec<u32>,
}

/// The config of the language model.
pub fn language_config(config: &Json) -> Json {
    config::part(
        config,
        "text_config",
        json!({
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
            "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "rope_theta": 1e6,
        }),
    )
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Transcriber>> {
    let Checkpoint { config, weights, files } = *checkpoint;
    let config = config.get("thinker_config").unwrap_or(config);
    let mut language = language_config(config);
    let is_of_transformers = weights.has_below("model.audio_tower");
    if is_of_transformers {
        weights.rename(OF_TRANSFORMERS);
        let tied = config.get("tie_word_embeddings").cloned();
        language = language.with("tie_word_embeddings", tied.unwrap_or_else(|| Json::from(true)));
    }
    let w = if weights.has_below("thinker") { weights.at("thinker") } else { weights.clone() };
    let tokenizer = Tokenizer::load(files)?;
    let placeholder = config.get("audio_token_id").and_then(Json::as_i64);
    let shortest = if is_of_transformers { SHORTEST_OF_TRANSFORMERS } else { SHORTEST };
    Ok(Box::new(Qwen3Asr {
        encoder: ChunkedEncoder::read(&w, config, is_of_transformers, shortest)?,
        decoder: text::language("qwen3", &language, &w)?.into(),
        placeholder: placeholder.map_or(151_676, |id| id as u32),
        ends: ENDS.iter().filter_map(|end| tokenizer.token_id(end)).collect(),
        tokenizer,
    }))
}

impl Transcriber for Qwen3Asr {
    fn features(&self, samples: &[f32]) -> Result<Array> {
        self.encoder.features(samples)
    }

    fn encode(&self, features: &Array) -> Result<Array> {
        self.encoder.encode(features)
    }

    fn output(&self) -> Output<'_> {
        Output::Prompted(self)
    }
}

impl PromptedDecoder for Qwen3Asr {
    fn decoder(&self) -> &Rc<dyn LanguageModel> {
        &self.decoder
    }

    fn longest(&self) -> f64 {
        LONGEST
    }

    fn prompt(&self, encoded: &Array, request: &SpeechRequest) -> Result<Embedded> {
        let system = request.prompt.as_deref().map_or(String::new(), |text| format!("{text}\n"));
        let before =
            format!("<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<|audio_start|>");
        let language = request.language.as_deref().map(language_name);
        let language = language.map_or(String::new(), |name| format!("language {name}{TEXT}"));
        let after = format!("<|audio_end|><|im_end|>\n<|im_start|>assistant\n{language}");
        let audio = vec![self.placeholder; encoded.dim(1) as usize];
        let before = self.tokenizer.encode(&before, false)?;
        let after = self.tokenizer.encode(&after, false)?;
        let embed = |ids: &[u32]| {
            Ok::<_, Error>(
                self.decoder.embed(&Array::from_slice(ids, &[1, ids.len() as i32]))?.hidden,
            )
        };
        let (start, end) = (embed(&before)?, embed(&after)?);
        let audio_hidden = encoded.as_dtype(start.dtype())?;
        let hidden = ops::concatenate(&[start, audio_hidden, end], 1)?;
        let ids = [before, audio, after].concat();
        Ok(Embedded::new(Array::from_slice(&ids, &[1, ids.len() as i32]), hidden))
    }

    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn limit(&self, _: f64) -> usize {
        8192
    }

    fn said(&self, tokens: &[u32], request: &SpeechRequest) -> Result<Said> {
        let text = self.tokenizer.decode(tokens, true)?;
        if let Some(language) = &request.language {
            return Ok(Said { text, language: Some(language.clone()) });
        }
        let stated = text.strip_prefix("language ").and_then(|rest| rest.split_once(TEXT));
        Ok(match stated {
            Some((name, text)) => Said { text: text.into(), language: Some(name.trim().into()) },
            None => Said { text, language: Some("English".into()) },
        })
    }
}

/// The name of a language, where its code is known.
fn language_name(given: &str) -> &str {
    let lower = given.to_lowercase();
    let known =
        LANGUAGES.iter().find(|(code, name)| *code == lower || name.to_lowercase() == lower);
    known.map_or(given, |(_, name)| name)
}
