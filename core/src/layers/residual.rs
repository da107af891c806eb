//! Residual branches.

use crate::{
    error::Result,
    layers::{algebra::Layer, cache_plan::CachePlan, norm::Norm, step::Step},
    mlx,
};
use mlx_rs::Array;

/// How a branch joins the residual stream.
pub type Join = fn(&Array, &Array) -> Result<Array>;

/// `x + y`.
fn sum(x: &Array, y: &Array) -> Result<Array> {
    Ok(x.add(y)?)
}

/// `x + scale · post(inner(pre(x)))`.
pub struct Residual<L> {
    pre: Option<Norm>,
    inner: L,
    post: Option<Norm>,
    scale: f32,
    join: Join,
}

impl<L: Layer> Residual<L> {
    /// `x + inner(x)`.
    pub fn plain(inner: L) -> Self {
        Residual { pre: None, inner, post: None, scale: 1.0, join: sum }
    }

    /// `x + inner(norm(x))`.
    pub fn pre(norm: Norm, inner: L) -> Self {
        Residual { pre: Some(norm), inner, post: None, scale: 1.0, join: sum }
    }

    /// `x + norm(inner(x))`.
    pub fn post(inner: L, norm: Norm) -> Self {
        Residual { pre: None, inner, post: Some(norm), scale: 1.0, join: sum }
    }

    /// `x + post(inner(pre(x)))`.
    pub fn sandwich(pre: Norm, inner: L, post: Norm) -> Self {
        Residual { pre: Some(pre), inner, post: Some(post), scale: 1.0, join: sum }
    }

    /// Multiplies the branch before it joins the stream.
    pub fn scaled(self, scale: f32) -> Self {
        Residual { scale, ..self }
    }

    /// Joins the stream in another way than by a plain sum.
    pub fn joined_by(self, join: Join) -> Self {
        Residual { join, ..self }
    }
}

impl<L: Layer> Layer for Residual<L> {
    type State = L::State;
    fn state(&self, plan: &CachePlan) -> L::State {
        self.inner.state(plan)
    }
    fn forward(&self, x: &Array, state: &mut L::State, step: &Step) -> Result<Array> {
        let mut y = match &self.pre {
            Some(norm) => self.inner.forward(&norm.forward(x)?, state, step)?,
            None => self.inner.forward(x, state, step)?,
        };
        if let Some(norm) = &self.post {
            y = norm.forward(&y)?;
        }
        if self.scale != 1.0 {
            y = y.multiply(mlx::scalar(self.scale, y.dtype())?)?;
        }
        (self.join)(x, &y)
    }
}

/// `norm(x + inner(x))`: a residual branch of an encoder that normalises the stream itself.
pub struct PostNorm<L> {
    inner: L,
    norm: Norm,
}

impl<L> PostNorm<L> {
    /// Composes the branch and the norm.
    pub fn new(inner: L, norm: Norm) -> Self {
        PostNorm { inner, norm }
    }
}

impl<L: Layer> Layer for PostNorm<L> {
    type State = L::State;
    fn state(&self, plan: &CachePlan) -> L::State {
        self.inner.state(plan)
    }
    fn forward(&self, x: &Array, state: &mut L::State, step: &Step) -> Result<Array> {
        self.norm.forward(&x.add(self.inner.forward(x, state, step)?)?)
    }
}
