//! Routers: which experts a token goes to, and with which weights.

use crate::layers::{feed_forward::activation::softplus, linear::Linear};
use crate::{
    checkpoint::config::{self, Json},
    error::{Error, Result},
    mlx,
};
use mlx_rs::{Array, Dtype, ops, ops::indexing::take_along_axis};
use serde::Deserialize;

/// Selects the experts of a token.
pub trait Router {
    /// Maps tokens `[…, width]` to the ids of their experts and to their weights, both `[…, k]`.
    fn route(&self, x: &Array) -> Result<(Array, Array)>;
}

/// A function is a router, so that a family can write its own.
impl<R: Fn(&Array) -> Result<(Array, Array)>> Router for R {
    fn route(&self, x: &Array) -> Result<(Array, Array)> {
        self(x)
    }
}

/// Selects the ids `[…, k]` of the largest scores `[…, experts]`, in no particular order.
pub type TopK = fn(&Array, i32) -> Result<Array>;

/// The usual [`TopK`], which takes the last of equal scores.
pub fn top_k(scores: &Array, k: i32) -> Result<Array> {
    let (count, axis) = (scores.dim(-1), scores.ndim() - 1);
    let sorted = ops::argpartition_axis(scores, count - k, -1)?;
    mlx::detach_indices(mlx::slice(&sorted, axis, count - k, count)?)
}

/// As [`top_k`], but takes the first of equal scores. Equal scores are frequent in half precision,
/// and the outputs equal those of a reference only if the same experts are selected.
pub fn first_top_k(scores: &Array, k: i32) -> Result<Array> {
    let sorted = ops::argpartition_axis(scores.negative()?, k - 1, -1)?;
    mlx::detach_indices(mlx::slice(&sorted, scores.ndim() - 1, 0, k)?)
}

/// Maps the logits `[…, experts]` of a router to ids and weights `[…, k]`. It is a plain function,
/// so that a family can write its own.
pub type Route = fn(&Array, i32, TopK) -> Result<(Array, Array)>;

/// Softmax over all experts, then top-k.
pub fn softmax_then_top_k(logits: &Array, k: i32, top_k: TopK) -> Result<(Array, Array)> {
    let probabilities = ops::softmax_axis(logits, -1, true)?;
    let ids = top_k(&probabilities, k)?;
    let weights = take_along_axis(&probabilities, &ids, -1)?;
    Ok((ids, weights))
}

/// As [`softmax_then_top_k`], with weights normalised to a sum of one.
pub fn softmax_then_top_k_normalized(
    logits: &Array,
    k: i32,
    top_k: TopK,
) -> Result<(Array, Array)> {
    let (ids, weights) = softmax_then_top_k(logits, k, top_k)?;
    let weights = weights.divide(weights.sum_axis(-1, true)?)?;
    Ok((ids, weights))
}

/// Top-k, then softmax over the selected logits.
pub fn top_k_then_softmax(logits: &Array, k: i32, top_k: TopK) -> Result<(Array, Array)> {
    let ids = top_k(logits, k)?;
    let weights = ops::softmax_axis(take_along_axis(logits, &ids, -1)?, -1, true)?;
    Ok((ids, weights))
}

/// A router that projects tokens to logits and selects by a function.
pub struct LinearRouter {
    logits: Linear,
    route: Route,
    k: i32,
    top_k: TopK,
}

impl LinearRouter {
    /// A router over `count` experts that selects `k` for each token.
    ///
    /// # Errors
    /// [`Error::Config`] when there are fewer experts than a token takes.
    pub fn new(logits: Linear, route: Route, count: i32, k: i32) -> Result<Self> {
        check_choice("num_experts_per_tok", count, k)?;
        Ok(LinearRouter { logits, route, k, top_k })
    }

    /// Sets the function that selects the largest scores.
    pub fn choosing(self, top_k: TopK) -> Self {
        LinearRouter { top_k, ..self }
    }
}

impl Router for LinearRouter {
    fn route(&self, x: &Array) -> Result<(Array, Array)> {
        (self.route)(&self.logits.forward(x)?, self.k, self.top_k)
    }
}

