//! Parakeet: NeMo's log-mel features, a FastConformer, and a transducer that also predicts how many
//! frames to skip (TDT, [Xu et al. 2023](https://arxiv.org/abs/2304.06795)), a plain transducer, or CTC.
//! The config is that of NeMo. Follows `parakeet` of mlx-audio.

mod transducer;

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Checkpoint, Entry, prelude::*},
    layers::audio::{
        conformer::{Conformer, ConformerSizes},
        conv::{Conv1d, ConvSizes},
        normalized_log_mel::{NormalizedLogMel, NormalizedLogMelSizes},
    },
    models::speech::{Label, Labeller, Labels, Output, SpeechRequest, Transcriber},
};
use mlx_rs::ops::indexing::argmax_axis;
use transducer::Transducer;

pub const ENTRY: Entry = Entry::transcriber(
    &["parakeet"],
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

#[derive(Deserialize)]
struct Preprocessor {
    sample_rate: Size,
    window_size: f64,
    window_stride: f64,
    features: Size,
    n_fft: Size,
    preemph: f32,
}

#[derive(Deserialize)]
struct Encoder {
    feat_in: Size,
    n_layers: Size,
    d_model: Size,
    n_heads: Size,
    ff_expansion_factor: Size,
    subsampling_factor: Size,
    subsampling_conv_channels: Size,
    conv_kernel_size: Size,
    xscaling: bool,
}

struct Parakeet {
    front_end: NormalizedLogMel,
    sample_rate: u32,
    encoder: Conformer,
    decoder: Decoding,
    /// The pieces of the vocabulary; the blank has the id after the last one.
    pieces: Vec<String>,
    /// The seconds of a position of the encoder.
    seconds: f64,
}

enum Decoding {
    Ctc(Conv1d),
    Transducer(Box<Transducer>),
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Transcriber>> {
    let Checkpoint { config, weights: w, .. } = *checkpoint;
    let part = |name: &str| {
        let part = config.get(name).filter(|part| part.is_object());
        part.cloned().ok_or_else(|| Error::config(name, "missing"))
    };
    let (audio, encoder) = (part("preprocessor")?, part("encoder")?);
    config::only(&audio, json!({"normalize": "per_feature", "window": "hann"}))?;
    config::only(
        &encoder,
        json!({
            "self_attention_model": "rel_pos", "subsampling": "dw_striding",
            "causal_downsampling": false,
        }),
    )?;
    let audio: Preprocessor =
        config::read(&config::with_defaults(&audio, json!({"preemph": 0.97})))?;
    let e: Encoder = config::read(&config::with_defaults(&encoder, json!({"xscaling": false})))?;
    let rate = f64::from(audio.sample_rate.0);
    let hop = (audio.window_stride * rate) as usize;
    let sizes = ConformerSizes {
        bins: e.feat_in.0,
        width: e.d_model.0,
        inner: config::product("ff_expansion_factor", [e.d_model.0, e.ff_expansion_factor.0])?,
        heads: e.n_heads.0,
        layers: e.n_layers.0,
        subsampling: e.subsampling_factor.0,
        channels: e.subsampling_conv_channels.0,
        taps: e.conv_kernel_size.0,
        is_scaled: e.xscaling,
    };
    let is_ctc = config.get("joint").is_none();
    let vocabulary = if is_ctc { part("decoder")? } else { part("joint")? };
    let pieces: Vec<String> = config::field(&vocabulary, "vocabulary")?;
    let blank = pieces.len() as i32;
    // A hybrid model has a second head, which references do not use either.
    w.ignore("ctc_decoder");
    w.ignore("preprocessor");
    let decoder = if is_ctc {
        let sizes = ConvSizes { input: e.d_model.0, output: blank + 1, taps: 1 };
        Decoding::Ctc(w.at("decoder").conv1d("decoder_layers.0", sizes)?)
    } else {
        Decoding::Transducer(Box::new(Transducer::read(w, config, e.d_model.0, blank)?))
    };
    Ok(Box::new(Parakeet {
        front_end: NormalizedLogMel::new(NormalizedLogMelSizes {
            sample_rate: audio.sample_rate.0 as u32,
            n_fft: audio.n_fft.0 as usize,
            window: (audio.window_size * rate) as usize,
            hop,
            bins: audio.features.0 as usize,
            pre_emphasis: audio.preemph,
        }),
        sample_rate: audio.sample_rate.0 as u32,
        encoder: Conformer::read(&w.at("encoder"), sizes)?,
        decoder,
        pieces,
        seconds: f64::from(e.subsampling_factor.0) * hop as f64 / rate,
    }))
}

impl Transcriber for Parakeet {
    fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    fn features(&self, samples: &[f32]) -> Result<Array> {
        Ok(self.front_end.forward(samples)?.expand_dims(0)?)
    }

    fn encode(&self, features: &Array) -> Result<Array> {
        self.encoder.forward(features)
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
        let blank = self.pieces.len() as u32;
        let found = match &self.decoder {
            Decoding::Transducer(transducer) => transducer.decode(&encoded, blank)?,
            Decoding::Ctc(head) => ctc(&head.forward(&encoded)?, blank)?,
        };
        let label = |(label, start, end): (Label, usize, usize)| Label {
            start: start as f64 * self.seconds,
            end: end as f64 * self.seconds,
            ..label
        };
        let is_text = |label: &Label| !is_special(&self.pieces[label.id as usize]);
        let tokens = found.into_iter().map(label).filter(is_text).collect();
        Ok(Labels { tokens, ..Labels::default() })
    }

    fn piece(&self, id: u32) -> Result<String> {
        let piece = self.pieces.get(id as usize).filter(|piece| !is_special(piece));
        Ok(piece.map_or_else(String::new, |piece| piece.replace('▁', " ")))
    }
}

fn is_special(piece: &str) -> bool {
    (piece.starts_with("<|") && piece.ends_with("|>")) || ["<unk>", "<pad>"].contains(&piece)
}

/// The tokens of logits `[1, positions, vocabulary]`: of equal neighbours, the first; a token lasts until
/// the next one begins.
fn ctc(logits: &Array, blank: u32) -> Result<Vec<(Label, usize, usize)>> {
    let logits = logits.as_dtype(Dtype::Float32)?;
    let logprobs = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
    let ids = argmax_axis(&logprobs, -1, true)?;
    let best: Vec<f32> = mlx::to_vec(&take_along_axis(&logprobs, &ids, -1)?)?;
    let ids: Vec<u32> = mlx::to_vec(&ids)?;
    let mut labels: Vec<(Label, usize, usize)> = Vec::new();
    for (at, (id, logprob)) in ids.iter().zip(best).enumerate().filter(|(_, (id, _))| **id != blank)
    {
        match labels.last_mut() {
            // A repeated token is one, also across blanks, as in the reference.
            Some((label, _, end)) if label.id == *id => *end = at + 1,
            last => {
                if let Some((_, _, end)) = last {
                    *end = at;
                }
                labels.push((Label { id: *id, logprob, start: 0.0, end: 0.0 }, at, at + 1));
            }
        }
    }
    Ok(labels)
}
