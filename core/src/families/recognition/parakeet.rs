//! Parakeet: NeMo's log-mel features, a FastConformer, and a transducer that also predicts how many
//! frames to skip (TDT, [Xu et al. 2023](https://arxiv.org/abs/2304.06795)), a plain transducer, or CTC.
//! The config is that of NeMo. Follows mlx-audio's `parakeet`.

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

/// A recurrent network over the tokens so far, and what joins it with the encoder.
struct Transducer {
    embedding: Embedding,
    layers: Vec<Lstm>,
    from_tokens: Linear,
    from_audio: Linear,
    joint: Linear,
    activation: activation::Activation,
    /// How many positions each duration skips; none in a plain transducer.
    durations: Vec<usize>,
    /// The most tokens of a position.
    max_symbols: usize,
}

/// A recurrent layer ([Hochreiter and Schmidhuber 1997](https://doi.org/10.1162/neco.1997.9.8.1735)).
struct Lstm {
    input: Array,
    hidden: Array,
    bias: Array,
}

/// The output of a recurrent layer and its cell, `[1, width]`.
type Memory = [Array; 2];

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

impl Transducer {
    fn read(w: &Scope, config: &Json, width: i32, blank: i32) -> Result<Self> {
        let number = |path: &str| {
            let value = config.pointer(path).and_then(Json::as_i64);
            value.and_then(|value| i32::try_from(value).ok()).filter(|value| *value > 0)
        };
        let missing = |path: &str| Error::config(path.trim_start_matches('/'), "missing");
        let size = |path: &str| number(path).ok_or_else(|| missing(path));
        let (tokens, joint) =
            (size("/decoder/prednet/pred_hidden")?, size("/joint/jointnet/joint_hidden")?);
        let durations = config.pointer("/model_defaults/tdt_durations").and_then(Json::as_array);
        let durations: Vec<usize> = durations
            .map(|list| list.iter().filter_map(|n| n.as_u64().map(|n| n as usize)).collect())
            .unwrap_or_default();
        let name = config.pointer("/joint/jointnet/activation").and_then(Json::as_str);
        let p = w.at("decoder.prediction");
        let rnn = p.at("dec_rnn.lstm");
        let layers = 0..number("/decoder/prednet/pred_rnn_layers").unwrap_or(1);
        let j = w.at("joint");
        Ok(Transducer {
            embedding: p.embedding("embed", blank + 1, tokens)?,
            layers: layers.map(|i| Lstm::read(&rnn, i, tokens)).collect::<Result<_>>()?,
            from_tokens: j.linear_with_bias("pred", tokens, joint)?,
            from_audio: j.linear_with_bias("enc", width, joint)?,
            joint: j.linear_with_bias("joint_net.2", joint, blank + 1 + durations.len() as i32)?,
            activation: activation::named("activation", name.unwrap_or("relu"))?,
            durations,
            max_symbols: number("/decoding/greedy/max_symbols").unwrap_or(10) as usize,
        })
    }

    /// A step of the recurrent network after a token; nothing stands before the first one.
    fn step(&self, token: Option<u32>, memory: &[Memory]) -> Result<(Array, Vec<Memory>)> {
        let mut x = self.embedding.lookup(&Array::from_slice(&[token.unwrap_or(0)], &[1]))?;
        if token.is_none() {
            x = ops::zeros_like(&x)?;
        }
        let mut next = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let state = layer.step(&x, memory.get(i))?;
            x = state[0].clone();
            next.push(state);
        }
        Ok((self.from_tokens.forward(&x)?, next))
    }

    /// The tokens of the output of an encoder `[1, positions, width]`, with the positions where they
    /// begin and end.
    fn decode(&self, encoded: &Array, blank: u32) -> Result<Vec<(Label, usize, usize)>> {
        let audio = self.from_audio.forward(encoded)?.squeeze_axes(&[0])?;
        let (positions, size) = (audio.dim(0) as usize, blank as i32 + 1);
        let mut labels = Vec::new();
        let (mut output, mut memory) = self.step(None, &[])?;
        let (mut at, mut symbols) = (0, 0);
        while at < positions {
            let x = mlx::slice(&audio, 0, at as i32, at as i32 + 1)?.add(&output)?;
            let logits = self.joint.forward(&(self.activation)(&x)?)?.as_dtype(Dtype::Float32)?;
            let own = mlx::slice(&logits, 1, 0, size)?;
            let logprobs = own.subtract(own.logsumexp_axis(-1, true)?)?;
            let best = argmax_axis(&logprobs, -1, true)?;
            let logprob = take_along_axis(&logprobs, &best, -1)?;
            let id: u32 = best.try_item_cast()?;
            let logprob: f32 = logprob.try_item_cast()?;
            if logprob.is_nan() {
                return Err(Error::NotANumber { position: at });
            }
            let skipped = if self.durations.is_empty() {
                usize::from(id == blank)
            } else {
                let durations = mlx::slice(&logits, 1, size, logits.dim(1))?;
                let choice: u32 = argmax_axis(&durations, -1, true)?.try_item_cast()?;
                self.durations[choice as usize]
            };
            if id != blank {
                let label = Label { id, logprob, start: 0.0, end: 0.0 };
                let length = if self.durations.is_empty() { 1 } else { skipped };
                labels.push((label, at, at + length));
                (output, memory) = self.step(Some(id), &memory)?;
            }
            at += skipped;
            symbols = if skipped == 0 { symbols + 1 } else { 0 };
            if symbols >= self.max_symbols {
                (at, symbols) = (at + 1, 0);
            }
        }
        Ok(labels)
    }
}

impl Lstm {
    fn read(w: &Scope, layer: i32, width: i32) -> Result<Self> {
        let (gates, own) = (4 * width, w.at(layer));
        if own.has("Wx") {
            return Ok(Lstm {
                input: own.tensor("Wx", &[gates, width])?,
                hidden: own.tensor("Wh", &[gates, width])?,
                bias: own.tensor("bias", &[gates])?,
            });
        }
        let name = |name: &str| format!("{name}_l{layer}");
        let bias = w.take(&name("bias_ih"), &[gates])?;
        let bias = bias.add(w.take(&name("bias_hh"), &[gates])?)?;
        Ok(Lstm {
            input: w.tensor(&name("weight_ih"), &[gates, width])?,
            hidden: w.tensor(&name("weight_hh"), &[gates, width])?,
            bias: w.keep(bias),
        })
    }

    fn step(&self, x: &Array, memory: Option<&Memory>) -> Result<Memory> {
        let mut gates = x.matmul(self.input.t())?.add(&self.bias)?;
        if let Some([hidden, _]) = memory {
            gates = gates.add(hidden.matmul(self.hidden.t())?)?;
        }
        let parts = gates.split_equal(4, -1)?;
        let [input, forget, output] = [&parts[0], &parts[1], &parts[3]].map(ops::sigmoid);
        let mut cell = input?.multiply(ops::tanh(&parts[2])?)?;
        if let Some([_, before]) = memory {
            cell = cell.add(forget?.multiply(before)?)?;
        }
        Ok([output?.multiply(ops::tanh(&cell)?)?, cell])
    }
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
