//! [Mimi](https://arxiv.org/abs/2410.00037): a causal SEANet, transformers with a sliding window on both
//! sides of the quantizers, half as many frames as the SEANet has, and a first quantizer apart from the
//! others.
//!
//! Follows `MimiModel` of transformers.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Build, Checkpoint, Entry, prelude::*},
    layers::audio::{
        convolution::{Convolution, Kernel},
        layer_scale::LayerScale,
        noise::Noise,
        quantizer::{Codebook, ResidualQuantizer},
        seanet::{Edge, Style},
        seanet_stack::SeanetConfig,
    },
    models::codec::{CausalDecoder, Codec, Codes, EncodedAudio, Streaming, run_next, stream_cache},
};

pub const ENTRY: Entry = Entry {
    model_types: &["mimi"],
    build: Build::Codec(build),
    recommended: Recommended::NOTHING,
    files: FileRules::USUAL,
    processor: None,
};

#[derive(Deserialize)]
struct Config {
    codebook_size: Size,
    codebook_dim: Size,
    num_quantizers: Size,
    num_semantic_quantizers: Size,
    vector_quantization_hidden_dimension: Size,
    frame_rate: Option<Positive>,
    upsample_groups: Size,
    hidden_act: String,
}

struct Mimi {
    sample_rate: u32,
    /// SEANet, transformer, and a convolution that halves the frames.
    encoder: [Vec<Block>; 3],
    quantizers: [ProjectedQuantizer; 2],
    /// A convolution that doubles the frames, transformer, and SEANet.
    decoder: [Vec<Block>; 3],
    entries: i32,
    semantic: usize,
}