/// Checks that there are as many experts, `count`, as a token takes, `k`, which `field` says.
///
/// # Errors
/// [`Error::Config`] with the field.
pub fn check_choice(field: &str, count: i32, k: i32) -> Result<()> {
    if k <= count {
        return Ok(());
    }
    Err(Error::config(field, format!("{k} of {count} experts cannot be chosen")))
}

/// The config fields of a [`LossFreeRouter`], under their most common names.
#[derive(Clone, Deserialize)]
pub struct LossFreeRouting {
    /// The number of experts.
    #[serde(deserialize_with = "config::size")]
    pub n_routed_experts: i32,
    /// The number of experts of a token.
    #[serde(deserialize_with = "config::size")]
    pub num_experts_per_tok: i32,
    /// The number of groups of experts; 1 by default.
    #[serde(default, deserialize_with = "config::optional_size")]
    pub n_group: Option<i32>,
    /// The number of groups that the experts of a token come from; 1 by default.
    #[serde(default, deserialize_with = "config::optional_size")]
    pub topk_group: Option<i32>,
    /// Whether weights are normalised to a sum of one before they are scaled; a single weight is
    /// not.
    pub norm_topk_prob: bool,
    /// The factor of the weights.
    #[serde(deserialize_with = "config::positive")]
    pub routed_scaling_factor: f32,
}

/// A scoring function from logits to scores `[…, experts]`, both in float32.
impl LossFreeRouting {
    /// Reads the fields. Some may have other names: `(theirs, ours)`.
    ///
    /// # Errors
    /// As [`config::read`], with their names.
    pub fn read(config: &Json, names: &[(&str, &str)]) -> Result<Self> {
        config::read_renamed(config, names, config::read)
    }
}

type Score = Box<dyn Fn(&Array) -> Result<Array>>;

/// A router balanced without an auxiliary loss ([Wang et al.
/// 2024](https://arxiv.org/abs/2408.15664)): a correction bias influences which experts are
/// selected and not their weights. Experts come from the best groups, which score by the sum of
/// their two best experts. Computes in float32.
pub struct LossFreeRouter {
    logits: Linear,
    correction: Option<Array>,
    c: LossFreeRouting,
    normalize: bool,
    is_wide: bool,
    is_rounded: bool,
    /// The corrected scores outside the best groups.
    outside: f32,
    score: Score,
    top_k: TopK,
}

impl LossFreeRouter {
    /// Composes a projection to logits and the correction bias `[experts]` of their sigmoids.
    ///
    /// # Errors
    /// [`Error::Config`] when a token selects more experts or groups than there are, or when the
    /// groups would differ in size.
    pub fn new(logits: Linear, correction: Option<Array>, c: &LossFreeRouting) -> Result<Self> {
        let (count, groups) = (c.n_routed_experts, c.n_group.unwrap_or(1));
        check_choice("num_experts_per_tok", count, c.num_experts_per_tok)?;
        if groups > 1 {
            check_groups(count, groups, c.topk_group.unwrap_or(1))?;
            if count / groups < 2 {
                return Err(Error::config("n_group", format!("{groups} groups of one expert")));
            }
        }
        let normalize = c.norm_topk_prob && c.num_experts_per_tok > 1;
        let (c, score, top_k) = (c.clone(), Box::new(sigmoid), first_top_k);
        Ok(LossFreeRouter {
            logits,
            correction,
            c,
            normalize,
            is_wide: false,
            is_rounded: false,
            outside: 0.0,
            score,
            top_k,
        })
    }

    /// Computes the logits in float32 too.
    pub fn wide(self) -> Self {
        LossFreeRouter { is_wide: true, ..self }
    }

    /// Rounds the weights to the precision of the tokens.
    pub fn rounded(self) -> Self {
        LossFreeRouter { is_rounded: true, ..self }
    }

    /// Selects no expert outside the best groups, even where corrected scores are negative.
    pub fn strict(self) -> Self {
        LossFreeRouter { outside: f32::NEG_INFINITY, ..self }
    }

