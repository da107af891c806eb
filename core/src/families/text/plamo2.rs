//! PLaMo 2: PLaMo 3 with a Mamba 2 mixer in every second layer that selects after the convolution and
//! normalises what it selects, and with norms of each query and key head. Follows `plamo2` of mlx-lm,
//! and its authors for the sliding window and for time steps without bounds.

use crate::families::prelude::*;
use crate::families::text::{phi3, plamo3};

pub const FAMILY: Family =
    Family { model_types: &["plamo2"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    attention_window_size: Size,
    full_attention_idx: Option<Vec<i32>>,
    mamba_d_state: Size,
    mamba_d_conv: Size,
    mamba_num_heads: Size,
    mamba_step: Size,
    mamba_enabled: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 13312,
            "num_attention_heads": 32, "num_key_value_heads": 4, "hidden_size_per_head": 128,
            "vocab_size": 32000, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
            "attention_window_size": 2048, "mamba_d_state": 64, "mamba_d_conv": 4,
            "mamba_num_heads": 64, "mamba_step": 2, "mamba_enabled": true,
        }),
    );
    let c = Text::read_renamed(config, &[("hidden_size_per_head", "head_dim")])?;
    let e: Config = config::read(config)?;
    if e.mamba_enabled && *e.mamba_step < 2 {
        return Err(Error::config("mamba_step", "1 leaves no layer to Mamba"));
    }
    let inner = config::product("mamba_num_heads", [*e.mamba_num_heads, c.head_dim()])?;
    let rope = Rope::of(&c)?;
    let norm = |w: &Scope| w.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?.plus_one();
    let layers = w.at("model.layers.layers");
    Ok(Box::new(Decoder::stack_under(w, &c, norm, |i, _| {
        let (w, m) = (layers.at(i), layers.at(i).at("mixer"));
        let ffn = phi3::mlp(&w.at("mlp"), &c)?;
        if e.is_recurrent(i, c.num_hidden_layers) {
            return plamo3::block(&w, &c, Mamba::read(&m, &c, &e, inner)?, ffn);
        }
        let head_norm = |name, heads| -> Result<Norm> {
            let weight = m.take(name, &[heads, c.head_dim()])?.expand_dims(1)?;
            Ok(Norm::RmsOfHeads { weight: m.keep(weight), eps: 1e-6 })
        };
        let (q, k) = (head_norm("q_weight", c.num_attention_heads)?, head_norm("k_weight", c.kv_heads())?);
        let is_full = e.full_attention_idx.as_ref().is_some_and(|full| full.contains(&i));
        // The window counts the tokens before a token.
        let window = (!is_full).then_some(*e.attention_window_size + 1);
        let attention = Attention::fused(&m, ["qkv_proj", "o_proj"], &c, rope.clone())?
            .window(window)
            .qk_norm(QkNorm::BeforeRope(q, k));
        plamo3::block(&w, &c, attention, ffn)
    })?))
}

impl Config {
    /// Whether a layer has a Mamba mixer: all but one of each group of layers, or all but the last.
    fn is_recurrent(&self, layer: i32, layers: i32) -> bool {
        let middle = *self.mamba_step / 2;
        let attends =
            if layers <= middle { layer == layers - 1 } else { layer % *self.mamba_step == middle };
        self.mamba_enabled && !attends
    }
}

/// A Mamba 2 mixer whose time steps, `B` and `C` come from what the convolution gives.
struct Mamba {
    input: Linear,
    conv: CausalConv,
    selection: Linear,
    /// Of `B`, `C` and the time steps.
    norms: [Norm; 3],
    time_step: Linear,
    ssd: Ssd,
    output: Linear,
    sizes: SsdSizes,
}

impl Mamba {
    fn read(w: &Scope, c: &Text, e: &Config, inner: i32) -> Result<Self> {
        let (heads, state) = (*e.mamba_num_heads, *e.mamba_d_state);
        let rank = (c.hidden_size / 16).max(64);
        let sizes = SsdSizes { heads, head_dim: c.head_dim(), groups: 1, state };
        let norm = |name, width| -> Result<Norm> {
            Ok(Norm::Rms { weight: Some(w.tensor(name, &[width])?), eps: c.rms_norm_eps })
        };
        Ok(Mamba {
            input: w.linear("in_proj", c.hidden_size, 2 * inner)?,
            conv: CausalConv::read(w, "conv1d", inner, *e.mamba_d_conv, false)?,
            selection: w.linear("bcdt_proj", inner, 2 * state + rank)?,
            norms: [
                norm("B_norm_weight", state)?,
                norm("C_norm_weight", state)?,
                norm("dt_norm_weight", rank)?,
            ],
            time_step: w.linear("dt_proj", rank, heads)?,
            ssd: Ssd::read(w, sizes, TimeStepLimit::NONE)?,
            output: w.linear("out_proj", inner, c.hidden_size)?,
            sizes,
        })
    }
}

impl Layer for Mamba {
    /// Of the convolution, and of the state space model.
    type State = (Recurrent, Recurrent);

    fn state(&self, _: &CachePlan) -> Self::State {
        Self::State::default()
    }

    fn forward(&self, x: &Array, (last, ssm): &mut Self::State, step: &Step) -> Result<Array> {
        let SsdSizes { heads, state, .. } = self.sizes;
        let (batch, length) = (x.dim(0), x.dim(1));
        let by_head = ops::unflatten(self.input.forward(x)?, -1, &[heads, -1])?;
        let parts = ops::split_equal(&by_head, 2, -1)?;
        let flat = |x: &Array| x.reshape(&[batch, length, -1]);
        let mixed = activation::silu(&self.conv.forward(&flat(&parts[1])?, last, step)?)?;
        let selected = self.selection.forward(&mixed)?;
        let selected = ops::split_at_indices(&selected, &[state, 2 * state], -1)?;
        let [b, c, dt] = [0, 1, 2].map(|i| self.norms[i].forward(&selected[i]));
        let inputs = SsdInputs {
            x: mixed.reshape(parts[1].shape())?,
            b: b?.expand_dims(2)?,
            c: c?.expand_dims(2)?,
            dt: self.time_step.forward(&dt?)?,
        };
        let y = flat(&self.ssd.scan(inputs, ssm, step)?)?;
        self.output.forward(&swiglu(&flat(&parts[0])?, &y)?)
    }
}
