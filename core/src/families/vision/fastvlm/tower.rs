//! FastViTHD ([Vasu et al. 2024](https://arxiv.org/abs/2412.13303)): a stem, stages of blocks with a
//! reduction before each but the first, and an expansion of the channels. All is `[batch, rows, columns,
//! channels]`.

use super::blocks::{AttentionBlock, biased, Sizes, Convolved, RepMixerBlock, Reduction, SqueezeExcite};
use crate::{
    families::prelude::*,
    layers::audio::{
        convolution::{Kernel as Taps, Layout},
        convolution_2d::Convolution2d,
    },
};

/// The fields of `vision_config`, with the names of mlx-vlm.
#[derive(Deserialize)]
struct Config {
    layers: Vec<Size>,
    embed_dims: Vec<Size>,
    mlp_ratios: Vec<Positive>,
    downsamples: Vec<bool>,
    pos_embs_shapes: Vec<Option<[Size; 2]>>,
    token_mixers: Vec<String>,
    repmixer_kernel_size: Size,
    down_patch_size: Size,
    down_stride: Size,
    cls_ratio: Positive,
}

impl Config {
    fn read(config: &Json) -> Result<Self> {
        let c: Config = config::read(&config::with_defaults(
            config,
            json!({
                "layers": [2, 12, 24, 4, 2], "embed_dims": [96, 192, 384, 768, 1536],
                "mlp_ratios": [4, 4, 4, 4, 4], "downsamples": [true, true, true, true, true],
                "pos_embs_shapes": [null, null, null, [7, 7], [7, 7]],
                "token_mixers": ["repmixer", "repmixer", "repmixer", "attention", "attention"],
                "repmixer_kernel_size": 3, "down_patch_size": 7, "down_stride": 2, "cls_ratio": 2.0,
            }),
        ))?;
        let stages = c.layers.len();
        for (field, entries) in [
            ("embed_dims", c.embed_dims.len()),
            ("mlp_ratios", c.mlp_ratios.len()),
            ("downsamples", c.downsamples.len()),
            ("pos_embs_shapes", c.pos_embs_shapes.len()),
            ("token_mixers", c.token_mixers.len()),
        ] {
            if entries != stages || stages == 0 {
                return Err(Error::config(field, format!("{entries} entries for {stages} stages")));
            }
        }
        Ok(c)
    }
}

/// A part of the tower, of maps `[batch, height, width, channels]`.
type Stage = Box<dyn Fn(&Array) -> Result<Array>>;

/// The tower.
pub struct FastVit {
    stem: Vec<Convolved>,
    stages: Vec<Stage>,
    expansion: Convolution2d,
    attention: SqueezeExcite,
    /// Channels of the features.
    pub width: i32,
}

impl FastVit {
    /// Reads the tower, less the head of its pooled output.
    ///
    /// # Errors
    /// As [`Scope::tensor`], and for a field of the config.
    pub fn read(config: &Json, w: &Scope) -> Result<Self> {
        w.ignore("head");
        let c = Config::read(config)?;
        let (first, last) = (*c.embed_dims[0], *c.embed_dims[c.embed_dims.len() - 1]);
        let stem = w.at("patch_embed");
        // mlx-vlm has a further name, and another order of axes: the second kernel tells it.
        let stem = if stem.has_below("blocks") { stem.at("blocks") } else { stem };
        let is_mlx = stem.at(1).at("reparam_conv").shape("weight").is_some_and(|s| s.last() == Some(&1));
        let layout = if is_mlx { Layout::Mlx } else { Layout::Torch };
        let taps = [
            Taps::new(3, first, 3).stride(2).layout(layout),
            Taps::new(first, first, 3).stride(2).groups(first),
            Taps::new(first, first, 1),
        ];
        let stem = taps.into_iter().enumerate().map(|(i, taps)| Convolved::read(&stem.at(i), taps));
        let width = (last as f32 * *c.cls_ratio) as i32;
        divides("cls_ratio", last, width)?;
        let expansion = w.at("conv_exp");
        Ok(FastVit {
            stem: stem.collect::<Result<_>>()?,
            stages: stages(&c, &w.at("network"))?,
            expansion: biased(
                &expansion.at("reparam_conv"),
                Taps::new(last, width, 3).groups(last),
            )?,
            attention: SqueezeExcite::read(&expansion.at("se"), width)?,
            width,
        })
    }

