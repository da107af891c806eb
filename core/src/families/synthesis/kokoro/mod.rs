//! [Kokoro](https://huggingface.co/hexgrad/Kokoro-82M), a StyleTTS 2 without diffusion: phonemes through an
//! ALBERT to durations, pitch and loudness, and through a decoder with a source of harmonics to spectra.
//!
//! Follows `kokoro` 0.9.4. Its published config has no `model_type`. A voice is
//! a file of one style for each number of phonemes.

mod albert;
mod config;
mod decoder;
mod prosody;
mod source;
mod style;

use crate::{
    checkpoint::{file_rules::FileRules, files::Files},
    families::{Build, Checkpoint, Entry, prelude::*},
    layers::audio::{convolution::Kernel, lstm::BiLstm},
    models::{
        codec::Codec,
        speaker::{PieceSpeaker, Script, SpeakOptions, Speaker, SpeakerOutput, Speech},
    },
    text::phonemes::english,
};
use albert::Albert;
use config::Config;
use decoder::Decoder;
use prosody::Prosody;
use safetensors::SafeTensors;
use std::rc::Rc;

pub const ENTRY: Entry = Entry {
    model_types: &["kokoro", "style_tts2"],
    build: Build::Speaker(build),
    recommended: Recommended::NOTHING,
    files: FileRules {
        beside: &["voices/*.safetensors"],
        weights: &["*.safetensors"],
        matches: Some(|contents| {
            let has = |field| contents.config.is_some_and(|config| config.get(field).is_some());
            has("istftnet") && has("plbert")
        }),
    },
    processor: None,
};

struct Kokoro {
    c: Config,
    files: Files,
    albert: Albert,
    to_prosody: Linear,
    prosody: Prosody,
    text: TextEncoder,
    decoder: Decoder,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Speaker>> {
    let (c, w): (Config, _) =
        (crate::checkpoint::config::read(checkpoint.config)?, checkpoint.weights);
    w.ignore_named(&["position_ids"]);
    let (hidden, albert) = (*c.hidden_dim, c.plbert.hidden_size);
    Ok(Box::new(Kokoro {
        files: checkpoint.files.clone(),
        albert: Albert::read(&w.at("bert"), &c.plbert, *c.n_token)?,
        to_prosody: w.linear_with_bias("bert_encoder", *albert, hidden)?,
        prosody: Prosody::read(&w.at("predictor"), &c)?,
        text: TextEncoder::read(&w.at("text_encoder"), &c)?,
        decoder: Decoder::read(&w.at("decoder"), &c)?,
        c,
    }))
}

/// Phonemes to what the decoder says.
struct TextEncoder {
    embedding: Embedding,
    convs: Vec<(crate::layers::audio::convolution::Convolution, Norm)>,
    lstm: BiLstm,
}

impl TextEncoder {
    fn read(w: &Scope, c: &Config) -> Result<Self> {
        let width = *c.hidden_dim;
        let conv = |i: i32| {
            let w = w.at("cnn").at(i);
            let kernel = Kernel::new(width, width, *c.text_encoder_kernel_size);
            let (norm, names) = (w.at(1), [["gamma", "beta"], ["weight", "bias"]]);
            let [weight, bias] = names[usize::from(norm.has("weight"))];
            let (weight, bias) = (norm.tensor(weight, &[width])?, norm.tensor(bias, &[width])?);
            let norm = Norm::Layer { weight: Some(weight), bias: Some(bias), eps: 1e-5 };
            Ok((w.at(0).convolution(kernel, kernel.same())?, norm))
        };
        Ok(TextEncoder {
            embedding: w.embedding("embedding", *c.n_token, width)?,
            convs: (0..*c.n_layer).map(conv).collect::<Result<_>>()?,
            lstm: w.at("lstm").bi_lstm(width, width / 2)?,
        })
    }

    fn forward(&self, ids: &Array) -> Result<Array> {
        let mut x = self.embedding.lookup(ids)?;
        for (conv, norm) in &self.convs {
            x = style::leaky_relu(&norm.forward(&conv.forward(&x)?)?, 0.2)?;
        }
        self.lstm.run(&x)
    }
}

impl Kokoro {
    /// Tokens of one pass, without those at the ends.
    fn longest(&self) -> usize {
        // Voices have 510 styles.
        (*self.c.plbert.max_position_embeddings as usize).saturating_sub(2).clamp(1, 510)
    }

    /// The mean style `[1, 2 * style_dim]` of the named voices for a piece of `length` phonemes.
    fn style(&self, names: &[String], length: usize) -> Result<Array> {
        let width = 2 * *self.c.style_dim as usize;
        let first = self.voices()?.into_iter().next();
        let names = if names.is_empty() { first.as_slice() } else { names };
        if names.is_empty() {
            return Err(Error::option("voice", "the checkpoint has no folder `voices`"));
        }
        let mut mean = vec![0.0; width];
        for name in names {
            let styles = self.voice(name)?;
            let count = styles.len() / width;
            let row = length.saturating_sub(1).min(count.saturating_sub(1));
            let style = styles.get(row * width..(row + 1) * width).ok_or_else(|| {
                Error::option("voice", format!("`{name}` has no styles of {width} numbers"))
            })?;
            mean.iter_mut().zip(style).for_each(|(mean, x)| *mean += x / names.len() as f32);
        }
        Ok(Array::from_slice(&mean, &[1, width as i32]))
    }