/// The fields that configs of transformers leave out where they are the usual ones.
fn defaults() -> Value {
    json!({
        "sampling_rate": 24000, "audio_channels": 1, "hidden_size": 512, "num_filters": 64,
        "num_residual_layers": 1, "upsampling_ratios": [8, 6, 5, 4], "kernel_size": 7,
        "last_kernel_size": 3, "residual_kernel_size": 3, "dilation_growth_rate": 2,
        "use_causal_conv": true, "pad_mode": "constant", "compress": 2, "trim_right_ratio": 1.0,
        "codebook_size": 2048, "codebook_dim": 256, "num_quantizers": 32,
        "use_conv_shortcut": false, "vector_quantization_hidden_dimension": 256,
        "num_semantic_quantizers": 1, "upsample_groups": 512, "num_hidden_layers": 8,
        "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8,
        "hidden_act": "gelu", "norm_eps": 1e-5, "sliding_window": 250,
    })
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Codec>> {
    let (json, w) = (config::with_defaults(checkpoint.config, defaults()), checkpoint.weights);
    let text = config::with_defaults(&json, json!({"vocab_size": json.get("codebook_size")}));
    let text = Text::read_renamed(&text, &[("norm_eps", "rms_norm_eps")])?;
    let (c, seanet): (Config, _) = (config::read(&json)?, SeanetConfig::read(&json)?);
    let act = activation::named("hidden_act", &c.hidden_act)?;
    let latent_rate = (*seanet.rates.sampling_rate as f32 / seanet.hop()? as f32).ceil();
    let frame_rate = c.frame_rate.map_or(latent_rate / 2.0, |rate| *rate);
    let taps = 2 * (latent_rate / frame_rate) as i32;
    // Other versions of transformers nest both halves.
    let half = |part: &str, side: &str| {
        let nested = w.at(side).has_below(part);
        if nested { w.at(side).at(part) } else { w.at(part) }
    };
    let [encode, decode] = ["encoder", "decoder"].map(|side| {
        let nested = format!("{side}_seanet");
        if w.at(side).has_below(&nested) { w.at(side).at(nested) } else { w.at(side) }
    });
    let layout = seanet.layout(&encode);
    let style = Style { edge: Edge::Replicate, ..seanet.style };
    let width = *seanet.rates.hidden_size;
    let down = Kernel::new(width, width, taps).stride(2).layout(layout);
    let down = half("downsample", "encoder").seanet_conv(down, style)?;
    let up = Kernel::new(width, width, taps).stride(2).groups(*c.upsample_groups).layout(layout);
    let up = half("upsample", "decoder").seanet_up(up, style)?;
    let semantic = *c.num_semantic_quantizers;
    let quantizer = |name: &str, count| {
        let w = w.at("quantizer").at(name);
        ProjectedQuantizer::read(&w, &c, count, Kernel::new(width, 0, 1).layout(layout))
    };
    Ok(Box::new(Mimi {
        sample_rate: *seanet.rates.sampling_rate as u32,
        encoder: [
            seanet.encoder(&encode, layout)?.0,
            transformer(&half("encoder_transformer", "encoder"), &text, act)?,
            vec![Block::new(down)],
        ],
        quantizers: [
            quantizer("semantic_residual_vector_quantizer", semantic)?,
            quantizer("acoustic_residual_vector_quantizer", (*c.num_quantizers - semantic).max(0))?,
        ],
        decoder: [
            vec![Block::new(up)],
            transformer(&half("decoder_transformer", "decoder"), &text, act)?,
            seanet.decoder(&decode, layout)?.0,
        ],
        entries: *c.codebook_size,
        semantic: semantic as usize,
    }))
}

fn transformer(w: &Scope, c: &Text, act: activation::Activation) -> Result<Vec<Block>> {
    let (width, eps) = (c.hidden_size, c.rms_norm_eps);
    let block = |i: i32| {
        let w = w.at("layers").at(i);
        let attention = Attention::read(&w.at("self_attn"), QKVO, c, Rope::of(c)?)?;
        let mlp = PlainMlp::read(&w.at("mlp"), PlainNames { up: "fc1", down: "fc2" }, c, act)?;
        let scale = |name: &str| w.at(name).tensor("scale", &[width]);
        let attention = attention.window(*c.sliding_window);
        let attention = LayerScale { inner: attention, scale: scale("self_attn_layer_scale")? };
        let mlp = LayerScale { inner: mlp, scale: scale("mlp_layer_scale")? };
        Ok(Block::new((
            Residual::pre(w.layer_norm_with_bias("input_layernorm", width, eps)?, attention),
            Residual::pre(w.layer_norm_with_bias("post_attention_layernorm", width, eps)?, mlp),
        )))
    };
    (0..c.num_hidden_layers).map(block).collect()
}

/// A residual quantizer in a space of its own.
struct ProjectedQuantizer {
    /// Into the space and out of it, where its width differs from that of the latents.
    projections: Option<[Convolution; 2]>,
    stages: ResidualQuantizer<Codebook>,
}

impl ProjectedQuantizer {
    fn read(w: &Scope, c: &Config, count: i32, latents: Kernel) -> Result<Self> {
        let (width, inner) = (latents.input, *c.vector_quantization_hidden_dimension);
        let kernels = [
            Kernel { output: inner, ..latents },
            Kernel { input: inner, output: width, ..latents },
        ];
        let read = |name: &str, kernel| w.at(name).convolution(kernel, 0);
        let projections = (inner != width)
            .then(|| {
                Ok::<_, Error>([read("input_proj", kernels[0])?, read("output_proj", kernels[1])?])
            })
            .transpose()?;
        let table = |i: i32| {
            let w = w.at("layers").at(i).at("codebook");
            w.ignore("initialized");
            let usage = w.take("cluster_usage", &[*c.codebook_size])?;
            let usage = ops::maximum(&usage, mlx::scalar(1e-5, usage.dtype())?)?.expand_dims(1)?;
            let sum = w.take("embed_sum", &[*c.codebook_size, *c.codebook_dim])?;
            Codebook::new(w.keep(sum.divide(usage)?))
        };
        let stages = (0..count).map(table).collect::<Result<_>>()?;
        Ok(ProjectedQuantizer { projections, stages: ResidualQuantizer(stages) })
    }

    fn encode(&self, x: &Array) -> Result<Vec<Array>> {
        match &self.projections {
            Some([input, _]) => self.stages.encode(&input.forward(x)?),
            None => self.stages.encode(x),
        }
    }

    fn decode(&self, codes: &[Array]) -> Result<Array> {
        let y = self.stages.decode(codes)?;
        match &self.projections {
            Some([_, output]) => output.forward(&y),
            None => Ok(y),
        }
    }
}

impl Mimi {
    fn decoder(&self) -> [&[Block]; 3] {
        [&self.decoder[0], &self.decoder[1], &self.decoder[2]]
    }
}

impl Codec for Mimi {
    fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    fn encode(&self, samples: &Array) -> Result<EncodedAudio> {
        let stages = [&self.encoder[0][..], &self.encoder[1], &self.encoder[2]];
        let x = run_next(&stages, 1, samples, &mut stream_cache(&stages))?;
        let codes = self.quantizers.iter().map(|quantizer| quantizer.encode(&x));
        let codes: Vec<Vec<Array>> = codes.collect::<Result<_>>()?;
        Ok(EncodedAudio::Codes(vec![Codes::of_arrays(&codes.concat())?]))
    }

    fn decode(&self, encoded: &EncodedAudio, _: Noise) -> Result<Array> {
        self.decode_next(encoded.only_codes()?, &mut self.cache())
    }

    fn streaming(&self) -> Streaming<'_> {
        Streaming::Causal(self)
    }
}

impl CausalDecoder for Mimi {
    fn first_frames(&self) -> usize {
        1
    }

    fn cache(&self) -> Cache {
        stream_cache(&self.decoder())
    }

    fn decode_next(&self, codes: &Codes, cache: &mut Cache) -> Result<Array> {
        let [semantic, acoustic] = &self.quantizers;
        let count = self.semantic + acoustic.stages.0.len();
        let codes = codes.arrays(&vec![1; count], self.entries)?;
        let (first, others) = codes.split_at(self.semantic.min(codes.len()));
        let mut x = semantic.decode(first)?;
        if !others.is_empty() {
            x = x.add(acoustic.decode(others)?)?;
        }
        run_next(&self.decoder(), 1, &x, cache)
    }
}
