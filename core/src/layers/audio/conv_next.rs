//! The backbone of vocoders at the rate of the frames ([Siuzdak 2023](https://arxiv.org/abs/2306.00814)): a
//! convolution, and blocks of ConvNeXt, which are a depthwise convolution and a feed-forward network.

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{
        algebra::Block,
        audio::{convolution::Kernel, layer_scale::LayerScale, sequence::Sequence},
        feed_forward::{activation::gelu, mlp::PlainMlp},
        residual::Residual,
    },
};

const EPS: f32 = 1e-6;

/// The sizes of a backbone.
#[derive(Clone, Copy, Debug)]
pub struct ConvNextSizes {
    /// Channels of the input.
    pub input: i32,
    /// Channels of the blocks, and of the output.
    pub width: i32,
    /// Channels within the feed-forward networks.
    pub inner: i32,
    /// The number of blocks.
    pub layers: i32,
    /// Taps of the first convolution, an odd number.
    pub first_kernel: i32,
    /// Taps of the depthwise convolutions, an odd number.
    pub kernel: i32,
}

impl Scope {
    /// Reads `embed`, `norm`, `convnext` and `final_layer_norm`.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn conv_next(&self, sizes: ConvNextSizes) -> Result<Sequence> {
        let ConvNextSizes { input, width, inner, layers, first_kernel, kernel } = sizes;
        let norm = |w: &Scope, name: &str| w.layer_norm_with_bias(name, width, EPS);
        let each = Kernel::new(width, width, kernel).groups(width);
        let layout = each.layout_of(&self.at("convnext.0.dwconv"));
        let (each, first) =
            (each.layout(layout), Kernel::new(input, width, first_kernel).layout(layout));
        let mut blocks = vec![
            Block::new(self.at("embed").convolution(first, first_kernel / 2)?),
            Block::new(norm(self, "norm")?),
        ];
        for i in 0..layers {
            let w = self.at("convnext").at(i);
            let up = w.linear_with_bias("pwconv1", width, inner)?;
            let down = w.linear_with_bias("pwconv2", inner, width)?;
            let branch = Sequence(vec![
                Block::new(w.at("dwconv").convolution(each, kernel / 2)?),
                Block::new(norm(&w, "norm")?),
                Block::new(PlainMlp::new(up, down, gelu)),
            ]);
            blocks.push(match w.optional("gamma", &[width])? {
                Some(scale) => Block::new(Residual::plain(LayerScale { inner: branch, scale })),
                None => Block::new(Residual::plain(branch)),
            });
        }
        blocks.push(Block::new(norm(self, "final_layer_norm")?));
        Ok(Sequence(blocks))
    }
}
