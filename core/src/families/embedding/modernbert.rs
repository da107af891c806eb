//! [ModernBERT](https://arxiv.org/abs/2412.13663): an encoder with norms before its branches, rotary positions,
//! and gated networks. One layer of three sees all tokens and the others a window, each kind with a rotary base of
//! its own. Follows `transformers`.

use crate::{
    families::{
        Checkpoint,
        prelude::*,
        text_encoders::{Classifier, TextEncoderFamily, equal_heads, first, label},
    },
    layers::attention::bidirectional::BidirectionalAttention,
    models::{embedder::TextEncoder, text_batch::TextBatch},
};

pub const ENCODER: TextEncoderFamily =
    TextEncoderFamily { model_types: &["modernbert"], encoder, classifier };

#[derive(Deserialize)]
struct Config {
    vocab_size: Size,
    hidden_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    intermediate_size: Size,
    max_position_embeddings: Size,
    norm_eps: Epsilon,
    hidden_activation: String,
}

/// Which layers see a window, and how each kind rotates.
#[derive(Deserialize)]
struct Kinds {
    layer_types: Option<Vec<String>>,
    global_attn_every_n_layers: Size,
    local_attention: Size,
    global_rope_theta: Positive,
    local_rope_theta: Positive,
    rope_parameters: Option<RopeScaling>,
}

/// The head of a classifier.
#[derive(Deserialize)]
struct Head {
    classifier_pooling: String,
    classifier_activation: String,
}

fn read(config: &Json) -> Result<(Config, Kinds, Head)> {
    config::only(config, json!({"rope_scaling": null}))?;
    // They say how to compute the same numbers, or what the tensors tell.
    for field in [
        "deterministic_flash_attn",
        "reference_compile",
        "repad_logits_with_grad",
        "norm_bias",
        "decoder_bias",
        "sparse_prediction",
        "sparse_pred_ignore_index",
    ] {
        config.get(field);
    }
    let defaults = json!({
        "vocab_size": 50368, "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12,
        "intermediate_size": 1152, "max_position_embeddings": 8192, "norm_eps": 1e-5,
        "hidden_activation": "gelu", "global_attn_every_n_layers": 3, "local_attention": 128,
        "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0, "classifier_pooling": "cls",
        "classifier_activation": "gelu",
    });
    let config = &config::with_defaults(config, defaults);
    let (c, kinds): (Config, Kinds) = (config::read(config)?, config::read(config)?);
    if let Some(listed) = &kinds.layer_types
        && listed.len() != *c.num_hidden_layers as usize
    {
        let reason = format!("{} entries for {} layers", listed.len(), *c.num_hidden_layers);
        return Err(Error::config("layer_types", reason));
    }
    Ok((c, kinds, config::read(config)?))
}

impl Kinds {
    /// Whether a layer sees a window only.
    fn slides(&self, layer: i32) -> Result<bool> {
        match self.layer_types.as_ref().map(|kinds| kinds[layer as usize].as_str()) {
            None => Ok(layer % *self.global_attn_every_n_layers != 0),
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            Some(kind) => {
                let reason = format!("`{kind}` is neither full_attention nor sliding_attention");
                Err(Error::unsupported(format!("layer_types[{layer}]"), reason))
            }
        }
    }

    /// The rotation of one kind of layers.
    fn rope(&self, slides: bool, dims: i32, context: i32) -> Result<Rope> {
        let nested = self.rope_parameters.as_ref();
        let (nested, base) = match slides {
            true => (nested.and_then(|n| n.sliding_attention.as_deref()), *self.local_rope_theta),
            false => (nested.and_then(|n| n.full_attention.as_deref()), *self.global_rope_theta),
        };
        let base = nested.and_then(|nested| nested.rope_theta).unwrap_or(base);
        Rope::scaled(dims, base, false, nested, Some(context))
    }
}

struct ModernBert {
    words: Embedding,
    norm: Norm,
    encoder: Encoder,
    final_norm: Norm,
    slides: Vec<bool>,
    reach: i32,
    longest: usize,
    width: i32,
}

