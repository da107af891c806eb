//! The vision transformers of SigLIP ([Zhai et al. 2023](https://arxiv.org/abs/2303.15343)) and CLIP
//! ([Radford et al. 2021](https://arxiv.org/abs/2103.00020)), which adds a class token and a norm
//! before the blocks. Follows `modeling_siglip` and `modeling_clip` of transformers.

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{
        feed_forward::mlp::Ffn,
        norm::Norm,
        position::rope::Rope,
        residual::Residual,
        vision::{
            config::VisionConfig,
            encoder::{self, AttentionNames, Encoder, FC1_FC2, whole},
            grid::Grid,
            patches::{Kernel, PatchEmbedding},
            position_table::{PositionTable, buckets},
        },
    },
};
use mlx_rs::{Array, ops};

/// A vision transformer with learned positions.
pub struct VisionTransformer {
    patches: PatchEmbedding,
    positions: Positions,
    encoder: Encoder,
    /// The norm after the last block.
    pub norm: Option<Norm>,
}

enum Positions {
    Siglip { table: PositionTable, side: i32 },
    Clip { class: Array, table: Array, norm: Norm },
}

impl VisionTransformer {
    /// Reads a SigLIP tower, less the head that pools its output.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn siglip(w: &Scope, c: &VisionConfig) -> Result<Self> {
        w.ignore("head");
        let (embeddings, width, side) = (w.at("embeddings"), *c.hidden_size, c.side());
        let table = PositionTable::read(&embeddings, "position_embedding", side, width)?;
        let norm = w.layer_norm_with_bias("post_layernorm", width, *c.layer_norm_eps)?;
        Self::read(w, c, Positions::Siglip { table, side }, Some(norm))
    }

    /// Reads a CLIP tower, less the norm after its last block.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn clip(w: &Scope, c: &VisionConfig) -> Result<Self> {
        let (embeddings, width) = (w.at("embeddings"), *c.hidden_size);
        // An index that follows from the size of the table.
        embeddings.ignore("position_ids");
        w.ignore("post_layernorm");
        let table = &[c.side() * c.side() + 1, width];
        let positions = Positions::Clip {
            class: embeddings.tensor("class_embedding", &[width])?,
            table: embeddings.at("position_embedding").tensor("weight", table)?,
            norm: w.layer_norm_with_bias("pre_layrnorm", width, *c.layer_norm_eps)?,
        };
        Self::read(w, c, positions, None)
    }

    fn read(w: &Scope, c: &VisionConfig, positions: Positions, norm: Option<Norm>) -> Result<Self> {
        let kernel = Kernel::square(*c.num_channels, *c.patch_size);
        let embeddings = w.at("embeddings");
        let read = match &positions {
            Positions::Siglip { .. } => PatchEmbedding::with_bias,
            Positions::Clip { .. } => PatchEmbedding::read,
        };
        let patches = read(&embeddings, "patch_embedding", kernel, *c.hidden_size)?;
        let layers = w.at("encoder.layers");
        let encoder = Encoder::read(&layers, *c.num_hidden_layers, |_, w| block(w, c, Rope::None))?;
        Ok(VisionTransformer { patches, positions, encoder, norm })
    }

    /// Pictures `[batch, channels, height, width]` to the stream after the norm, `[batch, patches,
    /// width]`.
    pub fn forward(&self, pixels: &Array) -> Result<Array> {
        let x = self.last_state(pixels)?;
        self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))
    }

    /// As [`VisionTransformer::forward`], before the norm.
    pub fn last_state(&self, pixels: &Array) -> Result<Array> {
        let x = self.embed(pixels)?;
        self.encoder.forward(&x, &whole(&x))
    }

    /// The stream before the first block and after each. A class token comes first.
    pub fn hidden_states(&self, pixels: &Array) -> Result<Vec<Array>> {
        let x = self.embed(pixels)?;
        self.encoder.hidden_states(&x, &whole(&x))
    }

    /// The grid of pictures `[…, height, width]`.
    pub fn grid(&self, pixels: &Array) -> Grid {
        self.patches.grid(pixels)
    }

    fn embed(&self, pixels: &Array) -> Result<Array> {
        let x = self.patches.forward(pixels)?;
        match &self.positions {
            Positions::Siglip { table, side } => {
                let places = buckets(self.grid(pixels), *side);
                Ok(x.add(table.rows(&places)?)?)
            }
            Positions::Clip { class, table, norm } => {
                let class = ops::broadcast_to(class, &[x.dim(0), 1, x.dim(2)])?;
                norm.forward(&ops::concatenate(&[class, x], 1)?.add(table)?)
            }
        }
    }
}

/// A block of either; neither rotates. Queries, keys and values may be one matrix.
///
/// # Errors
/// As [`Scope::linear`].
pub fn block(w: &Scope, c: &VisionConfig, rope: Rope) -> Result<Ffn> {
    let norm = |name| w.layer_norm_with_bias(name, *c.hidden_size, *c.layer_norm_eps);
    let a = w.at("self_attn");
    let attention = if a.has_below("qkv") {
        encoder::biased_fused_attention(&a, "out_proj", c, rope)?
    } else {
        encoder::biased_attention(&a, AttentionNames::with_output("out_proj"), c, rope)?
    };
    let mlp = encoder::plain_mlp(&w.at("mlp"), FC1_FC2, c)?;
    Ok(encoder::block(
        Residual::pre(norm("layer_norm1")?, attention),
        Residual::pre(norm("layer_norm2")?, mlp),
    ))
}
