//! Times of words: the path of dynamic time warping through the cross attention of some heads, as the
//! code of OpenAI finds it.

use crate::{
    error::Result,
    generate::transcription::{
        transcript::{Segment, Word},
        vocabulary::Vocabulary,
    },
    layers::{
        attention::cross::{CrossScores, Encoded},
        cache_plan::CachePlan,
        step::Step,
    },
    mlx,
    models::speech::WindowedDecoder,
};
use mlx_rs::{
    Array, Dtype,
    ops::{self, indexing::take_along_axis},
};

/// Positions of the encoder that the median filter covers.
const MEDIAN: usize = 7;
/// Positions of the encoder a second.
const POSITIONS: f64 = 50.0;
const SENTENCE_ENDS: [&str; 6] = [".", "。", "!", "！", "?", "？"];
const BEFORE_WORDS: &str = "\"'“¿([{-";
const AFTER_WORDS: &str = "\"'.。,，!！?？:：”)]}、";

/// What the alignment of a window needs.
pub(super) struct Aligner<'a> {
    pub decoder: &'a WindowedDecoder,
    pub vocabulary: &'a Vocabulary,
    /// The output of the encoder.
    pub encoded: &'a Array,
    /// The tokens before the text, without those about times.
    pub prompt: &'a [u32],
    pub language: &'a str,
}

/// A word with its tokens and its times in the window.
#[derive(Clone, Debug, Default)]
struct Timing {
    word: String,
    tokens: Vec<u32>,
    start: f64,
    end: f64,
    probability: f32,
}

