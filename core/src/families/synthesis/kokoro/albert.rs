//! [ALBERT](https://arxiv.org/abs/1909.11942): one block of an encoder, applied again and again.

use super::config::AlbertConfig;
use crate::{
    families::prelude::*,
    layers::attention::bidirectional::{BidirectionalAttention, Heads},
};

pub(super) struct Albert {
    embeddings: [Embedding; 3],
    norm: Norm,
    widen: Linear,
    attention: BidirectionalAttention,
    attention_norm: Norm,
    mlp: PlainMlp,
    mlp_norm: Norm,
    layers: i32,
}

impl Albert {
    pub(super) fn read(w: &Scope, c: &AlbertConfig, vocabulary: i32) -> Result<Self> {
        const TOKEN_TYPES: i32 = 2;
        let (width, inner) = (*c.hidden_size, *c.intermediate_size);
        let narrow = c.embedding_size.map_or(128, |size| *size);
        let eps = c.layer_norm_eps.map_or(1e-12, |eps| *eps);
        w.ignore("pooler");
        let tables = w.at("embeddings");
        let table = |name: &str, rows| tables.embedding(name, rows, narrow);
        let block = w.at("encoder.albert_layer_groups.0.albert_layers.0");
        let attention = block.at("attention");
        let projection = |name: &str| attention.linear_with_bias(name, width, width);
        let projections =
            [projection("query")?, projection("key")?, projection("value")?, projection("dense")?];
        let heads = Heads::equal(*c.num_attention_heads, width / *c.num_attention_heads);
        let up = block.linear_with_bias("ffn", width, inner)?;
        let down = block.linear_with_bias("ffn_output", inner, width)?;
        Ok(Albert {
            embeddings: [
                table("word_embeddings", vocabulary)?,
                table("position_embeddings", *c.max_position_embeddings)?,
                table("token_type_embeddings", TOKEN_TYPES)?,
            ],
            norm: tables.layer_norm_with_bias("LayerNorm", narrow, eps)?,
            widen: w.at("encoder").linear_with_bias(
                "embedding_hidden_mapping_in",
                narrow,
                width,
            )?,
            attention: BidirectionalAttention::new(projections, heads, Rope::None),
            attention_norm: attention.layer_norm_with_bias("LayerNorm", width, eps)?,
            mlp: PlainMlp::new(up, down, gelu),
            mlp_norm: block.layer_norm_with_bias("full_layer_layer_norm", width, eps)?,
            layers: *c.num_hidden_layers,
        })
    }

    /// Ids `[1, length]` to `[1, length, width]`.
    pub(super) fn forward(&self, ids: &Array) -> Result<Array> {
        let [words, positions, types] = &self.embeddings;
        let places = ops::arange::<_, i32>(0, ids.dim(1), None)?;
        let x = words.lookup(ids)?.add(positions.lookup(&places)?)?;
        let x = x.add(types.lookup(&Array::from_slice(&[0], &[1]))?)?;
        let mut x = self.widen.forward(&self.norm.forward(&x)?)?;
        let step = Step::prefill(0, ids.dim(1));
        for _ in 0..self.layers {
            let y = self.attention.forward(&x, &mut (), &step)?;
            x = self.attention_norm.forward(&x.add(y)?)?;
            x = self.mlp_norm.forward(&x.add(self.mlp.forward(&x, &mut (), &step)?)?)?;
        }
        Ok(x)
    }
}
