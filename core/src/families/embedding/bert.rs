//! [BERT](https://arxiv.org/abs/1810.04805) and what only renames it: MiniLM, BGE, GTE and E5 of the
//! first generation. RoBERTa, XLM-RoBERTa and CamemBERT count positions from after the id of the padding, and
//! classify by a network of their own. Follows `transformers`.

use crate::{
    families::{
        Checkpoint,
        prelude::*,
        text_encoders::{Classifier, TextEncoderFamily, equal_heads, first_token, label},
    },
    layers::{
        attention::bidirectional::{BidirectionalAttention, Heads},
        residual::PostNorm,
    },
    models::{embedder::TextEncoder, text_batch::TextBatch},
};

pub const ENCODER: TextEncoderFamily = TextEncoderFamily {
    model_types: &["bert", "roberta", "xlm-roberta", "xlm_roberta", "camembert"],
    encoder,
    classifier,
};

#[derive(Deserialize)]
struct Config {
    model_type: String,
    vocab_size: Size,
    hidden_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    intermediate_size: Size,
    max_position_embeddings: Size,
    type_vocab_size: Size,
    layer_norm_eps: Epsilon,
    hidden_act: String,
    pad_token_id: Count,
}

impl Config {
    fn read(config: &Json) -> Result<Self> {
        config::only(
            config,
            json!({
                "is_decoder": false, "add_cross_attention": false, "position_embedding_type": "absolute",
            }),
        )?;
        let is_bert = config::field::<String>(config, "model_type")? == "bert";
        let defaults = json!({
            "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
            "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512,
            "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
            "pad_token_id": if is_bert { 0 } else { 1 },
        });
        let c: Config = config::read(&config::with_defaults(config, defaults))?;
        if *c.max_position_embeddings <= c.first_position() {
            let reason = format!("leaves no position after the padding's id {}", *c.pad_token_id);
            return Err(Error::config("max_position_embeddings", reason));
        }
        Ok(c)
    }

    fn is_bert(&self) -> bool {
        self.model_type == "bert"
    }

    /// The position of the first token.
    fn first_position(&self) -> i32 {
        if self.is_bert() { 0 } else { *self.pad_token_id + 1 }
    }

    fn heads(&self) -> Result<Heads> {
        equal_heads(*self.num_attention_heads, *self.hidden_size)
    }
}

/// The place of the encoder in a checkpoint of any head, whose other heads are not read.
fn body(w: &Scope) -> Scope {
    for head in ["cls", "lm_head", "qa_outputs"] {
        w.ignore(head);
    }
    w.rename(&[("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")]);
    let body = ["bert", "roberta"].into_iter().find(|name| w.has_below(name));
    body.map_or_else(|| w.clone(), |name| w.at(name))
}

struct Bert {
    words: Embedding,
    positions: Embedding,
    /// The position of the first token, and the id of the padding where its tokens have no position.
    first_position: i32,
    padding: Option<i32>,
    longest: usize,
    types: Embedding,
    has_types: bool,
    norm: Norm,
    encoder: Encoder,
    width: i32,
}

fn encoder(checkpoint: &Checkpoint) -> Result<Box<dyn TextEncoder>> {
    let c = Config::read(checkpoint.config)?;
    let w = body(checkpoint.weights);
    // The pooler is no part of an embedding; a head reads it before.
    w.ignore("pooler");
    let (tables, width) = (w.at("embeddings"), *c.hidden_size);
    tables.ignore("position_ids");
    let activation = activation::named("hidden_act", &c.hidden_act)?;
    let heads = c.heads()?;
    let eps = *c.layer_norm_eps;
    let layer = |w: &Scope| -> Result<Ffn> {
        let (a, inner) = (w.at("attention"), *c.intermediate_size);
        let projection = |name| a.linear_with_bias(name, width, width);
        let projections = [
            projection("self.query")?,
            projection("self.key")?,
            projection("self.value")?,
            projection("output.dense")?,
        ];
        let attention = BidirectionalAttention::new(projections, heads, Rope::None);
        let up = w.linear_with_bias("intermediate.dense", width, inner)?;
        let down = w.linear_with_bias("output.dense", inner, width)?;
        let norm = |w: &Scope| w.layer_norm_with_bias("output.LayerNorm", width, eps);
        Ok(encoder::block(
            PostNorm::new(attention, norm(&a)?),
            PostNorm::new(PlainMlp::new(up, down, activation), norm(w)?),
        ))
    };
    let table = |name, rows| tables.embedding(name, rows, width);
    Ok(Box::new(Bert {
        words: table("word_embeddings", *c.vocab_size)?,
        positions: table("position_embeddings", *c.max_position_embeddings)?,
        first_position: c.first_position(),
        padding: (!c.is_bert()).then_some(*c.pad_token_id),
        longest: (*c.max_position_embeddings - c.first_position()) as usize,
        types: table("token_type_embeddings", *c.type_vocab_size)?,
        has_types: *c.type_vocab_size > 1,
        norm: tables.layer_norm_with_bias("LayerNorm", width, eps)?,
        encoder: Encoder::read(&w.at("encoder.layer"), *c.num_hidden_layers, |_, w| layer(w))?,
        width,
    }))
}

impl Bert {
    /// The positions of the tokens, `[length]` or `[batch, length]`.
    fn positions(&self, batch: &TextBatch) -> Result<Array> {
        let first = Array::from_int(self.first_position);
        let Some(padding) = self.padding else {
            return Ok(ops::arange::<_, i32>(0, batch.length(), None)?.add(first)?);
        };
        // A text may have the token of the padding, which stands at the position of its own id.
        let counts = batch.ids.ne(Array::from_int(padding))?.as_dtype(Dtype::Int32)?;
        let place = ops::cumsum(&counts, 1, false, true)?;
        Ok(place.multiply(counts)?.add(Array::from_int(padding))?)
    }
}

impl TextEncoder for Bert {
    fn vocabulary(&self) -> u32 {
        self.words.vocabulary()
    }

    fn longest(&self) -> Option<usize> {
        Some(self.longest)
    }

    fn width(&self) -> i32 {
        self.width
    }

    fn encode(&self, batch: &TextBatch) -> Result<Array> {
        let zero = Array::from_slice(&[0], &[1, 1]);
        let types = self.types.lookup(if self.has_types { &batch.types } else { &zero })?;
        let x = self.words.lookup(&batch.ids)?.add(types)?;
        let x = x.add(self.positions.lookup(&self.positions(batch)?)?)?;
        self.encoder.forward(&self.norm.forward(&x)?, &batch.bidirectional(None)?)
    }
}

/// BERT classifies by its pooler, the others by a network beside the classifier.
fn classifier(checkpoint: &Checkpoint) -> Result<Classifier> {
    let (c, w) = (Config::read(checkpoint.config)?, checkpoint.weights);
    let width = *c.hidden_size;
    let (dense, label) = if c.is_bert() {
        let dense = body(w).linear_with_bias("pooler.dense", width, width)?;
        (dense, label(w, "classifier", width)?)
    } else {
        let w = w.at("classifier");
        (w.linear_with_bias("dense", width, width)?, label(&w, "out_proj", width)?)
    };
    Ok(first_token(dense, |x| Ok(ops::tanh(x)?), label))
}
