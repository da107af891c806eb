//! Attention residuals: what a branch reads is a mixture, by a softmax over depth, of the sums that
//! earlier blocks of layers have left and of the sum of its own block. Follows `kimi_k3` of mlx-lm.

use crate::families::prelude::*;
use mlx_rs::fast;

/// What earlier blocks of layers have left in this pass, `[batch, length, width]` each.
#[derive(Clone, Default)]
struct BlockSums(Vec<Array>);

/// The mixture that one branch reads.
pub struct BlockMix {
    /// The query times the weights of the norm of the sums, `[width]`.
    query: Array,
    eps: f32,
}

impl BlockMix {
    pub fn read(w: &Scope, name: &str, c: &Text) -> Result<Self> {
        let width = c.hidden_size;
        let (proj, norm) = (w.at(format!("{name}_proj")), w.at(format!("{name}_norm")));
        let (query, weight) = if proj.has("weight") {
            (proj.take("weight", &[1, width])?, norm.take("weight", &[width])?)
        } else {
            let w = w.at(name);
            (w.take("proj_weight", &[1, width])?, w.take("norm_weight", &[width])?)
        };
        let query = query.as_dtype(Dtype::Float32)?.reshape(&[width])?;
        let query = w.keep(query.multiply(weight.as_dtype(Dtype::Float32)?)?);
        Ok(BlockMix { query, eps: c.rms_norm_eps })
    }

    fn mix(&self, BlockSums(before): &BlockSums, own: &Array) -> Result<Array> {
        if before.is_empty() {
            return Ok(own.clone());
        }
        let sums: Vec<&Array> = before.iter().chain([own]).collect();
        let sums = ops::stack(&sums, 0)?.as_dtype(Dtype::Float32)?;
        let scores = fast::rms_norm(&sums, Some(&self.query), self.eps)?.sum_axis(-1, true)?;
        let weights = ops::softmax_axis(&scores, 0, true)?;
        Ok(weights.multiply(sums)?.sum_axis(0, false)?.as_dtype(own.dtype())?)
    }
}

/// A block that adds its branches to the sum of its block of layers.
pub struct MixedBlock<M> {
    /// Whether the sum starts anew here.
    starts: bool,
    mixes: TwoNorms<BlockMix>,
    norms: TwoNorms<Norm>,
    mixer: M,
    ffn: Ffn,
}

impl<M: Layer> MixedBlock<M> {
    pub fn read(w: &Scope, c: &Text, starts: bool, mixer: M, ffn: Ffn) -> Result<Self> {
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        Ok(MixedBlock {
            starts,
            mixes: TwoNorms {
                before_mixer: BlockMix::read(w, "self_attention_res", c)?,
                before_ffn: BlockMix::read(w, "mlp_res", c)?,
            },
            norms: TwoNorms {
                before_mixer: norm(TWO_NORMS.before_mixer)?,
                before_ffn: norm(TWO_NORMS.before_ffn)?,
            },
            mixer,
            ffn,
        })
    }
}

impl<M: Layer> Layer for MixedBlock<M> {
    type State = M::State;

    fn state(&self, plan: &CachePlan) -> M::State {
        self.mixer.state(plan)
    }

    fn forward(&self, x: &Array, state: &mut M::State, step: &Step) -> Result<Array> {
        let mut sums = step.get::<BlockSums>().unwrap_or_default();
        let h = self.mixes.before_mixer.mix(&sums, x)?;
        let y = self.mixer.forward(&self.norms.before_mixer.forward(&h)?, state, step)?;
        let own = if self.starts {
            sums.0.push(x.clone());
            step.put(sums.clone());
            y
        } else {
            x.add(y)?
        };
        let h = self.mixes.before_ffn.mix(&sums, &own)?;
        Ok(own.add(self.ffn.forward(&self.norms.before_ffn.forward(&h)?, &mut (), step)?)?)
    }
}

/// The mixture that the norm after the last block reads.
pub struct LastMix(pub BlockMix);

impl Layer for LastMix {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        self.0.mix(&step.get().unwrap_or_default(), x)
    }
}