impl Aligner<'_> {
    /// Gives the segments of a window of `frames` log-mel frames, which begins at `offset` seconds,
    /// their words, and moves their ends to those of the words. Speech ended at `last_end` before.
    pub fn add_words(
        &self,
        segments: &mut [Segment],
        frames: usize,
        offset: f64,
        mut last_end: f64,
    ) -> Result<()> {
        let texts: Vec<Vec<u32>> = segments.iter().map(|segment| self.text(segment)).collect();
        let mut timings = self.timings(&texts.concat(), frames)?;
        let mut durations: Vec<f64> =
            timings.iter().map(|timing| timing.end - timing.start).filter(|d| *d != 0.0).collect();
        durations.sort_by(f64::total_cmp);
        let median = median(&durations).min(0.7);
        shorten_at_sentence_ends(&mut timings, 2.0 * median, !durations.is_empty());
        merge_punctuation(&mut timings);
        let mut rest = timings.into_iter();
        for (segment, text) in segments.iter_mut().zip(&texts) {
            let mut done = 0;
            while done < text.len()
                && let Some(timing) = rest.next()
            {
                done += timing.tokens.len();
                if !timing.word.is_empty() {
                    segment.words.push(Word {
                        word: timing.word,
                        start: rounded(offset + timing.start),
                        end: rounded(offset + timing.end),
                        probability: timing.probability,
                    });
                }
            }
            fit(segment, median, last_end);
            if !segment.words.is_empty() {
                last_end = segment.end;
            }
        }
        Ok(())
    }

    fn text(&self, segment: &Segment) -> Vec<u32> {
        segment.tokens.iter().copied().filter(|id| *id < self.vocabulary.end).collect()
    }

    /// The words of a text with their times.
    fn timings(&self, text: &[u32], frames: usize) -> Result<Vec<Timing>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let before = self.prompt.len();
        let mut ids = self.prompt.to_vec();
        ids.push(self.vocabulary.no_timestamps);
        ids.extend(text);
        ids.push(self.vocabulary.end);
        let (probabilities, matrix) = self.attend(&ids, text, frames)?;
        let columns = frames / 2;
        // From the token before the text to the one before its end.
        let matrix = &matrix[before * columns..(ids.len() - 1) * columns];
        let path = warp(matrix, columns);
        let mut starts: Vec<f64> = Vec::new();
        let mut row = None;
        for (token, position) in path {
            if row != Some(token) {
                row = Some(token);
                starts.push(position as f64 / POSITIONS);
            }
        }
        let mut place = 0;
        let words = self.words(text)?.into_iter().map(|tokens| {
            let range = place..place + tokens.len();
            place = range.end;
            let share = probabilities[range.clone()].iter().sum::<f32>() / tokens.len() as f32;
            let word = self.vocabulary.tokenizer.decode(&tokens, false)?;
            let [start, end] = [range.start, range.end].map(|i| starts.get(i).copied());
            let start = start.unwrap_or(0.0);
            let end = end.unwrap_or(start);
            Ok(Timing { word, tokens, start, end, probability: share })
        });
        words.collect()
    }

    /// The probability of each token of the text, and the mean normalised attention of the heads that
    /// follow the audio, `[ids, frames / 2]`.
    fn attend(&self, ids: &[u32], text: &[u32], frames: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let model = &*self.decoder.decoder;
        let length = ids.len() as i32;
        let mut cache = model.cache(&CachePlan::new(ids.len()));
        cache.reserve(length)?;
        let (step, scores) = (Step::prefill(0, length), CrossScores::default());
        step.put(Encoded(self.encoded.clone()));
        step.put(scores.clone());
        let x = model.embed(&Array::from_slice(ids, &[1, length]))?;
        let logits = model.logits(&model.forward(&x, &mut cache, &step)?)?;
        let (first, end) = (self.prompt.len() as i32, self.vocabulary.end as i32);
        let rows = mlx::slice(&logits, 1, first, first + text.len() as i32)?;
        let shares = mlx::slice(&rows, 2, 0, end)?.as_dtype(Dtype::Float32)?;
        let shares = ops::softmax_axis(shares, -1, true)?;
        let text = Array::from_slice(text, &[1, text.len() as i32, 1]);
        let probabilities = mlx::to_vec(&take_along_axis(&shares, &text, -1)?)?;
        let scores = scores.0.borrow();
        let heads = self.decoder.alignment_heads.iter().map(|head| {
            let layer = &scores[head.layer as usize];
            let own = mlx::slice(layer, 1, head.head, head.head + 1)?;
            mlx::slice(&own.squeeze_axes(&[0])?, 2, 0, (frames / 2) as i32)
        });
        let heads = ops::concatenate(&heads.collect::<Result<Vec<_>>>()?, 0)?;
        let weights = ops::softmax_axis(heads.as_dtype(Dtype::Float32)?, -1, true)?;
        let mean = weights.mean_axes(&[1], true)?;
        let deviation = weights.var_axes(&[1], true, 0)?.sqrt()?;
        let weights = median_filter(&weights.subtract(mean)?.divide(deviation)?)?;
        Ok((probabilities, mlx::to_vec(&weights.mean_axes(&[0], false)?)?))
    }

    /// The tokens of each word: tokens that make whole characters, joined up to the next space or
    /// punctuation mark, or not joined in a language without spaces.
    fn words(&self, text: &[u32]) -> Result<Vec<Vec<u32>>> {
        let decode = |ids: &[u32]| self.vocabulary.tokenizer.decode(ids, false);
        let is_spaceless = ["zh", "ja", "th", "lo", "my", "yue"].contains(&self.language);
        let mut words: Vec<Vec<u32>> = Vec::new();
        let mut open = Vec::new();
        for id in text {
            open.push(*id);
            let characters = decode(&open)?;
            if characters.contains('\u{fffd}') && open.len() < 4 {
                continue;
            }
            let is_mark = |text: &str| {
                let text = text.trim();
                text.len() == 1 && text.chars().all(|c| c.is_ascii_punctuation())
            };
            let begins = is_spaceless || characters.starts_with(' ') || is_mark(&characters);
            let part = std::mem::take(&mut open);
            match words.last_mut() {
                Some(word) if !begins => word.extend(part),
                _ => words.push(part),
            }
        }
        if !open.is_empty() {
            words.push(open);
        }
        Ok(words)
    }
}

/// The median of seven positions around each, mirrored at the ends.
fn median_filter(x: &Array) -> Result<Array> {
    let (half, length) = ((MEDIAN / 2) as i32, x.dim(-1));
    if length <= half {
        return Ok(x.clone());
    }
    let mirrored = |i: i32| if i < 0 { -i } else { i.min(2 * (length - 1) - i) };
    let places: Vec<i32> = (0..length).flat_map(|i| (i - half..=i + half).map(mirrored)).collect();
    let windows = x.take_axis(Array::from_slice(&places, &[length, MEDIAN as i32]), -1)?;
    let sorted = ops::sort_axis(&windows, -1)?;
    let axis = sorted.ndim() as i32 - 1;
    Ok(mlx::slice(&sorted, axis as usize, half, half + 1)?.squeeze_axes(&[axis])?)
}

