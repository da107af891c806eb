//! The usual language model: an embedding, a stack of blocks, a norm, a head.

use crate::{
    checkpoint::{config::Text, scope::Scope},
    error::Result,
    layers::{
        algebra::{Block, Layer},
        cache_plan::CachePlan,
        embedded::Embedded,
        linear::{Embedding, Linear},
        norm::Norm,
        residual::Residual,
        step::Step,
    },
    mlx,
    models::{cache::Cache, language::LanguageModel},
};
use mlx_rs::{Array, ops};

/// What turns the last hidden state into logits.
pub struct Head {
    /// The projection; the token embedding when there is none.
    own: Option<Linear>,
    /// Logits are multiplied by this.
    scale: f32,
    /// Then they are divided by this.
    divisor: f32,
    /// Then they are squeezed into `(-softcap, softcap)`.
    softcap: Option<f32>,
}

impl Head {
    /// Reads `lm_head`, unless the embedding is the head. A config that does not say which leaves
    /// it to the checkpoint; a head beside a tied embedding is ignored.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(w: &Scope, tied: Option<bool>, width: i32, vocabulary: i32) -> Result<Self> {
        Self::named(w, "lm_head", tied, width, vocabulary)
    }

    /// As [`Head::read`], as the config says.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn of(w: &Scope, c: &Text) -> Result<Self> {
        Self::read(w, c.tie_word_embeddings, c.hidden_size, c.vocab_size)
    }

    /// As [`Head::read`], for checkpoints with another name for it.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn named(
        w: &Scope,
        name: &str,
        tied: Option<bool>,
        width: i32,
        vocabulary: i32,
    ) -> Result<Self> {
        let tied = tied.unwrap_or_else(|| !w.at(name).has("weight"));
        if tied {
            w.ignore(name);
        }
        let own = (!tied).then(|| w.linear(name, width, vocabulary)).transpose()?;
        Ok(Self::new(own))
    }

    /// A head that is already read; the token embedding when there is none.
    pub fn new(own: Option<Linear>) -> Self {
        Head { own, scale: 1.0, divisor: 1.0, softcap: None }
    }

    /// Multiplies the logits.
    pub fn scaled(self, scale: f32) -> Self {
        Head { scale, ..self }
    }

    /// Divides the logits: in half precision not the same as multiplying by the inverse.
    pub fn divided(self, divisor: f32) -> Self {
        Head { divisor, ..self }
    }

    /// Squeezes the logits into `(-softcap, softcap)`.
    pub fn softcap(self, softcap: Option<f32>) -> Self {
        Head { softcap, ..self }
    }

    /// Hidden states `[…, width]` to logits `[…, vocabulary]`.
    pub fn forward(&self, h: &Array, embedding: &Embedding) -> Result<Array> {
        let mut logits = match &self.own {
            Some(head) => head.forward(h)?,
            None => embedding.logits(h)?,
        };
        if self.scale != 1.0 {
            logits = logits.multiply(mlx::scalar(self.scale, logits.dtype())?)?;
        }
        if self.divisor != 1.0 {
            logits = logits.divide(mlx::scalar(self.divisor, logits.dtype())?)?;
        }
        let Some(softcap) = self.softcap else { return Ok(logits) };
        let cap = mlx::scalar(softcap, logits.dtype())?;
        Ok(ops::tanh(&logits.divide(&cap)?)?.multiply(cap)?)
    }
}

/// The names of the parts of a [`Decoder`].
#[derive(Clone, Copy)]
pub struct Names<'n> {
    /// The token table.
    pub embedding: &'n str,
    /// The blocks, which are numbered below it.
    pub layers: &'n str,
    /// The norm after the last block.
    pub norm: &'n str,
}

impl Default for Names<'_> {
    fn default() -> Self {
        Names { embedding: "embed_tokens", layers: "layers", norm: "norm" }
    }
}

/// What stands after the last block.
pub struct Ends {
    /// The norm.
    pub norm: Norm,
    /// The output head.
    pub head: Head,
}

