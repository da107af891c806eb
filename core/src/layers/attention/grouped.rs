//! Grouped-query attention ([Ainslie et al. 2023](https://arxiv.org/abs/2305.13245)): the mixer of
//! most families.

use crate::layers::{
    attention::{kv_cache::KvCache, scores::Scores},
    linear::Linear,
    norm::Norm,
    position::rope::Rope,
};
use crate::{
    checkpoint::{config::Text, scope::Scope},
    error::Result,
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
    mlx,
};
use mlx_rs::{Array, Dtype, ops};

/// The names of the projections in most checkpoints.
pub const QKVO: [&str; 4] = ["q_proj", "k_proj", "v_proj", "o_proj"];

/// Where queries and keys are normalised, each by its own norm.
pub enum QkNorm {
    /// Nowhere.
    None,
    /// Each head, before it is rotated.
    BeforeRope(Norm, Norm),
    /// Each head, after it is rotated.
    AfterRope(Norm, Norm),
    /// All heads at once.
    Whole(Norm, Norm),
}

impl QkNorm {
    /// RMS norms of each head, before it is rotated.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn before_rope(w: &Scope, names: [&str; 2], c: &Text) -> Result<Self> {
        let [q, k] = names.map(|name| w.rms_norm(name, c.head_dim(), c.rms_norm_eps));
        Ok(QkNorm::BeforeRope(q?, k?))
    }

    /// The norms of queries and of keys, wherever they are.
    pub(super) fn parts(&self) -> [Option<&Norm>; 2] {
        match self {
            QkNorm::None => [None, None],
            QkNorm::BeforeRope(q, k) | QkNorm::AfterRope(q, k) | QkNorm::Whole(q, k) => {
                [Some(q), Some(k)]
            }
        }
    }
}

/// A change of queries `[batch, heads, length, head_dim]` before they attend.
pub type ChangeQueries = Box<dyn Fn(Array, &Step) -> Result<Array>>;

/// Causal attention over all tokens before, or over a sliding window.
pub struct Attention {
    projections: [Linear; 4],
    qk_norm: QkNorm,
    rope: Rope,
    change_queries: Option<ChangeQueries>,
    /// The scale of the scores, and attention sinks.
    pub scores: Scores,
    window: Option<i32>,
    precision: fn(Dtype) -> Dtype,
    bound: Option<f32>,
    heads: i32,
    kv_heads: i32,
}

impl Attention {
    /// Reads the four projections; those of queries, keys and values must have biases where the
    /// config asks for them, and so must the output's.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(w: &Scope, names: [&str; 4], c: &Text, rope: Rope) -> Result<Self> {
        Ok(Self::new(projections(w, names, c)?, c, rope))
    }

    /// Reads queries, keys and values from one matrix, in this order, and the output; with biases if
    /// there are some.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn fused(w: &Scope, names: [&str; 2], c: &Text, rope: Rope) -> Result<Self> {
        Self::fused_by_group(w, names, 1, c, rope)
    }

    /// As [`Attention::fused`], where that order repeats for each of `groups` of heads.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn fused_by_group(
        w: &Scope,
        [qkv, output]: [&str; 2],
        groups: i32,
        c: &Text,
        rope: Rope,
    ) -> Result<Self> {
        let [queries, keys] = c.qk_widths();
        let parts = [queries / groups, keys / groups, keys / groups];
        let [q, k, v] = w.fused_by_group(qkv, c.hidden_size, groups, parts)?;
        Ok(Self::new([q, k, v, w.linear(output, queries, c.hidden_size)?], c, rope))
    }

    /// Composes the projections of queries, keys, values and the output, for checkpoints that store
    /// them in another way.
    pub fn new(projections: [Linear; 4], c: &Text, rope: Rope) -> Self {
        Attention {
            projections,
            qk_norm: QkNorm::None,
            rope,
            change_queries: None,
            scores: Scores { scale: (c.head_dim() as f32).powf(-0.5), sinks: None },
            window: None,
            precision: |own| own,
            bound: None,
            heads: c.num_attention_heads,
            kv_heads: c.kv_heads(),
        }
    }

    /// Normalises queries and keys.
    pub fn qk_norm(self, qk_norm: QkNorm) -> Self {
        Attention { qk_norm, ..self }
    }

    /// Changes queries once they are normalised and rotated.
    pub fn queries(self, change: impl Fn(Array, &Step) -> Result<Array> + 'static) -> Self {
        Attention { change_queries: Some(Box::new(change)), ..self }
    }

    /// Attends over a sliding window of this size, the token itself included.
    pub fn window(self, window: Option<i32>) -> Self {
        Attention { window, ..self }
    }

    /// Multiplies scores by another factor than `head_dim^(-1/2)`.
    pub fn scale(self, scale: f32) -> Self {
        Attention { scores: Scores { scale, ..self.scores }, ..self }
    }

    /// Adds attention sinks, one logit a head, to the softmax.
    pub fn sinks(self, sinks: Option<Array>) -> Self {
        Attention { scores: Scores { sinks, ..self.scores }, ..self }
    }

    /// Replaces the scale `head_dim^(-1/2)` and the attention sinks.
    pub fn scores(self, scores: Scores) -> Self {
        Attention { scores, ..self }
    }

    /// Attends in another precision than that of the queries.
    pub fn precision(self, precision: fn(Dtype) -> Dtype) -> Self {
        Attention { precision, ..self }
    }

    /// Cuts queries, keys and values to `-bound..bound` before heads are told apart.
    pub fn clip_qkv(self, bound: Option<f32>) -> Self {
        Attention { bound, ..self }
    }

    fn cut(&self, x: Array) -> Result<Array> {
        let Some(bound) = self.bound else { return Ok(x) };
        let constant = |value| mlx::scalar(value, x.dtype());
        Ok(ops::clip(&x, (constant(-bound)?, constant(bound)?))?)
    }

    /// Queries, keys and values of all heads, `[batch, heads, length, head_dim]`, for families that
    /// attend in a way of their own.
    pub fn heads(&self, x: &Array, step: &Step) -> Result<[Array; 3]> {
        let [q, k, v, _] = &self.projections;
        let (mut q, mut k) = (q.forward(x)?, k.forward(x)?);
        if let QkNorm::Whole(q_norm, k_norm) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        (q, k) =
            (split_heads(&self.cut(q)?, self.heads)?, split_heads(&self.cut(k)?, self.kv_heads)?);
        if let QkNorm::BeforeRope(q_norm, k_norm) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        (q, k) = (self.rope.forward(&q, step)?, self.rope.forward(&k, step)?);
        if let QkNorm::AfterRope(q_norm, k_norm) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        if let Some(change) = &self.change_queries {
            q = change(q, step)?;
        }
        let v = split_heads(&self.cut(v.forward(x)?)?, self.kv_heads)?;
        Ok([q, k, v])
    }

    /// The concatenated outputs of all heads, `[batch, length, heads · head_dim]`, for families that
    /// change them before [`Attention::project`].
    pub fn gather(&self, x: &Array, kv: &mut KvCache, step: &Step) -> Result<Array> {
        self.attend(self.heads(x, step)?, kv, step)
    }

    /// As [`Attention::gather`], from the queries, keys and values of [`Attention::heads`], which a
    /// family may have changed.
    pub fn attend(&self, [q, k, v]: [Array; 3], kv: &mut KvCache, step: &Step) -> Result<Array> {
        let (own, precision) = (v.dtype(), (self.precision)(q.dtype()));
        if precision == q.dtype() {
            return join_heads(&kv.attend(&q, k, v, &self.scores, step)?);
        }
        let q = q.as_dtype(precision)?;
        join_heads(&kv.attend(&q, k, v, &self.scores, step)?.as_dtype(own)?)
    }

    /// Runs another forward pass, for families that change the visible keys or the outputs of heads.
    pub fn run_by<F>(self, run: F) -> impl Layer<State = KvCache>
    where
        F: Fn(&Attention, &Array, &mut KvCache, &Step) -> Result<Array>,
    {
        Mixer {
            window: self.window,
            run: move |x: &Array, kv: &mut KvCache, step: &Step| run(&self, x, kv, step),
        }
    }

    /// The projection of the output.
    pub fn project(&self, gathered: &Array) -> Result<Array> {
        let [_, _, _, output] = &self.projections;
        output.forward(gathered)
    }
}