    /// Normalises the weights to a sum of one whatever the config says, even a single weight.
    pub fn normalized(self) -> Self {
        LossFreeRouter { normalize: true, ..self }
    }

    /// Sets the scoring function, from and to float32.
    pub fn scores(self, score: impl Fn(&Array) -> Result<Array> + 'static) -> Self {
        LossFreeRouter { score: Box::new(score), ..self }
    }

    /// Sets the function that selects the largest scores.
    pub fn choosing(self, top_k: TopK) -> Self {
        LossFreeRouter { top_k, ..self }
    }

    /// Replaces the scores `[…, experts]` outside the best groups.
    fn best_groups(&self, scores: Array) -> Result<Array> {
        let groups = self.c.n_group.unwrap_or(1);
        let dropped = groups - self.c.topk_group.unwrap_or(1);
        if groups == 1 || dropped == 0 {
            return Ok(scores);
        }
        let split = ops::unflatten(&scores, -1, &[groups, -1])?;
        let (axis, size) = (split.ndim() - 1, split.dim(-1));
        let best = mlx::slice(&ops::partition_axis(&split, size - 2, -1)?, axis, size - 2, size)?;
        let ids = ops::argpartition_axis(best.sum_axis(-1, true)?, dropped - 1, -2)?;
        let ids = mlx::detach_indices(mlx::slice(&ids, axis - 1, 0, dropped)?)?;
        let kept = split.put_along_axis(&ids, Array::from_f32(self.outside), -2)?;
        Ok(kept.flatten(-2, -1)?)
    }
}

impl Router for LossFreeRouter {
    fn route(&self, x: &Array) -> Result<(Array, Array)> {
        let wide = if self.is_wide { &x.as_dtype(Dtype::Float32)? } else { x };
        let scores = (self.score)(&self.logits.forward(wide)?.as_dtype(Dtype::Float32)?)?;
        let corrected = self.correction.as_ref().map_or(Ok(scores.clone()), |c| scores.add(c))?;
        let ids = (self.top_k)(&self.best_groups(corrected)?, self.c.num_experts_per_tok)?;
        let mut weights = take_along_axis(&scores, &ids, -1)?;
        if self.normalize {
            // The term changes no sum of scores, and avoids a division by zero.
            let sum = weights.sum_axis(-1, true)?.add(Array::from_f32(1e-20))?;
            weights = weights.divide(sum)?;
        }
        let weights = weights.multiply(Array::from_f32(self.c.routed_scaling_factor))?;
        Ok((ids, if self.is_rounded { weights.as_dtype(x.dtype())? } else { weights }))
    }
}

/// Independent scores: the sigmoid of each logit.
pub fn sigmoid(logits: &Array) -> Result<Array> {
    Ok(ops::sigmoid(logits)?)
}

/// The scoring function that a config field names.
///
/// # Errors
/// [`Error::Config`] or [`Error::Unsupported`] about the field.
pub fn score(config: &Json, field: &str) -> Result<fn(&Array) -> Result<Array>> {
    Ok(match config::field::<String>(config, field)?.as_str() {
        "sigmoid" => sigmoid,
        "softmax" => softmax,
        "sqrtsoftplus" => |logits| Ok(softplus(logits)?.sqrt()?),
        name => return Err(Error::unsupported(field, format!("`{name}` is not supported"))),
    })
}

/// Checks that `count` experts make equal groups, of which a token takes no more than there are.
///
/// # Errors
/// [`Error::Config`] about `n_group` or `topk_group`.
pub fn check_groups(count: i32, groups: i32, taken: i32) -> Result<()> {
    if count % groups != 0 {
        let reason = format!("{count} experts are not {groups} equal groups");
        return Err(Error::config("n_group", reason));
    }
    if taken > groups {
        return Err(Error::config("topk_group", format!("there are only {groups} groups")));
    }
    Ok(())
}

/// Scores that sum to one: the softmax of the logits.
pub fn softmax(logits: &Array) -> Result<Array> {
    Ok(ops::softmax_axis(logits, -1, None)?)
}
