//! The stack of blocks of a vision tower. Its layers have no state, so a block is a plain function of
//! `[batch, patches, width]`.

use crate::{
    checkpoint::scope::Scope,
    error::{Error, Result},
    layers::{
        algebra::Layer,
        attention::bidirectional::BidirectionalAttention,
        cache_plan::CachePlan,
        feed_forward::mlp::{Ffn, Mlp, PlainMlp, PlainNames, gated},
        position::rope::Rope,
        step::{Rotary, Step},
        vision::{config::VisionConfig, grid::Grid},
    },
};
use mlx_rs::Array;

/// `b(a(x))`, where neither has a state.
struct Then<A, B>(A, B);

impl<A: Layer<State = ()>, B: Layer<State = ()>> Layer for Then<A, B> {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        self.1.forward(&self.0.forward(x, &mut (), step)?, &mut (), step)
    }
}

/// A block: two layers without state, usually residual branches.
pub fn block(
    first: impl Layer<State = ()> + 'static,
    second: impl Layer<State = ()> + 'static,
) -> Ffn {
    Box::new(Then(first, second))
}

/// The blocks of a tower.
pub struct Encoder {
    blocks: Vec<Ffn>,
}

impl Encoder {
    /// Reads `count` blocks, which are numbered below `w`.
    ///
    /// # Errors
    /// Those of `block`.
    pub fn read(w: &Scope, count: i32, block: impl Fn(i32, &Scope) -> Result<Ffn>) -> Result<Self> {
        let blocks = (0..count).map(|i| block(i, &w.at(i))).collect::<Result<_>>()?;
        Ok(Encoder { blocks })
    }

    /// `[batch, patches, width]` after the last block.
    pub fn forward(&self, x: &Array, step: &Step) -> Result<Array> {
        self.forward_by(x, |_| step)
    }

    /// As [`Encoder::forward`], with a step for each block.
    pub fn forward_by<'s>(&self, x: &Array, step: impl Fn(i32) -> &'s Step) -> Result<Array> {
        let run = |x: Array, (i, block): (i32, &Ffn)| block.forward(&x, &mut (), step(i));
        (0..).zip(&self.blocks).try_fold(x.clone(), run)
    }

    /// The stream before the first block and after each, one more than there are blocks. What the
    /// caller drops is not computed.
    pub fn hidden_states(&self, x: &Array, step: &Step) -> Result<Vec<Array>> {
        let mut states = vec![x.clone()];
        for block in &self.blocks {
            let next = block.forward(&states[states.len() - 1], &mut (), step)?;
            states.push(next);
        }
        Ok(states)
    }
}

/// After how many of `blocks` blocks, which are numbered below `w`, features are taken that are those of a
/// `layer`: 0 is the stream before the first one, and negative numbers count from the end. Later blocks are
/// left unread. `field` gives the layer.
///
/// # Errors
/// [`Error::Config`] about the field when there is no such layer.
pub fn until(w: &Scope, field: &str, layer: i32, blocks: i32) -> Result<i32> {
    let taken = if layer < 0 { blocks.saturating_add(1).saturating_add(layer) } else { layer };
    if !(0..=blocks).contains(&taken) {
        let reason = format!("there is no {layer} in a tower of {blocks} blocks");
        return Err(Error::config(field, reason));
    }
    let later = (taken..blocks).map(|block| block.to_string());
    later.take_while(|block| w.has_below(block)).for_each(|block| w.ignore(&block));
    Ok(taken)
}

/// A step over all patches of a picture.
pub fn whole(x: &Array) -> Step {
    Step::prefill(0, x.dim(1))
}

/// A step over the patches of one frame with rotary positions by row and column, square by square of
/// `side` patches.
pub fn rotary(grid: Grid, side: i32) -> Step {
    let mut step = Step::prefill(0, grid.area());
    step.rotary = Some(Rotary::Each(grid.positions(side)));
    step
}

/// The names of the projections of attention.
#[derive(Clone, Copy)]
pub struct AttentionNames<'n> {
    /// Of queries.
    pub queries: &'n str,
    /// Of keys.
    pub keys: &'n str,
    /// Of values.
    pub values: &'n str,
    /// Back to the stream.
    pub output: &'n str,
}

impl<'n> AttentionNames<'n> {
    /// The usual names, with this one of the output.
    pub const fn with_output(output: &'n str) -> Self {
        AttentionNames { queries: "q_proj", keys: "k_proj", values: "v_proj", output }
    }
}

/// As [`attention`], with biases.
///
/// # Errors
/// As [`Scope::linear`].
pub fn biased_attention(
    w: &Scope,
    names: AttentionNames,
    c: &VisionConfig,
    rope: Rope,
) -> Result<BidirectionalAttention> {
    let AttentionNames { queries, keys, values, output } = names;
    [queries, keys, values, output].iter().try_for_each(|name| w.at(name).require("bias"))?;
    attention(w, names, c, rope)
}

/// Attention with projections of these names. Biases as stored.
///
/// # Errors
/// As [`Scope::linear`].
pub fn attention(
    w: &Scope,
    names: AttentionNames,
    c: &VisionConfig,
    rope: Rope,
) -> Result<BidirectionalAttention> {
    let AttentionNames { queries, keys, values, output } = names;
    let read = |name| w.linear(name, *c.hidden_size, *c.hidden_size);
    let projections = [read(queries)?, read(keys)?, read(values)?, read(output)?];
    Ok(BidirectionalAttention::new(projections, c.heads(), rope))
}

/// As [`fused_attention`], with biases.
///
/// # Errors
/// As [`Scope::linear`].
pub fn biased_fused_attention(
    w: &Scope,
    output: &str,
    c: &VisionConfig,
    rope: Rope,
) -> Result<BidirectionalAttention> {
    ["qkv", output].iter().try_for_each(|name| w.at(name).require("bias"))?;
    fused_attention(w, output, c, rope)
}

/// Attention whose queries, keys and values are one matrix `qkv`; `output` names the other. Biases as
/// stored.
///
/// # Errors
/// As [`Scope::linear`].
pub fn fused_attention(
    w: &Scope,
    output: &str,
    c: &VisionConfig,
    rope: Rope,
) -> Result<BidirectionalAttention> {
    let width = *c.hidden_size;
    let [q, k, v] = w.fused("qkv", width, [width; 3])?;
    Ok(BidirectionalAttention::new([q, k, v, w.linear(output, width, width)?], c.heads(), rope))
}

/// The usual names of the projections of a network without a gate.
pub const FC1_FC2: PlainNames = PlainNames { up: "fc1", down: "fc2" };

/// A feed-forward network without a gate, with biases.
///
/// # Errors
/// As [`Scope::linear`], and for an unknown activation.
pub fn plain_mlp(w: &Scope, names: PlainNames, c: &VisionConfig) -> Result<PlainMlp> {
    let (width, inner) = (*c.hidden_size, *c.intermediate_size);
    let up = w.linear_with_bias(names.up, width, inner)?;
    Ok(PlainMlp::new(up, w.linear_with_bias(names.down, inner, width)?, c.activation()?))
}

/// A gated feed-forward network with the usual names. Biases as stored.
///
/// # Errors
/// As [`Scope::linear`], and for an unknown activation.
pub fn gated_mlp(w: &Scope, c: &VisionConfig) -> Result<Mlp> {
    let (width, inner) = (*c.hidden_size, *c.intermediate_size);
    let (gate, up) = (w.linear("gate_proj", width, inner)?, w.linear("up_proj", width, inner)?);
    let down = w.linear("down_proj", inner, width)?;
    Ok(Mlp::new(gate, up, down, gated(c.activation()?)))
}
