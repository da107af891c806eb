//! One file a model family. To add one: the file, and its name in the list of its modality.

pub mod prelude;
pub mod text;

use crate::{
    checkpoint::{config::Json, scope::Scope},
    error::{Error, Result},
    models::language::LanguageModel,
};

/// How a checkpoint becomes a model.
pub struct Family {
    /// The values of `model_type` that it reads.
    pub model_types: &'static [&'static str],
    /// Builds the model from `config.json` and the weights.
    pub build: fn(&Json, &Scope) -> Result<Box<dyn LanguageModel>>,
    /// What the authors recommend where the files of a checkpoint say nothing.
    pub recommended: Recommended,
}

/// What a model's authors recommend; it holds where the files of a checkpoint say nothing. The
/// numbers are those of the model cards.
#[derive(Clone, Copy, Debug)]
pub struct Recommended {
    /// Texts of special tokens that end a turn, beside those that the files name.
    pub end_tokens: &'static [&'static str],
    /// Sampling, where `generation_config.json` recommends none.
    pub sampling: Sampling,
    /// The chat template of a checkpoint that has none.
    pub chat_template: Option<&'static str>,
}

impl Recommended {
    /// Greedy decoding, no further end tokens, no chat template.
    pub const NOTHING: Recommended =
        Recommended { end_tokens: &[], sampling: Sampling::GREEDY, chat_template: None };
}

/// Recommended sampling.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy decoding.
    pub temperature: f32,
    /// Only the `top_k` most probable tokens are sampled; 0 is no limit.
    pub top_k: usize,
    /// Only the most probable tokens that make up this probability are sampled.
    pub top_p: f32,
    /// Only tokens at least this probable, relative to the most probable one, are sampled.
    pub min_p: f32,
    /// Divides the logits of tokens that occurred; 1 leaves them alone.
    pub repetition_penalty: f32,
}

impl Sampling {
    /// The most probable token, always.
    pub const GREEDY: Sampling =
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 };

    /// Nucleus sampling ([Holtzman et al. 2019](https://arxiv.org/abs/1904.09751)).
    pub const fn nucleus(temperature: f32, top_p: f32) -> Self {
        Sampling { temperature, top_p, ..Self::GREEDY }
    }
}

macro_rules! families {
    ($($name:ident),* $(,)?) => {
                /// The families of this modality.
        pub const FAMILIES: &[crate::families::Family] = &[$($name::FAMILY),*];
    };
}
pub(crate) use families;

/// All families.
pub fn all() -> impl Iterator<Item = &'static Family> {
    text::FAMILIES.iter()
}

/// The modalities that are not supported yet, each with the known values of `model_type`.
const OTHER_MODALITIES: &[(&str, &str)] = &[
    (
        "vision",
        "aya_vision bunny-llama cohere2_vision fastvlm idefics3 kimi_vl lfm2-vl lfm2_vl llava \
         llava-qwen2 llava_bunny llava_next llava_qwen2 minicpmv4_6 molmo2 molmo_point \
         moondream3 nemotron_labs_diffusion_vlm paligemma phi3_v phi4-siglip phi4_siglip \
         pixtral qwen2_5_vl qwen2_vl qwen3_vl qwen3_vl_moe smolvlm smolvlm2 youtu_vl",
    ),
    (
        "multimodal",
        "minicpmo nemotron_h_nano_omni nemotron_h_omni nemotronh_nano_omni_reasoning_v3 \
         phi4mm qwen2_5_omni qwen2_5_omni_thinker qwen3_omni qwen3_omni_moe",
    ),
    (
        "speech recognition",
        "qwen3_asr qwen3_forced_aligner sense_voice sensevoice voxtral voxtral_realtime \
         whisper",
    ),
    (
        "speech synthesis",
        "csm kokoro llama_tts marvis orpheus qwen3_tts qwen3_tts_base qwen3base_tts qwen3tts \
         sesame soprano style_tts2 voxtral_tts",
    ),
    (
        "voice activity detection",
        "diar_sortformer firered-vad firered_vad fireredvad silero silero-vad silero_vad \
         smart-turn smart_turn smart_turn_v3 sortformer ten-vad ten_vad tenvad",
    ),
    ("audio codec", "bigvgan dac dacvae descript encodec mimi snac vocos"),
    ("diffusion", "diffusion_gemma diffusion_gemma_text nemotron_labs_diffusion"),
    ("draft", "gemma4_assistant gemma4_unified_assistant"),
];

/// The family that reads a `model_type`.
///
/// # Errors
/// [`Error::UnsupportedModality`] for a type that is known not to be a language model, and otherwise
/// [`Error::UnknownModelType`] with the types of similar spelling.
pub fn find(model_type: &str) -> Result<&'static Family> {
    all().find(|family| family.model_types.contains(&model_type)).ok_or_else(|| {
        let is_known =
            |(_, types): &&(&str, &str)| types.split_whitespace().any(|known| known == model_type);
        if let Some((modality, _)) = OTHER_MODALITIES.iter().find(is_known) {
            return Error::UnsupportedModality { model_type: model_type.into(), modality };
        }
        let mut known: Vec<_> = all()
            .flat_map(|family| family.model_types)
            .map(|known| (edit_distance(model_type, known), *known))
            .filter(|(distance, known)| *distance * 2 <= known.len().max(model_type.len()))
            .collect();
        known.sort();
        let nearest = known.into_iter().map(|(_, known)| known).take(3).collect();
        Error::UnknownModelType { model_type: model_type.chars().take(80).collect(), nearest }
    })
}

/// The family that reads a checkpoint with this config.
///
/// # Errors
/// [`Error::CustomCode`], [`Error::Config`] without a `model_type`, and those of [`find`].
pub fn family(config: &Json) -> Result<&'static Family> {
    if let Some(file) = config.get("model_file").and_then(Json::as_str) {
        return Err(Error::CustomCode(file.into()));
    }
    find(model_type(config)?)
}

/// The `model_type` of a config.
///
/// # Errors
/// [`Error::Config`] when it is missing or no string.
pub fn model_type(config: &Json) -> Result<&str> {
    let model_type =
        config.get("model_type").ok_or_else(|| Error::config("model_type", "missing"))?;
    model_type.as_str().ok_or_else(|| Error::config("model_type", "not a string"))
}

/// Levenshtein's distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(80).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
