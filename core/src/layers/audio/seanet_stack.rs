//! The encoder and the decoder of a SEANet, with the config fields and names of transformers.

use crate::{
    checkpoint::{
        config::{self, Count, Json, Size},
        scope::Scope,
    },
    error::{Error, Result},
    layers::{
        algebra::Block,
        audio::{
            convolution::{Kernel, Layout},
            seanet::{Edge, ResidualUnit, Style, elu_block},
            sequence::Sequence,
        },
        residual::Residual,
    },
};
use serde::Deserialize;

/// The sizes of a SEANet.
pub struct SeanetConfig {
    /// Rates and widths.
    pub rates: Rates,
    kernels: Kernels,
    /// How its convolutions pad.
    pub style: Style,
    /// Taps of the first convolution.
    pub first_taps: i32,
}

/// The rates and widths of a SEANet.
#[derive(Deserialize)]
pub struct Rates {
    /// Samples a second, in Hz.
    pub sampling_rate: Size,
    /// Channels of the audio.
    pub audio_channels: Size,
    /// Channels of the latents.
    pub hidden_size: Size,
    /// Channels at the rate of the audio.
    pub num_filters: Size,
    /// From one rate to the next, the decoder's first ratio first.
    pub upsampling_ratios: Vec<Size>,
    /// LSTM layers at the lowest rate.
    #[serde(default)]
    pub num_lstm_layers: Count,
}

#[derive(Deserialize)]
struct Kernels {
    kernel_size: Size,
    last_kernel_size: Size,
    residual_kernel_size: Size,
    /// Residual units at each rate.
    num_residual_layers: Size,
    /// Factor of the dilation from one residual unit to the next.
    dilation_growth_rate: Size,
    /// A residual unit has this part of the channels inside.
    compress: Size,
    /// Whether the shortcut of a residual unit has a convolution.
    use_conv_shortcut: Option<bool>,
}

#[derive(Deserialize)]
struct StyleConfig {
    use_causal_conv: Option<bool>,
    pad_mode: Edge,
    trim_right_ratio: Option<f32>,
    norm_type: Option<String>,
}

impl StyleConfig {
    fn style(&self) -> Result<Style> {
        let has_norm = match self.norm_type.as_deref() {
            None | Some("weight_norm") => false,
            Some("time_group_norm") => true,
            Some(other) => {
                let reason = format!("`{other}` is not supported");
                return Err(Error::unsupported("norm_type", reason));
            }
        };
        Ok(Style {
            is_causal: self.use_causal_conv.unwrap_or(false),
            edge: self.pad_mode,
            has_norm,
            trim_right: self.trim_right_ratio.unwrap_or(1.0),
        })
    }
}

impl SeanetConfig {
    /// Reads the fields that a config has for a SEANet.
    ///
    /// # Errors
    /// [`Error::Config`]; [`Error::Unsupported`] for an unknown `norm_type`.
    pub fn read(json: &Json) -> Result<Self> {
        let kernels: Kernels = config::read(json)?;
        let style = config::read::<StyleConfig>(json)?.style()?;
        let first_taps = *kernels.kernel_size;
        Ok(SeanetConfig { rates: config::read(json)?, kernels, style, first_taps })
    }

    /// Samples for each latent.
    ///
    /// # Errors
    /// [`Error::Config`] when it is out of range.
    pub fn hop(&self) -> Result<i32> {
        config::product_of("upsampling_ratios", &self.rates.upsampling_ratios)
    }

    /// Channels at the lowest rate.
    fn widest(&self) -> Result<i32> {
        let scale = 1 << self.rates.upsampling_ratios.len().min(16);
        config::product("num_filters", [*self.rates.num_filters, scale])
    }

    fn stack<'w>(&'w self, w: &'w Scope, layout: Layout) -> Stack<'w> {
        Stack { c: self, w, layout, style: self.style, blocks: Vec::new(), next: 0 }
    }

