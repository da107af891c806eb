//! Qwen3-ForcedAligner: Qwen3-ASR whose language model gets a text and says in one pass when each of its
//! words begins and ends, as a class of the mark after it. Follows `qwen3_forced_aligner` of mlx-audio.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{
        Build, Checkpoint, Entry,
        prelude::*,
        recognition::{chunked_encoder::ChunkedEncoder, qwen3_asr::language_config},
        text,
    },
    models::{
        decode_step::prefill_embedded,
        speech::{Aligner, Output, Transcriber},
    },
    text::{Tokenizer, words},
};

pub const ENTRY: Entry = Entry {
    model_types: &["qwen3_forced_aligner"],
    build: Build::Transcriber(build),
    recommended: Recommended::NOTHING,
    files: FileRules {
        // Published configs have the type of Qwen3-ASR.
        matches: Some(|contents| {
            let thinker = contents.config.and_then(|config| config.get("thinker_config"));
            let is_aligner = |config: &Value| {
                config.get("classify_num").is_some()
                    || config.get("model_type").is_some_and(|name| name == "qwen3_forced_aligner")
            };
            [contents.config, thinker].into_iter().flatten().any(is_aligner)
        }),
        ..FileRules::USUAL
    },
    processor: None,
};

/// Shorter clips are padded to this number of samples, so that there is something to hear.
const SHORTEST: usize = 1600;
/// References cut longer clips at 20 minutes.
const LONGEST: f64 = 1200.0;

/// Fields that are those of the thinker, or else of the whole model.
#[derive(Deserialize)]
struct Config {
    audio_token_id: Option<u32>,
    timestamp_token_id: Option<u32>,
    timestamp_segment_time: Option<f64>,
    classify_num: Option<Size>,
}

struct ForcedAligner {
    encoder: ChunkedEncoder,
    decoder: Box<dyn LanguageModel>,
    /// From the hidden state of a mark to the classes of times.
    head: Linear,
    tokenizer: Tokenizer,
    placeholder: u32,
    /// The mark of a time.
    mark: u32,
    /// Milliseconds of a class.
    class: f64,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Transcriber>> {
    let Checkpoint { config, weights, files } = *checkpoint;
    let outer: Config = config::read(config)?;
    let config = config.get("thinker_config").unwrap_or(config);
    let inner: Config = config::read(config)?;
    let w = if weights.has_below("thinker") { weights.at("thinker") } else { weights.clone() };
    let classes = inner.classify_num.or(outer.classify_num).map_or(5000, |classes| *classes);
    let language = language_config(config);
    let Size(width) = config::field(&language, "hidden_size")?;
    // The head is read before the language model, for which it would be one of tokens.
    let head = w.linear("lm_head", width, classes)?;
    let language = language.with("tie_word_embeddings", true);
    let class = inner.timestamp_segment_time.or(outer.timestamp_segment_time).unwrap_or(80.0);
    if !(class.is_finite() && class > 0.0) {
        return Err(Error::config("timestamp_segment_time", format!("{class} is no length")));
    }
    Ok(Box::new(ForcedAligner {
        encoder: ChunkedEncoder::read(&w, config, false, SHORTEST)?,
        decoder: text::language("qwen3", &language, &w)?,
        head,
        tokenizer: Tokenizer::load(files)?,
        placeholder: inner.audio_token_id.or(outer.audio_token_id).unwrap_or(151_676),
        mark: inner.timestamp_token_id.or(outer.timestamp_token_id).unwrap_or(151_705),
        class,
    }))
}

impl Transcriber for ForcedAligner {
    fn features(&self, samples: &[f32]) -> Result<Array> {
        self.encoder.features(samples)
    }

    fn encode(&self, features: &Array) -> Result<Array> {
        self.encoder.encode(features)
    }

    fn output(&self) -> Output<'_> {
        Output::Aligner(self)
    }
}

impl Aligner for ForcedAligner {
    fn longest(&self) -> f64 {
        LONGEST
    }

    fn words(&self, text: &str, language: Option<&str>) -> Result<Vec<String>> {
        let language = language.unwrap_or("English").to_lowercase();
        match language.as_str() {
            "ja" | "japanese" | "ko" | "korean" => Err(Error::option(
                "language",
                format!(
                    "the words of `{language}` need a dictionary of their own; pass the text with a \
                     space between words, and `English`"
                ),
            )),
            _ => words(text, ["zh", "chinese"].contains(&language.as_str())),
        }
    }