fn encoder(checkpoint: &Checkpoint) -> Result<Box<dyn TextEncoder>> {
    let (c, kinds, _) = read(checkpoint.config)?;
    let w = checkpoint.weights;
    for head in ["head", "decoder", "qa_outputs"] {
        w.ignore(head);
    }
    let w = if w.has_below("model") { w.at("model") } else { w.clone() };
    let (width, inner, eps) = (*c.hidden_size, *c.intermediate_size, *c.norm_eps);
    let heads = equal_heads(*c.num_attention_heads, width)?;
    let activation = activation::named("hidden_activation", &c.hidden_activation)?;
    let head_dim = width / heads.heads;
    let rope = |slides| kinds.rope(slides, head_dim, *c.max_position_embeddings);
    let ropes = [rope(false)?, rope(true)?];
    let layer = |i: i32, w: &Scope| -> Result<Ffn> {
        let (a, mlp) = (w.at("attn"), w.at("mlp"));
        let [q, k, v] = a.fused("Wqkv", width, [width; 3])?;
        let rope = ropes[usize::from(kinds.slides(i)?)].clone();
        let projections = [q, k, v, a.linear("Wo", width, width)?];
        let attention = BidirectionalAttention::new(projections, heads, rope);
        let [gate, up] = mlp.fused("Wi", width, [inner; 2])?;
        let down = mlp.linear("Wo", inner, width)?;
        // The norm of the embeddings is that of the first layer.
        let attention = match i {
            0 => Residual::plain(attention),
            _ => Residual::pre(w.layer_norm("attn_norm", width, eps)?, attention),
        };
        let mlp = Mlp::new(gate, up, down, gated(activation));
        Ok(encoder::block(attention, Residual::pre(w.layer_norm("mlp_norm", width, eps)?, mlp)))
    };
    let tables = w.at("embeddings");
    Ok(Box::new(ModernBert {
        words: tables.embedding("tok_embeddings", *c.vocab_size, width)?,
        norm: tables.layer_norm("norm", width, eps)?,
        encoder: Encoder::read(&w.at("layers"), *c.num_hidden_layers, layer)?,
        final_norm: w.layer_norm("final_norm", width, eps)?,
        slides: (0..*c.num_hidden_layers).map(|i| kinds.slides(i)).collect::<Result<_>>()?,
        reach: *kinds.local_attention / 2,
        longest: *c.max_position_embeddings as usize,
        width,
    }))
}

impl TextEncoder for ModernBert {
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
        let steps = [batch.bidirectional(None)?, batch.bidirectional(Some(self.reach))?];
        let x = self.norm.forward(&self.words.lookup(&batch.ids)?)?;
        let step = |i: i32| &steps[usize::from(self.slides[i as usize])];
        self.final_norm.forward(&self.encoder.forward_by(&x, step)?)
    }
}

/// The first token or the mean of all, a projection, an activation, a norm, and the label.
fn classifier(checkpoint: &Checkpoint) -> Result<Classifier> {
    let (c, _, fields) = read(checkpoint.config)?;
    let (width, w) = (*c.hidden_size, checkpoint.weights);
    let head = w.at("head");
    let dense = head.linear("dense", width, width)?;
    let norm = head.layer_norm("norm", width, *c.norm_eps)?;
    let activation = activation::named("classifier_activation", &fields.classifier_activation)?;
    let label = label(w, "classifier", width)?;
    let is_mean = match fields.classifier_pooling.as_str() {
        "cls" => false,
        "mean" => true,
        other => {
            let reason = format!("`{other}` is neither cls nor mean");
            return Err(Error::unsupported("classifier_pooling", reason));
        }
    };
    Ok(Box::new(move |hidden: &Array, batch: &TextBatch| {
        let x = if is_mean { mean(hidden, batch)? } else { first(hidden)? };
        label.forward(&norm.forward(&activation(&dense.forward(&x)?)?)?)
    }))
}

/// The mean of the tokens of each row.
fn mean(hidden: &Array, batch: &TextBatch) -> Result<Array> {
    let tokens = batch.tokens(true)?.as_dtype(hidden.dtype())?.expand_dims(2)?;
    Ok(hidden.multiply(&tokens)?.sum_axis(1, false)?.divide(tokens.sum_axis(1, false)?)?)
}