/// A stack of blocks between an embedding and a head.
pub struct Decoder {
    /// The token table.
    pub embedding: Embedding,
    /// Factor of the embeddings.
    pub embedding_scale: Option<f32>,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// The norm after the last block.
    pub norm: Norm,
    /// The output head.
    pub head: Head,
    /// See [`LanguageModel::original_context`].
    pub original_context: Option<i32>,
}

impl Decoder {
    /// The usual names: `{embed_tokens, layers.N, norm}` in the [`body`], and `lm_head`.
    ///
    /// # Errors
    /// Those of `block` and of [`Scope::linear`].
    pub fn stack(
        w: &Scope,
        c: &Text,
        block: impl Fn(i32, &Scope) -> Result<Block>,
    ) -> Result<Self> {
        let norm = |body: &Scope| body.rms_norm("norm", c.hidden_size, c.rms_norm_eps);
        Self::stack_under(w, c, norm, block)
    }

    /// As [`Decoder::stack`], with another norm after the last block.
    ///
    /// # Errors
    /// As [`Decoder::stack`], and those of `norm`.
    pub fn stack_under(
        w: &Scope,
        c: &Text,
        norm: impl Fn(&Scope) -> Result<Norm>,
        block: impl Fn(i32, &Scope) -> Result<Block>,
    ) -> Result<Self> {
        let (body, head) = body(w);
        let head = Head::of(&head, c)?;
        Self::assemble(&body, Names::default(), c, Ends { norm: norm(&body)?, head }, block)
    }

    /// As [`Decoder::stack`], with other names, and a head that is read.
    ///
    /// # Errors
    /// Those of `block` and of [`Scope::linear`].
    pub fn named(
        body: &Scope,
        names: Names,
        c: &Text,
        head: Head,
        block: impl Fn(i32, &Scope) -> Result<Block>,
    ) -> Result<Self> {
        let norm = body.rms_norm(names.norm, c.hidden_size, c.rms_norm_eps)?;
        Self::assemble(body, names, c, Ends { norm, head }, block)
    }

    /// As [`Decoder::named`], with a norm that is read or needs no weights, whatever its name.
    ///
    /// # Errors
    /// As [`Decoder::named`].
    pub fn assemble(
        body: &Scope,
        names: Names,
        c: &Text,
        ends: Ends,
        block: impl Fn(i32, &Scope) -> Result<Block>,
    ) -> Result<Self> {
        let layers = body.at(names.layers);
        Ok(Decoder {
            embedding: body.embedding(names.embedding, c.vocab_size, c.hidden_size)?,
            embedding_scale: None,
            blocks: (0..c.num_hidden_layers)
                .map(|i| block(i, &layers.at(i)))
                .collect::<Result<_>>()?,
            norm: ends.norm,
            head: ends.head,
            original_context: c.original_context(),
        })
    }
}

impl LanguageModel for Decoder {
    fn vocabulary(&self) -> u32 {
        self.embedding.vocabulary()
    }

    fn cache(&self, plan: &CachePlan) -> Cache {
        Cache::new(self.blocks.iter().map(|block| block.state(plan)).collect(), plan)
    }

    fn embed(&self, ids: &Array) -> Result<Embedded> {
        let mut hidden = self.embedding.lookup(ids)?;
        if let Some(scale) = self.embedding_scale {
            hidden = hidden.multiply(mlx::scalar(scale, hidden.dtype())?)?;
        }
        Ok(Embedded::new(ids.clone(), hidden))
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        let mut h = x.hidden.clone();
        let mut added = x.deepstack.iter();
        for (block, state) in self.blocks.iter().zip(&mut cache.states) {
            h = block.forward(&h, &mut **state, step)?;
            if let Some(added) = added.next() {
                h = h.add(added)?;
            }
        }
        self.norm.forward(&h)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        self.head.forward(hidden, &self.embedding)
    }

    fn original_context(&self) -> Option<i32> {
        self.original_context
    }
}