    /// Reads the encoder below `w`: samples to latents.
    ///
    /// # Errors
    /// As [`Scope::tensor`]; those of [`SeanetConfig::read`].
    pub fn encoder(&self, w: &Scope, layout: Layout) -> Result<Sequence> {
        let mut channels = *self.rates.num_filters;
        let mut stack = self.stack(w, layout);
        self.widest()?;
        stack.conv(Kernel::new(*self.rates.audio_channels, channels, *self.kernels.kernel_size))?;
        for ratio in self.rates.upsampling_ratios.iter().rev() {
            stack.units(channels)?;
            stack.elu();
            stack.conv(Kernel::new(channels, 2 * channels, 2 * **ratio).stride(**ratio))?;
            channels *= 2;
        }
        stack.lstm(channels)?;
        stack.elu();
        stack.conv(Kernel::new(
            channels,
            *self.rates.hidden_size,
            *self.kernels.last_kernel_size,
        ))?;
        Ok(Sequence(stack.blocks))
    }

    /// Reads the decoder below `w`: latents to samples.
    ///
    /// # Errors
    /// As [`SeanetConfig::encoder`].
    pub fn decoder(&self, w: &Scope, layout: Layout) -> Result<Sequence> {
        let mut channels = self.widest()?;
        let mut stack = self.stack(w, layout);
        stack.conv(Kernel::new(*self.rates.hidden_size, channels, *self.kernels.kernel_size))?;
        stack.lstm(channels)?;
        for ratio in &self.rates.upsampling_ratios {
            stack.elu();
            stack.up(Kernel::new(channels, channels / 2, 2 * **ratio).stride(**ratio))?;
            channels /= 2;
            stack.units(channels)?;
        }
        stack.elu();
        stack.conv(Kernel::new(
            channels,
            *self.rates.audio_channels,
            *self.kernels.last_kernel_size,
        ))?;
        Ok(Sequence(stack.blocks))
    }

    /// The layout of the kernels of a checkpoint, told by the first one of the encoder, whose shape
    /// fits one layout whatever the config says.
    pub fn layout(&self, encoder: &Scope) -> Layout {
        let first = Kernel::new(
            *self.rates.audio_channels,
            *self.rates.num_filters,
            *self.kernels.kernel_size,
        );
        first.layout_of(&encoder.at("layers.0.conv"))
    }
}

/// Layers that are read one after the other.
struct Stack<'w> {
    c: &'w SeanetConfig,
    w: &'w Scope,
    layout: Layout,
    style: Style,
    blocks: Vec<Block>,
    /// The number of the next layer in the checkpoint.
    next: usize,
}

impl Stack<'_> {
    fn place(&mut self) -> Scope {
        self.next += 1;
        self.w.at("layers").at(self.next - 1)
    }

    fn elu(&mut self) {
        self.next += 1;
        self.blocks.push(elu_block());
    }

    fn conv(&mut self, kernel: Kernel) -> Result<()> {
        let conv = self.place().seanet_conv(kernel.layout(self.layout), self.style)?;
        self.blocks.push(Block::new(conv));
        Ok(())
    }

    fn up(&mut self, kernel: Kernel) -> Result<()> {
        let up = self.place().seanet_up(kernel.layout(self.layout), self.style)?;
        self.blocks.push(Block::new(up));
        Ok(())
    }

    /// The residual units at one rate.
    fn units(&mut self, channels: i32) -> Result<()> {
        let c = &self.c.kernels;
        for i in 0..*c.num_residual_layers {
            let hidden = channels / *c.compress;
            let dilation = c.dilation_growth_rate.saturating_pow(i as u32);
            let first = Kernel::new(channels, hidden, *c.residual_kernel_size).dilation(dilation);
            let kernels = [first, Kernel::new(hidden, channels, 1)];
            let kernels = kernels.map(|kernel| kernel.layout(self.layout));
            let unit = ResidualUnit::read(
                &self.place(),
                kernels[0],
                kernels[1],
                c.use_conv_shortcut.unwrap_or(true),
                self.style,
            )?;
            self.blocks.push(Block::new(unit));
        }
        Ok(())
    }

    /// LSTMs one after the other, added to their input.
    fn lstm(&mut self, width: i32) -> Result<()> {
        if *self.c.rates.num_lstm_layers == 0 {
            return Ok(());
        }
        let w = self.place().at("lstm");
        let layers: Result<Vec<_>> = (0..*self.c.rates.num_lstm_layers)
            .map(|i| w.lstm_layer(i, width, width).map(Block::new))
            .collect();
        self.blocks.push(Block::new(Residual::plain(Sequence(layers?))));
        Ok(())
    }
}
