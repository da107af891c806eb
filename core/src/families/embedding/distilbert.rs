//! [DistilBERT](https://arxiv.org/abs/1910.01108): BERT without types of tokens and under other names.
//! Follows `transformers`.

use crate::{
    families::{
        Checkpoint,
        prelude::*,
        text_encoders::{Classifier, TextEncoderFamily, equal_heads, first_token, label},
    },
    layers::{
        attention::bidirectional::BidirectionalAttention, feed_forward::activation::relu,
        residual::PostNorm,
    },
    models::{embedder::TextEncoder, text_batch::TextBatch},
};

pub const ENCODER: TextEncoderFamily =
    TextEncoderFamily { model_types: &["distilbert"], encoder, classifier };

/// Added to the variance; no field of the config says it.
const EPS: f32 = 1e-12;

#[derive(Deserialize)]
struct Config {
    vocab_size: Size,
    dim: Size,
    n_layers: Size,
    n_heads: Size,
    hidden_dim: Size,
    max_position_embeddings: Size,
    activation: String,
}

fn read(config: &Json) -> Result<Config> {
    // The table of positions is the same whether training began from sines.
    config.get("sinusoidal_pos_embds");
    let defaults = json!({
        "vocab_size": 30522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072,
        "max_position_embeddings": 512, "activation": "gelu",
    });
    config::read(&config::with_defaults(config, defaults))
}

struct DistilBert {
    words: Embedding,
    positions: Embedding,
    longest: i32,
    norm: Norm,
    encoder: Encoder,
    width: i32,
}

fn encoder(checkpoint: &Checkpoint) -> Result<Box<dyn TextEncoder>> {
    let (c, w) = (read(checkpoint.config)?, checkpoint.weights);
    for head in ["vocab_transform", "vocab_layer_norm", "vocab_projector", "qa_outputs"] {
        w.ignore(head);
    }
    let w = if w.has_below("distilbert") { w.at("distilbert") } else { w.clone() };
    let (tables, width, inner) = (w.at("embeddings"), *c.dim, *c.hidden_dim);
    tables.ignore("position_ids");
    let activation = activation::named("activation", &c.activation)?;
    let heads = equal_heads(*c.n_heads, width).map_err(|e| e.with_field(|_| "n_heads".into()))?;
    let layer = |w: &Scope| -> Result<Ffn> {
        let (a, ffn) = (w.at("attention"), w.at("ffn"));
        let projection = |name| a.linear_with_bias(name, width, width);
        let projections = [
            projection("q_lin")?,
            projection("k_lin")?,
            projection("v_lin")?,
            projection("out_lin")?,
        ];
        let attention = BidirectionalAttention::new(projections, heads, Rope::None);
        let up = ffn.linear_with_bias("lin1", width, inner)?;
        let down = ffn.linear_with_bias("lin2", inner, width)?;
        let norm = |name| w.layer_norm_with_bias(name, width, EPS);
        Ok(encoder::block(
            PostNorm::new(attention, norm("sa_layer_norm")?),
            PostNorm::new(PlainMlp::new(up, down, activation), norm("output_layer_norm")?),
        ))
    };
    let longest = *c.max_position_embeddings;
    Ok(Box::new(DistilBert {
        words: tables.embedding("word_embeddings", *c.vocab_size, width)?,
        positions: tables.embedding("position_embeddings", longest, width)?,
        longest,
        norm: tables.layer_norm_with_bias("LayerNorm", width, EPS)?,
        encoder: Encoder::read(&w.at("transformer.layer"), *c.n_layers, |_, w| layer(w))?,
        width,
    }))
}

impl TextEncoder for DistilBert {
    fn vocabulary(&self) -> u32 {
        self.words.vocabulary()
    }

    fn longest(&self) -> Option<usize> {
        Some(self.longest as usize)
    }

    fn width(&self) -> i32 {
        self.width
    }

    fn encode(&self, batch: &TextBatch) -> Result<Array> {
        let places = ops::arange::<_, i32>(0, batch.length(), None)?;
        let x = self.words.lookup(&batch.ids)?.add(self.positions.lookup(&places)?)?;
        self.encoder.forward(&self.norm.forward(&x)?, &batch.bidirectional(None)?)
    }
}

fn classifier(checkpoint: &Checkpoint) -> Result<Classifier> {
    let (width, w) = (*read(checkpoint.config)?.dim, checkpoint.weights);
    let dense = w.linear_with_bias("pre_classifier", width, width)?;
    Ok(first_token(dense, relu, label(w, "classifier", width)?))
}