/// Where the language model lies in a checkpoint, and where its head does. Exports of multimodal
/// models nest it in one of four ways.
pub fn body(w: &Scope) -> (Scope, Scope) {
    let nested = w.at("language_model");
    if nested.has_below("model") {
        (nested.at("model"), nested)
    } else if nested.has_below("layers") {
        (nested.clone(), nested)
    } else if w.has_below("model.language_model") {
        (w.at("model.language_model"), w.clone())
    } else if w.has_below("model.text_model") {
        (w.at("model.text_model"), w.clone())
    } else {
        (w.at("model"), w.clone())
    }
}

/// Leaves the parts of a multimodal model unread that have nothing to do with text, in both places
/// where exports have them.
pub fn ignore_parts(w: &Scope, parts: &[&str]) {
    for part in parts {
        w.ignore(part);
        w.at("model").ignore(part);
    }
}

/// Leaves the layers after the last unread: they predict further tokens, for drafting.
pub fn ignore_prediction_layers(w: &Scope, c: &Text) {
    let layers = body(w).0.at("layers");
    for layer in (c.num_hidden_layers..).take_while(|layer| layers.has_below(&layer.to_string())) {
        layers.ignore(&layer.to_string());
    }
}

/// The norms of a block before each of its branches, or their names.
#[derive(Clone, Copy)]
pub struct TwoNorms<N> {
    /// Before attention, or what stands in its place.
    pub before_mixer: N,
    /// Before the feed-forward network.
    pub before_ffn: N,
}

/// The usual names of two norms.
pub const TWO_NORMS: TwoNorms<&str> =
    TwoNorms { before_mixer: "input_layernorm", before_ffn: "post_attention_layernorm" };

/// The usual block: two residual branches with a norm before each.
///
/// # Errors
/// As [`Scope::tensor`].
pub fn pre_norm(
    w: &Scope,
    c: &Text,
    mixer: impl Layer + 'static,
    ffn: impl Layer + 'static,
) -> Result<Block> {
    pre_norm_named(w, TWO_NORMS, c, mixer, ffn)
}

/// As [`pre_norm`], with other names of the norms.
///
/// # Errors
/// As [`Scope::tensor`].
pub fn pre_norm_named(
    w: &Scope,
    names: TwoNorms<&str>,
    c: &Text,
    mixer: impl Layer + 'static,
    ffn: impl Layer + 'static,
) -> Result<Block> {
    pre_norm_under(|name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps), names, mixer, ffn)
}

/// As [`pre_norm_named`], with other norms, which `norm` reads.
///
/// # Errors
/// Those of `norm`.
pub fn pre_norm_under<'n>(
    norm: impl Fn(&'n str) -> Result<Norm>,
    names: TwoNorms<&'n str>,
    mixer: impl Layer + 'static,
    ffn: impl Layer + 'static,
) -> Result<Block> {
    Ok(Block::new((
        Residual::pre(norm(names.before_mixer)?, mixer),
        Residual::pre(norm(names.before_ffn)?, ffn),
    )))
}

/// The norms of a block before and after each of its branches, or their names.
#[derive(Clone, Copy)]
pub struct FourNorms<N> {
    /// Before attention, or what stands in its place.
    pub before_mixer: N,
    /// After it, before it is added to the stream.
    pub after_mixer: N,
    /// Before the feed-forward network.
    pub before_ffn: N,
    /// After it, before it is added to the stream.
    pub after_ffn: N,
}

/// The usual names of four norms.
pub const FOUR_NORMS: FourNorms<&str> = FourNorms {
    before_mixer: "input_layernorm",
    after_mixer: "post_attention_layernorm",
    before_ffn: "pre_feedforward_layernorm",
    after_ffn: "post_feedforward_layernorm",
};

/// Two residual branches with a norm before and after each, which `norm` reads.
///
/// # Errors
/// Those of `norm`.
pub fn sandwich<N, A: Layer, B: Layer>(
    norm: impl Fn(N) -> Result<Norm>,
    names: FourNorms<N>,
    mixer: A,
    ffn: B,
) -> Result<(Residual<A>, Residual<B>)> {
    Ok((
        Residual::sandwich(norm(names.before_mixer)?, mixer, norm(names.after_mixer)?),
        Residual::sandwich(norm(names.before_ffn)?, ffn, norm(names.after_ffn)?),
    ))
}