    /// Pictures `[batch, 3, height, width]` to features `[batch, rows · columns, channels]`.
    pub fn forward(&self, pixels: &Array) -> Result<Array> {
        let x = pixels.transpose_axes(&[0, 2, 3, 1])?;
        let x = self.stem.iter().try_fold(x, |x, layer| layer.forward(&x))?;
        let x = self.stages.iter().try_fold(x, |x, stage| stage(&x))?;
        let x = gelu(&self.attention.forward(&self.expansion.forward(&x)?)?)?;
        Ok(x.flatten(1, 2)?)
    }
}

/// Refuses numbers of channels of which the one is no multiple of the other.
fn divides(field: &str, input: i32, output: i32) -> Result<()> {
    if output > 0 && output % input == 0 {
        return Ok(());
    }
    Err(Error::config(field, format!("{output} channels are no multiple of {input}")))
}

/// The layers between the stem and the expansion, which are numbered through.
fn stages(c: &Config, w: &Scope) -> Result<Vec<Stage>> {
    let mut layers: Vec<Stage> = Vec::new();
    for (i, channels) in c.embed_dims.iter().enumerate() {
        let channels = **channels;
        if let Some([rows, columns]) = &c.pos_embs_shapes[i] {
            if **rows != **columns || **rows % 2 == 0 {
                let reason = format!("{} by {} is no odd square", **rows, **columns);
                return Err(Error::unsupported("pos_embs_shapes", reason));
            }
            let taps = Taps::new(channels, channels, **rows).groups(channels);
            let positions = biased(&w.at(layers.len()).at("reparam_conv"), taps)?;
            layers.push(Box::new(move |x| positions.forward(x)));
        }
        let (stage, inner) = (w.at(layers.len()), (channels as f32 * *c.mlp_ratios[i]) as i32);
        let sizes = Sizes { channels, inner };
        let blocks = 0..*c.layers[i];
        match &*c.token_mixers[i] {
            "repmixer" => {
                let size = *c.repmixer_kernel_size;
                let read = |j| RepMixerBlock::read(&stage.at(j), sizes, size);
                let blocks = blocks.map(read).collect::<Result<Vec<_>>>()?;
                layers.push(Box::new(move |x| {
                    blocks.iter().try_fold(x.clone(), |x, block| block.forward(&x))
                }));
            }
            "attention" => {
                if channels % AttentionBlock::HEAD_DIM != 0 {
                    let reason = format!("{channels} channels are no whole heads of 32");
                    return Err(Error::config("embed_dims", reason));
                }
                let read = |j| AttentionBlock::read(&stage.at(j), sizes);
                let blocks = blocks.map(read).collect::<Result<Vec<_>>>()?;
                layers.push(Box::new(move |x| {
                    blocks.iter().try_fold(x.clone(), |x, block| block.forward(&x))
                }));
            }
            mixer => {
                let reason = format!("`{mixer}` is neither repmixer nor attention");
                return Err(Error::unsupported("token_mixers", reason));
            }
        }
        let Some(next) = c.embed_dims.get(i + 1).map(|next| **next) else { break };
        if c.downsamples[i] || next != channels {
            divides("embed_dims", channels, next)?;
            let taps = Taps::new(channels, next, *c.down_patch_size);
            let taps = taps.stride(*c.down_stride).groups(channels);
            let reduction = Reduction::read(&w.at(layers.len()).at("proj"), taps)?;
            layers.push(Box::new(move |x| reduction.forward(x)));
        }
    }
    Ok(layers)
}
