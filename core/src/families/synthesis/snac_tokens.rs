//! Language models that write the codes of SNAC as tokens, seven for a frame: the code of the coarse
//! codebook, and two and four of the finer ones, in the order of time. Follows `llama` of mlx-audio's models
//! of speech.

use crate::{
    families::{Checkpoint, prelude::*},
    layers::audio::noise::Noise,
    models::{
        codec::{Codec, Codes, Streaming, gcd},
        codec_stream::CodecStream,
        speaker::{
            Script, SpeakOptions, Speaker, SpeakerOutput, SpeechSampling, ToSamples, TokenSpeaker,
            VoiceReference,
        },
    },
    text::Tokenizer,
};
use std::{mem, rc::Rc};

/// The codebook of each token of a frame.
const BOOKS: [usize; 7] = [0, 1, 2, 2, 1, 2, 2];
/// The codes of each codebook in a frame.
const CODES: [usize; 3] = [1, 2, 4];
/// The entries of a codebook. Each place of a frame has ids of its own for them.
const ENTRIES: u32 = 4096;
/// The most frames that wait for being decoded together: about two seconds.
const MOST_WAITING: usize = 24;

/// The ids of control tokens and codes.
#[derive(Clone, Copy)]
pub struct SnacTokens {
    pub start_of_human: u32,
    pub end_of_text: u32,
    pub end_of_human: u32,
    pub start_of_answer: u32,
    pub start_of_speech: u32,
    pub end_of_speech: u32,
    pub end_of_answer: u32,
    /// The first code of the first place.
    pub first_code: u32,
}

#[derive(Deserialize)]
struct Config {
    vocab_size: Size,
    sample_rate: Option<Size>,
}

struct SnacSpeaker {
    tokens: SnacTokens,
    sample_rate: u32,
    voices: &'static [&'static str],
    decoder: Rc<dyn LanguageModel>,
    tokenizer: Tokenizer,
    ends: Vec<u32>,
}

impl SnacTokens {
    /// The size of a vocabulary that ends with the codes.
    const fn vocabulary(self) -> u32 {
        self.first_code + BOOKS.len() as u32 * ENTRIES
    }

    /// Whether a config is that of a language model of this type whose vocabulary ends with the codes, or
    /// with what fills it up to a multiple of 64.
    pub fn are_those_of(self, config: &Value, model_type: &str) -> bool {
        let size = config.get("vocab_size").and_then(Value::as_u64).unwrap_or(0);
        let range =
            u64::from(self.vocabulary())..=u64::from(self.vocabulary().next_multiple_of(64));
        config.get("model_type").is_some_and(|found| found == model_type) && range.contains(&size)
    }

    /// The speaker around a language model.
    ///
    /// # Errors
    /// [`Error::Config`] for a vocabulary without the codes; those of the tokenizer.
    pub fn speaker(
        self,
        checkpoint: &Checkpoint,
        decoder: Rc<dyn LanguageModel>,
        voices: &'static [&'static str],
    ) -> Result<Box<dyn Speaker>> {
        let c: Config = config::read(checkpoint.config)?;
        if (*c.vocab_size as u32) < self.vocabulary() {
            let reason = format!("{}, but codes end at {}", *c.vocab_size, self.vocabulary());
            return Err(Error::config("vocab_size", reason));
        }
        let tokenizer = Tokenizer::load(checkpoint.files)?;
        let ends = [Some(self.end_of_speech), tokenizer.eos_token_id()].into_iter().flatten();
        Ok(Box::new(SnacSpeaker {
            tokens: self,
            sample_rate: c.sample_rate.map_or(24_000, |rate| *rate as u32),
            voices,
            decoder,
            ends: ends.collect(),
            tokenizer,
        }))
    }
}

impl SnacSpeaker {
    /// The codec, if it is one whose codes these are.
    fn check<'c>(&self, codec: Option<&'c Rc<dyn Codec>>) -> Result<&'c Rc<dyn Codec>> {
        let wrong = |reason: String| {
            Err(Error::option("codec", format!("{reason}; pass SNAC for {} Hz", self.sample_rate)))
        };
        let Some(codec) = codec else {
            return wrong("this model writes codes of another repository's codec".into());
        };
        let Streaming::Windowed(windows) = codec.streaming() else {
            return wrong("the codes of this model are not of this codec".into());
        };
        let shared = windows.codes.iter().fold(0, |a, b| gcd(a, *b)).max(1);
        if windows.codes.iter().map(|codes| codes / shared).ne(CODES) {
            let found = windows.codes.len();
            return wrong(format!("this codec's {found} codebooks have other frame rates"));
        }
        if codec.sample_rate() != self.sample_rate {
            return wrong(format!("this codec is for {} Hz", codec.sample_rate()));
        }
        Ok(codec)
    }

    /// A text between the marks of a human's turn.
    fn turn(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = vec![self.tokens.start_of_human];
        ids.extend(self.tokenizer.encode(text, true)?);
        ids.extend([self.tokens.end_of_text, self.tokens.end_of_human]);
        Ok(ids)
    }

    /// A turn that reads the text of a recording, and an answer that is the recording.
    fn example(&self, reference: &VoiceReference, codec: &Rc<dyn Codec>) -> Result<Vec<u32>> {
        let (samples, tokens) = (&reference.samples, self.tokens);
        if samples.is_empty() {
            return Err(Error::option("reference", "it has no samples"));
        }
        if reference.text.trim().is_empty() {
            let reason = "this model needs the text of the recording too";
            return Err(Error::option("reference_text", reason));
        }
        let encoded = codec.encode(&Array::from_slice(samples, &[1, samples.len() as i32, 1]))?;
        let books = &encoded.only_codes()?.codebooks;
        let mut ids = self.turn(&reference.text)?;
        ids.extend([tokens.start_of_answer, tokens.start_of_speech]);
        for frame in 0..books[0].len() {
            let mut next = CODES.map(|codes| frame * codes);
            for (place, book) in (0..).zip(BOOKS) {
                ids.push(tokens.first_code + place * ENTRIES + books[book][next[book]]);
                next[book] += 1;
            }
        }
        ids.extend([tokens.end_of_speech, tokens.end_of_answer]);
        Ok(ids)
    }
}

