//! [Vocos](https://arxiv.org/abs/2306.00814): a vocoder of ConvNeXt blocks at the rate of the frames and a
//! head of spectra. Its features are log-mels.
//!
//! Follows `vocos` 0.1.0, whose config is `config.yaml`.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Build, Checkpoint, Entry, prelude::*},
    layers::audio::{
        conv_next::ConvNextSizes,
        filter_bank::{FilterBank, MelScale},
        istft_head::{IstftHead, IstftSizes},
        noise::Noise,
        sequence::Sequence,
        stft::{Stft, Window, reflect},
    },
    models::codec::{Codec, EncodedAudio, Streaming},
};

pub const ENTRY: Entry = Entry {
    model_types: &["vocos"],
    build: Build::Codec(build),
    recommended: Recommended::NOTHING,
    files: FileRules {
        beside: &["config.yaml"],
        matches: Some(|contents| {
            contents.config.is_none() && contents.names.iter().any(|name| name == "config.yaml")
        }),
        ..FileRules::USUAL
    },
    processor: None,
};

#[derive(Deserialize)]
struct Config {
    feature_extractor: Part<Extractor>,
    backbone: Part<Backbone>,
    head: Part<Head>,
}

/// A part of the model, by its class.
#[derive(Deserialize)]
struct Part<T> {
    class_path: String,
    init_args: T,
}

#[derive(Deserialize)]
struct Extractor {
    sample_rate: Option<Size>,
    n_fft: Option<Size>,
    hop_length: Option<Size>,
    n_mels: Option<Size>,
    padding: Option<String>,
}

#[derive(Deserialize)]
struct Backbone {
    input_channels: Size,
    dim: Size,
    intermediate_dim: Size,
    num_layers: Size,
    adanorm_num_embeddings: Option<Size>,
}

#[derive(Deserialize)]
struct Head {
    dim: Size,
    n_fft: Size,
    hop_length: Size,
    padding: Option<String>,
}

struct Vocos {
    sample_rate: u32,
    mel: Mel,
    backbone: Sequence,
    head: IstftHead,
    bins: i32,
}

/// The front end.
struct Mel {
    stft: Stft,
    filters: Array,
    pad: usize,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Codec>> {
    let w = checkpoint.weights;
    let in_json = checkpoint.config.get("backbone").is_some();
    let yaml = if in_json { None } else { checkpoint.files.yaml("config.yaml")? };
    let yaml = yaml.map(Json::from);
    let c: Config = config::read(yaml.as_ref().unwrap_or(checkpoint.config))?;
    if !c.backbone.class_path.ends_with("VocosBackbone")
        || !c.head.class_path.ends_with("ISTFTHead")
    {
        let reason =
            format!("`{}` with `{}` is not supported", c.backbone.class_path, c.head.class_path);
        return Err(Error::unsupported("backbone.class_path", reason));
    }
    let (features, head, bins) =
        (&c.feature_extractor, &c.head.init_args, *c.backbone.init_args.input_channels);
    if !features.class_path.ends_with("MelSpectrogramFeatures") {
        let reason = format!("`{}` is not supported, only log-mels are", features.class_path);
        return Err(Error::unsupported("feature_extractor.class_path", reason));
    }
    w.ignore("feature_extractor");
    let n_fft = *head.n_fft;
    let is_same = head.padding.as_deref() == Some("same");
    let ends = if is_same { (n_fft - *head.hop_length) / 2 } else { n_fft / 2 };
    let sizes = IstftSizes { width: *head.dim, n_fft, hop: *head.hop_length, ends };
    Ok(Box::new(Vocos {
        sample_rate: features.init_args.sample_rate.map_or(24_000, |rate| *rate as u32),
        mel: Mel::new(&features.init_args),
        backbone: backbone(&w.at("backbone"), &c.backbone.init_args)?,
        head: w.at("head").istft_head(sizes)?,
        bins,
    }))
}

fn backbone(w: &Scope, c: &Backbone) -> Result<Sequence> {
    if c.adanorm_num_embeddings.is_some() {
        let reason = "norms that depend on the bandwidth of EnCodec are not supported";
        return Err(Error::unsupported("backbone.init_args.adanorm_num_embeddings", reason));
    }
    w.conv_next(ConvNextSizes {
        input: *c.input_channels,
        width: *c.dim,
        inner: *c.intermediate_dim,
        layers: *c.num_layers,
        first_kernel: 7,
        kernel: 7,
    })
}

impl Mel {
    fn new(c: &Extractor) -> Self {
        let size = |size: Option<Size>, default| size.map_or(default, |size| *size as usize);
        let (n_fft, hop) = (size(c.n_fft, 1024), size(c.hop_length, 256));
        let rate = size(c.sample_rate, 24_000) as f64;
        let pad = if c.padding.as_deref() == Some("same") {
            (n_fft - hop.min(n_fft)) / 2
        } else {
            n_fft / 2
        };
        Mel {
            stft: Stft::new(&Window::PeriodicHann.values(n_fft), n_fft, hop),
            filters: FilterBank::whole(rate, n_fft, size(c.n_mels, 100)).weights(MelScale::Htk),
            pad,
        }
    }
}

impl Codec for Vocos {
    fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    fn encode(&self, samples: &Array) -> Result<EncodedAudio> {
        let mel = &self.mel;
        let samples: Vec<f32> = mlx::to_vec(samples)?;
        let spectra = mel.stft.forward(&reflect(&samples, mel.pad))?.abs()?;
        let mels = ops::maximum(spectra.matmul(&mel.filters)?, Array::from_f32(1e-7))?.log()?;
        EncodedAudio::of_features(&mels.expand_dims(0)?)
    }

    fn decode(&self, encoded: &EncodedAudio, noise: Noise) -> Result<Array> {
        let features = encoded.features(self.bins)?;
        let samples = self.head.forward(&self.backbone.run_with(&features, noise)?)?;
        Ok(samples.expand_dims(-1)?)
    }

    fn streaming(&self) -> Streaming<'_> {
        Streaming::Whole
    }
}
