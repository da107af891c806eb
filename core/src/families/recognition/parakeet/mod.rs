//! Parakeet: NeMo's log-mel features, a FastConformer, and a transducer that also predicts how many
//! frames to skip (TDT, [Xu et al. 2023](https://arxiv.org/abs/2304.06795)), a plain transducer, or CTC.
//! Reads the layouts of NeMo and transformers. Follows `parakeet` of mlx-audio for the first, and
//! transformers for the second, whose front end leaves the last frame out.

mod config;
mod transducer;

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Checkpoint, Entry, prelude::*},
    layers::audio::{
        conformer::{self, Conformer},
        convolution::{Convolution, Kernel},
        ctc::{self, CtcToken},
        normalized_log_mel::NormalizedLogMel,
    },
    models::speech::{Label, Labeller, Labels, Output, SpeechRequest, Transcriber},
    text::{Pieces, Tokenizer},
};
use config::{Config, OF_TRANSFORMERS};
use transducer::Transducer;

pub const ENTRY: Entry = Entry::transcriber(
    &["parakeet", "parakeet_ctc", "parakeet_rnnt", "parakeet_tdt"],
    build,
    FileRules {
        matches: Some(|contents| {
            let target = contents.config.and_then(|config| config.get("target")?.as_str());
            target.is_some_and(|target| {
                target.starts_with("nemo.collections.asr.models.")
                    && ["rnnt_bpe", "ctc_bpe"].iter().any(|kind| target.contains(kind))
            })
        }),
        ..FileRules::USUAL
    },
);

struct Parakeet {
    front_end: NormalizedLogMel,
    encoder: Conformer,
    decoder: Decoding,
    blank: u32,
    pieces: Pieces,
    /// The seconds of a position of the encoder.
    seconds: f64,
}

enum Decoding {
    Ctc(Convolution),
    Transducer(Box<Transducer>),
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Transcriber>> {
    let Checkpoint { config, weights: w, files } = *checkpoint;
    let c = Config::read(config, files)?;
    // A hybrid model has a second head, which references do not use either.
    w.ignore("ctc_decoder");
    w.ignore("preprocessor");
    w.at("encoder").rename(conformer::OF_TRANSFORMERS);
    w.rename(OF_TRANSFORMERS);
    let width = c.encoder.width;
    let positions = f64::from(c.encoder.subsampling) * c.audio.hop as f64;
    let decoder = match c.transducer {
        None => {
            let kernel = Kernel::new(width, c.vocabulary, 1);
            Decoding::Ctc(w.at("decoder.decoder_layers.0").convolution(kernel, 0)?)
        }
        Some(sizes) => {
            Decoding::Transducer(Box::new(Transducer::read(w, sizes, width, c.vocabulary)?))
        }
    };
    Ok(Box::new(Parakeet {
        seconds: positions / f64::from(c.audio.sample_rate),
        front_end: NormalizedLogMel::new(c.audio),
        encoder: Conformer::read(&w.at("encoder"), c.encoder)?,
        decoder,
        blank: c.blank,
        pieces: match c.pieces {
            Some(pieces) => Pieces::List(pieces),
            None => Pieces::Tokenizer(Tokenizer::load(files)?),
        },
    }))
}

impl Transcriber for Parakeet {
    fn sample_rate(&self) -> u32 {
        self.front_end.sizes.sample_rate
    }

    fn features(&self, samples: &[f32]) -> Result<Array> {
        Ok(self.front_end.forward(samples)?.expand_dims(0)?)
    }

    fn encode(&self, features: &Array) -> Result<Array> {
        let frames = self.front_end.valid(features.dim(1));
        self.encoder.forward(&mlx::slice(features, 1, 0, frames)?)
    }

    fn output(&self) -> Output<'_> {
        Output::Labels(self)
    }
}

impl Labeller for Parakeet {
    fn longest(&self) -> f64 {
        // Attention over all positions takes memory with the square of the length.
        240.0
    }

    fn label(&self, samples: &[f32], _: &SpeechRequest) -> Result<Labels> {
        let encoded = self.encode(&self.features(samples)?)?;
        let mut found = match &self.decoder {
            Decoding::Transducer(transducer) => transducer.decode(&encoded, self.blank)?,
            Decoding::Ctc(head) => ctc::greedy(&head.forward(&encoded)?)?,
        };
        found.retain(|token| token.id != self.blank);
        if matches!(self.decoder, Decoding::Ctc(_)) {
            last_until_next(&mut found);
        }
        let is_text = |token: &CtcToken| !self.pieces.is_special(token.id);
        let tokens = found.into_iter().filter(is_text);
        let tokens = tokens.map(|token| Label::spanning(token, self.seconds)).collect();
        Ok(Labels { tokens, ..Labels::default() })
    }

    fn piece(&self, id: u32) -> Result<String> {
        Ok(self.pieces.text(id))
    }
}

/// A token lasts until the next one begins.
fn last_until_next(tokens: &mut [CtcToken]) {
    for i in 1..tokens.len() {
        tokens[i - 1].end = tokens[i].start;
    }
}