    /// Checks that the voices speak English: the first letter of a name is that of a language.
    fn check_language(&self, voices: &[String]) -> Result<()> {
        const OTHERS: &[(&str, &str)] = &[
            ("e", "Spanish"),
            ("f", "French"),
            ("h", "Hindi"),
            ("i", "Italian"),
            ("j", "Japanese"),
            ("p", "Portuguese"),
            ("z", "Chinese"),
        ];
        let language = |voice: &String| {
            let (start, _) = voice.split_once('_')?;
            let letter = start.strip_suffix(['f', 'm'])?;
            OTHERS.iter().find(|(known, _)| *known == letter)
        };
        match voices.iter().find_map(|voice| Some((voice, language(voice)?))) {
            None => Ok(()),
            Some((voice, (_, language))) => Err(Error::option(
                "text",
                format!(
                    "the voice `{voice}` speaks {language}, and only English text becomes phonemes; \
                     pass the phonemes of the text"
                ),
            )),
        }
    }

    /// The styles of a voice, one after the other.
    fn voice(&self, name: &str) -> Result<Vec<f32>> {
        let file = format!("voices/{name}.safetensors");
        let bytes = match name.contains(['/', '\\']) {
            true => None,
            false => self.files.read(&file)?,
        };
        let Some(bytes) = bytes else {
            let known = self.voices()?.join(", ");
            return Err(Error::option("voice", format!("`{name}` is none of {known}")));
        };
        let damaged =
            |reason: &str| Error::Checkpoint { file: file.clone().into(), reason: reason.into() };
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(&e.to_string()))?;
        let voice = tensors.tensor("voice").map_err(|e| damaged(&e.to_string()))?;
        if voice.dtype() != safetensors::Dtype::F32 {
            return Err(damaged("`voice` does not hold 32-bit floats"));
        }
        let number = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Ok(voice.data().chunks_exact(4).map(number).collect())
    }
}

impl Speaker for Kokoro {
    fn sample_rate(&self) -> u32 {
        self.c.sample_rate.map_or(24_000, |rate| *rate as u32)
    }

    fn voices(&self) -> Result<Vec<String>> {
        let names = self.files.names("voices")?;
        Ok(names
            .iter()
            .filter_map(|name| name.strip_suffix(".safetensors"))
            .map(Into::into)
            .collect())
    }

    /// Cuts at the last end of a sentence that fits, or else of a clause, or else between words.
    fn pieces(
        &self,
        script: &Script,
        options: &SpeakOptions,
        _: Option<&Rc<dyn Codec>>,
    ) -> Result<Vec<Vec<u32>>> {
        if options.reference.is_some() {
            return Err(Error::option("reference", "this model clones no voices"));
        }
        let phonemes = match script {
            Script::Phonemes(phonemes) => phonemes.clone(),
            Script::Text(text) => {
                self.check_language(&options.voices)?;
                english(text, &options.pronunciations)?
            }
        };
        // Phonemes that the model does not have are left out, as in the reference.
        let known = phonemes.chars().filter_map(|c| Some((c, *self.c.vocab.get(&c)?)));
        let mut rest: Vec<(char, u32)> = known.collect();
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let mut end = rest.len();
            if end > self.longest() {
                let fits = &rest[..self.longest()];
                let last = |marks: &str| fits.iter().rposition(|(c, _)| marks.contains(*c));
                let cut = ["!.?…", ":;", ",—", " "].iter().find_map(|marks| last(marks));
                end = cut.map_or(self.longest(), |place| place + 1);
            }
            let after = rest.split_off(end);
            pieces.push(rest.into_iter().map(|(_, id)| id).collect());
            rest = after;
            let spaces = rest.iter().take_while(|(c, _)| *c == ' ').count();
            rest.drain(..spaces);
        }
        if pieces.is_empty() {
            let (field, reason) = match script {
                Script::Text(_) => ("text", "it has no words"),
                Script::Phonemes(_) => ("phonemes", "none of them is one of the model's"),
            };
            return Err(Error::option(field, reason));
        }
        Ok(pieces)
    }

    fn output(&self) -> SpeakerOutput<'_> {
        SpeakerOutput::Pieces(self)
    }
}

impl PieceSpeaker for Kokoro {
    fn speak(&self, piece: &[u32], options: &SpeakOptions) -> Result<Speech> {
        if !(options.speed.is_finite() && options.speed > 0.0) {
            return Err(Error::option(
                "speed",
                format!("{} is not a positive number", options.speed),
            ));
        }
        let style = self.style(&options.voices, piece.len())?;
        let half = *self.c.style_dim;
        let (acoustic, prosodic) =
            (mlx::slice(&style, 1, 0, half)?, mlx::slice(&style, 1, half, 2 * half)?);
        let tokens: Vec<u32> = [&[0][..], piece, &[0]].concat();
        let ids = Array::from_slice(&tokens, &[1, tokens.len() as i32]);
        let x = self.to_prosody.forward(&self.albert.forward(&ids)?)?;
        let encoded = self.prosody.encode(&x, &prosodic)?;
        let durations = self.prosody.durations(&encoded, options.speed)?;
        let places = durations.iter().zip(0..);
        let places = places.flat_map(|(count, i)| std::iter::repeat_n(i, *count as usize));
        let places: Vec<i32> = places.collect();
        let places = Array::from_slice(&places, &[places.len() as i32]);
        let [f0, energy] = self.prosody.curves(&encoded.take_axis(&places, 1)?, &prosodic)?;
        let said = self.text.forward(&ids)?.take_axis(&places, 1)?;
        let samples = self.decoder.forward(&said, &f0, &energy, &acoustic, options.noise())?;
        Ok(Speech {
            samples: mlx::to_vec(&samples)?,
            tokens,
            durations,
            f0: mlx::to_vec(&f0)?,
            energy: mlx::to_vec(&energy)?,
            ..Speech::default()
        })
    }
}