    fn times(&self, encoded: &Array, words: &[String]) -> Result<Vec<[f64; 2]>> {
        const MARKS: &str = "<timestamp><timestamp>";
        let text = format!("<|audio_end|>{}{MARKS}", words.join(MARKS));
        let before = self.tokenizer.encode("<|audio_start|>", false)?;
        let after = self.tokenizer.encode(&text, false)?;
        let embed = |ids: &[u32]| {
            let ids = Array::from_slice(ids, &[1, ids.len() as i32]);
            Ok::<_, Error>(self.decoder.embed(&ids)?.hidden)
        };
        let (start, end) = (embed(&before)?, embed(&after)?);
        let audio = encoded.as_dtype(start.dtype())?;
        let hidden = ops::concatenate(&[start, audio, end], 1)?;
        let audio = vec![self.placeholder; encoded.dim(1) as usize];
        let ids = [before, audio, after].concat();
        let marks = (0..).zip(&ids).filter(|(_, id)| **id == self.mark);
        let marks: Vec<i32> = marks.map(|(place, _)| place).collect();
        if marks.len() != 2 * words.len() {
            return Err(Error::Tokenizer {
                file: "tokenizer.json".into(),
                reason: format!(
                    "`<timestamp>` is not the token {}; use the tokenizer of the model",
                    self.mark
                ),
            });
        }
        let x = Embedded::new(Array::from_slice(&ids, &[1, ids.len() as i32]), hidden);
        let mut cache = self.decoder.cache(&CachePlan::new(ids.len()));
        let hidden = prefill_embedded(&*self.decoder, &x, &mut cache)?;
        let hidden = hidden.take_axis(Array::from_slice(&marks, &[marks.len() as i32]), 1)?;
        let classes = ops::indexing::argmax_axis(&self.head.forward(&hidden)?, -1, false)?;
        let classes: Vec<u32> = mlx::to_vec(&classes.as_dtype(Dtype::Uint32)?)?;
        let times: Vec<f64> = classes.iter().map(|class| f64::from(*class) * self.class).collect();
        let times = in_order(&times);
        // Whole milliseconds.
        let seconds = |time: f64| time.trunc() / 1000.0;
        Ok(times.chunks(2).map(|pair| [seconds(pair[0]), seconds(pair[1])]).collect())
    }
}

/// Times of which a longest part that never falls stays. One or two between two of these get the nearer of
/// them, more get times at equal distances.
fn in_order(times: &[f64]) -> Vec<f64> {
    let stays = longest_rise(times);
    let mut times = times.to_vec();
    let mut start = 0;
    while start < times.len() {
        if stays[start] {
            start += 1;
            continue;
        }
        let end = (start..times.len()).find(|i| stays[*i]).unwrap_or(times.len());
        let (left, right) = (start.checked_sub(1).map(|i| times[i]), times.get(end).copied());
        let count = end - start;
        for i in 0..count {
            times[start + i] = match (left, right) {
                (Some(left), Some(right)) if count > 2 => {
                    left + (right - left) / (count + 1) as f64 * (i + 1) as f64
                }
                (Some(left), Some(_)) if i < count - i => left,
                (_, Some(right)) => right,
                (Some(left), None) => left,
                (None, None) => times[start + i],
            };
        }
        start = end;
    }
    times
}

/// Which times belong to the longest part that never falls: of several, the one that ends first.
fn longest_rise(times: &[f64]) -> Vec<bool> {
    // The last values of the best parts of each length, and the places where such a part ends.
    let (mut tails, mut levels): (Vec<f64>, Vec<Vec<usize>>) = (Vec::new(), Vec::new());
    for (i, time) in times.iter().enumerate() {
        let length = tails.partition_point(|tail| tail <= time);
        if length == tails.len() {
            tails.push(*time);
            levels.push(Vec::new());
        } else {
            tails[length] = *time;
        }
        levels[length].push(i);
    }
    let mut stays = vec![false; times.len()];
    let mut next: Option<usize> = None;
    for level in levels.iter().rev() {
        let fits = |i: &&usize| next.is_none_or(|next| times[**i] <= times[next]);
        next = level.iter().find(fits).copied().or(next);
        if let Some(i) = next {
            stays[i] = true;
        }
    }
    stays
}