/// An error unless these projections have biases, where the config asks for them.
///
/// # Errors
/// [`crate::error::Error`].
pub fn require_biases(w: &Scope, names: [&str; 2], c: &Text) -> Result<()> {
    if *c.attention_bias {
        names.iter().try_for_each(|name| w.at(name).require("bias"))
    } else {
        Ok(())
    }
}

/// Reads the projections of queries, keys, values and the output; all must have biases where the
/// config asks for them.
///
/// # Errors
/// As [`Scope::linear`].
pub fn projections(w: &Scope, names: [&str; 4], c: &Text) -> Result<[Linear; 4]> {
    let read = if *c.attention_bias { Scope::linear_with_bias } else { Scope::linear };
    let (width, head_dim) = (c.hidden_size, c.head_dim());
    let (heads, kv_heads) = (c.num_attention_heads, c.kv_heads());
    let [q, k, v, output] = names;
    Ok([
        read(w, q, width, heads * head_dim)?,
        read(w, k, width, kv_heads * head_dim)?,
        read(w, v, width, kv_heads * head_dim)?,
        read(w, output, heads * head_dim, width)?,
    ])
}

impl Layer for Attention {
    type State = KvCache;

    fn state(&self, plan: &CachePlan) -> KvCache {
        KvCache::new(self.window, plan)
    }

    fn forward(&self, x: &Array, kv: &mut KvCache, step: &Step) -> Result<Array> {
        self.project(&self.gather(x, kv, step)?)
    }
}

/// Attention of a family's own: a function of the residual stream, of its KV cache and of the step.
pub struct Mixer<F> {
    /// The size of the sliding window, the token itself included.
    pub window: Option<i32>,
    /// The forward pass.
    pub run: F,
}

impl<F: Fn(&Array, &mut KvCache, &Step) -> Result<Array>> Layer for Mixer<F> {
    type State = KvCache;

    fn state(&self, plan: &CachePlan) -> KvCache {
        KvCache::new(self.window, plan)
    }

    fn forward(&self, x: &Array, kv: &mut KvCache, step: &Step) -> Result<Array> {
        (self.run)(x, kv, step)
    }
}

/// `[batch, length, heads · head_dim]` to `[batch, heads, length, head_dim]`.
pub fn split_heads(x: &Array, heads: i32) -> Result<Array> {
    let (batch, length) = (x.dim(0), x.dim(1));
    if length == 1 {
        return Ok(x.reshape(&[batch, heads, 1, -1])?);
    }
    Ok(x.reshape(&[batch, length, heads, -1])?.swap_axes(1, 2)?)
}

/// `[batch, heads, length, head_dim]` to `[batch, length, heads · head_dim]`.
pub fn join_heads(x: &Array) -> Result<Array> {
    let (batch, length) = (x.dim(0), x.dim(2));
    if length == 1 {
        return Ok(x.reshape(&[batch, 1, -1])?);
    }
    Ok(x.swap_axes(1, 2)?.reshape(&[batch, length, -1])?)
}