impl Speaker for SnacSpeaker {
    fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    fn voices(&self) -> Result<Vec<String>> {
        Ok(self.voices.iter().map(|name| (*name).to_string()).collect())
    }

    /// Each line is a piece, after the name of the voice and after the recording of a voice to be cloned.
    fn pieces(
        &self,
        script: &Script,
        options: &SpeakOptions,
        codec: Option<&Rc<dyn Codec>>,
    ) -> Result<Vec<Vec<u32>>> {
        let codec = self.check(codec)?;
        let text = options.only_text(script)?;
        // Models for other languages have other voices, so any name may be one.
        let voice = match (options.voices.as_slice(), &options.reference) {
            ([], _) => String::new(),
            ([name], None) => format!("{name}: "),
            ([_], Some(_)) => {
                return Err(Error::option("voice", "the recording to be cloned has its own"));
            }
            _ => return Err(Error::option("voice", "this model averages no voices; pass one")),
        };
        let example = match &options.reference {
            Some(reference) => self.example(reference, codec)?,
            None => Vec::new(),
        };
        let lines = text.split('\n').filter(|line| !line.trim().is_empty());
        let piece = |line| Ok([&example[..], &self.turn(&format!("{voice}{line}"))?].concat());
        lines.map(piece).collect()
    }

    fn output(&self) -> SpeakerOutput<'_> {
        SpeakerOutput::Tokens(self)
    }
}

impl TokenSpeaker for SnacSpeaker {
    fn decoder(&self) -> &Rc<dyn LanguageModel> {
        &self.decoder
    }

    fn sampling(&self) -> SpeechSampling {
        SpeechSampling {
            temperature: 0.6,
            top_p: 0.8,
            top_k: 0,
            repetition_penalty: 1.3,
            penalty_context: 20,
            max_tokens: 1200,
        }
    }

    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn samples(&self, noise: Noise, codec: Option<&Rc<dyn Codec>>) -> Result<Box<dyn ToSamples>> {
        Ok(Box::new(Frames {
            first_code: self.tokens.first_code,
            stream: CodecStream::new(self.check(codec)?.clone(), noise),
            frame: Vec::new(),
            waiting: vec![Vec::new(); CODES.len()],
            due: 1,
            taken: vec![Vec::new(); CODES.len()],
        }))
    }
}

/// Frames on their way from tokens to samples.
struct Frames {
    first_code: u32,
    stream: CodecStream,
    /// What an incomplete frame has, from the first code on.
    frame: Vec<u32>,
    /// Codes that are not decoded.
    waiting: Vec<Vec<u32>>,
    /// How many frames are decoded together next: first few, so that the first samples come soon, then
    /// more, because each part is decoded with its surroundings.
    due: usize,
    taken: Vec<Vec<u32>>,
}

impl Frames {
    fn decode(&mut self) -> Result<Option<Array>> {
        let codebooks = mem::replace(&mut self.waiting, vec![Vec::new(); CODES.len()]);
        self.due = (2 * self.due).min(MOST_WAITING);
        self.stream.push(&Codes { codebooks, scale: None })
    }
}

impl ToSamples for Frames {
    fn push(&mut self, token: Option<u32>, _: Option<&Array>) -> Result<Option<Array>> {
        let code = token.and_then(|token| token.checked_sub(self.first_code));
        let Some(code) = code else { return Ok(None) };
        self.frame.push(code);
        if self.frame.len() < BOOKS.len() {
            return Ok(None);
        }
        let codes = (0..).zip(self.frame.drain(..));
        let codes = codes
            .map(|(place, code)| code.checked_sub(place * ENTRIES).filter(|code| *code < ENTRIES));
        // The authors pass over a frame with a code that its place does not have.
        let Some(codes) = codes.collect::<Option<Vec<u32>>>() else { return Ok(None) };
        for (code, book) in codes.into_iter().zip(BOOKS) {
            self.waiting[book].push(code);
            self.taken[book].push(code);
        }
        if self.waiting[0].len() < self.due { Ok(None) } else { self.decode() }
    }

    fn finish(&mut self) -> Result<Option<Array>> {
        let waiting = match self.waiting[0].is_empty() {
            true => None,
            false => self.decode()?,
        };
        let parts: Vec<Array> = waiting.into_iter().chain(self.stream.finish()?).collect();
        Ok(match parts.as_slice() {
            [] => None,
            parts => Some(ops::concatenate(parts, 1)?),
        })
    }

    fn take_codes(&mut self) -> Vec<Vec<u32>> {
        mem::replace(&mut self.taken, vec![Vec::new(); CODES.len()])
    }
}