/// The path of rows and columns through a matrix of `columns` from its first element to its last one
/// with the largest sum.
fn warp(matrix: &[f32], columns: usize) -> Vec<(usize, usize)> {
    const DIAGONAL: u8 = 0;
    const DOWN: u8 = 1;
    const RIGHT: u8 = 2;
    let rows = matrix.len() / columns.max(1);
    let width = columns + 1;
    let mut costs = vec![f32::INFINITY; (rows + 1) * width];
    let mut trace = vec![RIGHT; (rows + 1) * width];
    costs[0] = 0.0;
    for i in 1..=rows {
        trace[i * width] = DOWN;
        for j in 1..=columns {
            let diagonal = costs[(i - 1) * width + j - 1];
            let (down, right) = (costs[(i - 1) * width + j], costs[i * width + j - 1]);
            let (cost, from) = if diagonal < down && diagonal < right {
                (diagonal, DIAGONAL)
            } else if down < diagonal && down < right {
                (down, DOWN)
            } else {
                (right, RIGHT)
            };
            costs[i * width + j] = cost - matrix[(i - 1) * columns + j - 1];
            trace[i * width + j] = from;
        }
    }
    let (mut i, mut j, mut path) = (rows, columns, Vec::new());
    while i > 0 && j > 0 {
        path.push((i - 1, j - 1));
        match trace[i * width + j] {
            DIAGONAL => (i, j) = (i - 1, j - 1),
            DOWN => i -= 1,
            _ => j -= 1,
        }
    }
    path.reverse();
    path
}

/// Words at the ends of sentences last no longer than `longest`.
fn shorten_at_sentence_ends(timings: &mut [Timing], longest: f64, has_durations: bool) {
    let ends = |timing: &Timing| SENTENCE_ENDS.contains(&timing.word.as_str());
    for i in 1..if has_durations { timings.len() } else { 0 } {
        if timings[i].end - timings[i].start > longest {
            if ends(&timings[i]) {
                timings[i].end = timings[i].start + longest;
            } else if ends(&timings[i - 1]) {
                timings[i].start = timings[i].end - longest;
            }
        }
    }
}

/// Joins punctuation marks with the words that they belong to, which leaves empty words.
fn merge_punctuation(timings: &mut [Timing]) {
    let mut following = timings.len().saturating_sub(1);
    for i in (0..following).rev() {
        let word = &timings[i].word;
        if word.starts_with(' ') && BEFORE_WORDS.contains(word.trim()) {
            let before = std::mem::take(&mut timings[i].word);
            let mut tokens = std::mem::take(&mut timings[i].tokens);
            let after = &mut timings[following];
            after.word.insert_str(0, &before);
            tokens.append(&mut after.tokens);
            after.tokens = tokens;
        } else {
            following = i;
        }
    }
    let mut previous = 0;
    for i in 1..timings.len() {
        let is_mark = AFTER_WORDS.contains(timings[i].word.as_str());
        if !timings[previous].word.ends_with(' ') && is_mark {
            let after = std::mem::take(&mut timings[i].word);
            let tokens = std::mem::take(&mut timings[i].tokens);
            timings[previous].word += &after;
            timings[previous].tokens.extend(tokens);
        } else {
            previous = i;
        }
    }
}

/// Shortens the first words after a pause, and settles whether a segment or its words say where it
/// begins and ends. A word is too long from twice the `median` on.
fn fit(segment: &mut Segment, median: f64, last_end: f64) {
    let longest = 2.0 * median;
    let words = &mut segment.words;
    let Some(first) = words.first().cloned() else { return };
    let pair_end = words.get(1).map(|second| second.end);
    let is_long = first.end - first.start > longest
        || pair_end.is_some_and(|end| end - first.start > 2.0 * longest);
    if first.end - last_end > 4.0 * median && is_long {
        if let [first, second, ..] = &mut words[..]
            && second.end - second.start > longest
        {
            let border = (second.end / 2.0).max(second.end - longest);
            (first.end, second.start) = (border, border);
        }
        words[0].start = (words[0].end - longest).max(0.0);
    }
    let first = &mut words[0];
    if segment.start < first.end && segment.start - 0.5 > first.start {
        first.start = (first.end - median).min(segment.start).max(0.0);
    } else {
        segment.start = first.start;
    }
    let Some(last) = words.last_mut() else { return };
    if segment.end > last.start && segment.end + 0.5 < last.end {
        last.end = (last.start + median).max(segment.end);
    } else {
        segment.end = last.end;
    }
}

/// The median of sorted numbers; 0 of none.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 100.0).round_ties_even() / 100.0
}
