//! RWKV-7 (Goose): no attention; each block mixes a token with the one before it, runs WKV 7 over heads,
//! and has a feed-forward network that sees the token before too. Values are drawn towards those of the
//! first layer. Follows `rwkv7` of mlx-lm, and the authors for the epsilon of the norm of heads.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["rwkv7"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    head_dim: Size,
    a_low_rank_dim: Size,
    v_low_rank_dim: Size,
    gate_low_rank_dim: Size,
    decay_low_rank_dim: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let e: Config = config::read(config)?;
    let elsewhere = ["num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps"];
    let own = config::without(config, &elsewhere);
    let own = config::with_defaults(&own, json!({"num_attention_heads": 1}));
    let c = Text::read_renamed(&own, &[("norm_eps", "rms_norm_eps")])?;
    if c.hidden_size % *e.head_dim != 0 {
        return Err(Error::config("head_dim", format!("does not divide {}", c.hidden_size)));
    }
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    let body = w.at("model");
    let ends = Ends { norm: norm(&body, "norm")?, head: Head::of(w, &c)? };
    let names = Names { embedding: "embeddings", ..Names::default() };
    Ok(Box::new(Decoder::assemble(&body, names, &c, ends, |i, w| {
        let branches = (
            Residual::pre(norm(w, "attn_norm")?, TimeMix::read(&w.at("attn"), &c, &e, i == 0)?),
            Residual::pre(norm(w, "ffn_norm")?, ChannelMix::read(&w.at("ffn"), &c)?),
        );
        if i == 0 {
            return Ok(Block::new((norm(w, "pre_norm")?, branches)));
        }
        Ok(Block::new(branches))
    })?))
}

/// The difference of the token before each token from it.
fn to_token_before(x: &Array, last: &mut Recurrent, step: &Step) -> Result<Array> {
    Ok(mlx::slice(&last.after_last(x, 1, step)?, 1, 0, x.dim(1))?.subtract(x)?)
}

/// Reads factors `[heads, head_dim]`, which published files store without an axis of heads.
fn factors(w: &Scope, name: &str, by_head: &[i32]) -> Result<Array> {
    let flat = [by_head.iter().product()];
    match w.shape(name) {
        Some(shape) if shape == flat => Ok(w.keep(w.take(name, &flat)?.reshape(by_head)?)),
        _ => w.tensor(name, by_head),
    }
}

/// A feed-forward network with squared ReLU over a token and a share of the one before it.
struct ChannelMix {
    share: Array,
    key: Linear,
    value: Linear,
}

impl ChannelMix {
    fn read(w: &Scope, c: &Text) -> Result<Self> {
        Ok(ChannelMix {
            share: w.tensor("x_k", &[c.hidden_size])?,
            key: w.linear("key", c.hidden_size, c.intermediate_size)?,
            value: w.linear("value", c.intermediate_size, c.hidden_size)?,
        })
    }
}

impl Layer for ChannelMix {
    type State = Recurrent;

    fn state(&self, _: &CachePlan) -> Recurrent {
        Recurrent::default()
    }

    fn forward(&self, x: &Array, last: &mut Recurrent, step: &Step) -> Result<Array> {
        let mixed = x.add(to_token_before(x, last, step)?.multiply(&self.share)?)?;
        self.value.forward(&relu_squared(&self.key.forward(&mixed)?)?)
    }
}

/// `up(activation(down(x)))` over a narrow stream.
struct LowRank {
    down: Linear,
    activation: activation::Activation,
    up: Linear,
}

impl LowRank {
    fn read(w: &Scope, width: i32, rank: Size, activation: activation::Activation) -> Result<Self> {
        let w = w.at("lora");
        let (down, up) = (w.linear("0", width, *rank)?, w.linear("2", *rank, width)?);
        Ok(LowRank { down, activation, up })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        self.up.forward(&(self.activation)(&self.down.forward(x)?)?)
    }
}

/// The values of the first layer, `[batch, length, heads, head_dim]`.
#[derive(Clone)]
struct FirstValues(Array);

/// WKV 7 with all that it is gated by.
struct TimeMix {
    /// The shares of the token before in what receptances, decays, keys, values, rates and gates see.
    shares: [Array; 6],
    /// To receptances, keys and values, and of the output.
    projections: [Linear; 4],
    decay: LowRank,
    /// How far values are drawn towards those of the first layer, which has none.
    value_mix: Option<LowRank>,
    /// The rate at which a token learns in context.
    rate: LowRank,
    gate: LowRank,
    removal_scale: Array,
    key_rate: Array,
    bonus: Array,
    norm: Norm,
    norm_factors: [Array; 2],
    head_dim: i32,
}

impl TimeMix {
    fn read(w: &Scope, c: &Text, e: &Config, is_first: bool) -> Result<Self> {
        let (width, head_dim) = (c.hidden_size, *e.head_dim);
        let by_head = [width / head_dim, head_dim];
        let share = |name| w.tensor(name, &[1, 1, width]);
        let linear = |name| w.linear(name, width, width);
        let low_rank = |name: &str, rank, activation| {
            w.at(name).at("lora.2").require("bias")?;
            LowRank::read(&w.at(name), width, rank, activation)
        };
        let value_mix = || low_rank("v_lora", e.v_low_rank_dim, |x| Ok(x.clone()));
        let norm = w.at("g_norm");
        Ok(TimeMix {
            shares: [
                share("x_r")?,
                share("x_w")?,
                share("x_k")?,
                share("x_v")?,
                share("x_a")?,
                share("x_g")?,
            ],
            projections: [
                linear("r_proj")?,
                linear("k_proj")?,
                linear("v_proj")?,
                linear("o_proj")?,
            ],
            decay: low_rank("w_lora", e.decay_low_rank_dim, |x| Ok(ops::tanh(x)?))?,
            value_mix: (!is_first).then(value_mix).transpose()?,
            rate: low_rank("a_lora", e.a_low_rank_dim, |x| Ok(x.clone()))?,
            gate: LowRank::read(&w.at("g_lora"), width, e.gate_low_rank_dim, |x| {
                Ok(ops::sigmoid(x)?)
            })?,
            removal_scale: factors(w, "k_k", &by_head)?,
            key_rate: factors(w, "k_a", &by_head)?,
            bonus: w.tensor("r_k", &by_head)?,
            norm: Norm::Layer { weight: None, bias: None, eps: head_dim as f32 * c.rms_norm_eps },
            norm_factors: [factors(&norm, "weight", &by_head)?, factors(&norm, "bias", &by_head)?],
            head_dim,
        })
    }

    /// Values, drawn towards those of the first layer by what `x` says.
    fn values(&self, x: &Array, values: Array, step: &Step) -> Result<Array> {
        let Some(mix) = &self.value_mix else {
            step.put(FirstValues(values.clone()));
            return Ok(values);
        };
        let FirstValues(first) = step.lent(0)?;
        let mix = ops::sigmoid(&mix.forward(x)?)?.reshape(values.shape())?;
        Ok(values.add(first.subtract(&values)?.multiply(mix)?)?)
    }
}

/// The decay `exp(-exp(-1/2) · sigmoid(x))`, in float32.
fn decay(x: &Array) -> Result<Array> {
    let open = ops::sigmoid(&x.as_dtype(Dtype::Float32)?)?;
    Ok(open.multiply(Array::from_f32(-(-0.5_f32).exp()))?.exp()?)
}

/// Each head divided by its length.
fn unit(x: &Array) -> Result<Array> {
    let length = x.square()?.sum_axis(-1, true)?.sqrt()?;
    Ok(x.divide(ops::maximum(&length, mlx::scalar(1e-7, x.dtype())?)?)?)
}

impl Layer for TimeMix {
    /// Of the token before, and of WKV 7.
    type State = (Recurrent, Recurrent);

    fn state(&self, _: &CachePlan) -> Self::State {
        Self::State::default()
    }

    fn forward(&self, x: &Array, (last, wkv): &mut Self::State, step: &Step) -> Result<Array> {
        let [receptance, key, value, output] = &self.projections;
        let before = to_token_before(x, last, step)?;
        let mixed = |i: usize| -> Result<Array> { Ok(x.add(before.multiply(&self.shares[i])?)?) };
        let heads =
            |x: Array| x.reshape(&[x.dim(0), x.dim(1), x.dim(2) / self.head_dim, self.head_dim]);
        let one = mlx::scalar(1.0, x.dtype())?;

        let receptance = heads(receptance.forward(&mixed(0)?)?)?;
        let decay = heads(decay(&self.decay.forward(&mixed(1)?)?)?)?;
        let (key, for_values) = (heads(key.forward(&mixed(2)?)?)?, mixed(3)?);
        let value = self.values(&for_values, heads(value.forward(&for_values)?)?, step)?;
        let rate = heads(ops::sigmoid(&self.rate.forward(&mixed(4)?)?)?)?;
        let gate = self.gate.forward(&mixed(5)?)?;

        let removal = unit(&key.multiply(&self.removal_scale)?)?;
        let slowed = rate.subtract(&one)?.multiply(&self.key_rate)?.add(one)?;
        let key = key.multiply(slowed)?;
        let bonus = receptance.multiply(&key)?.multiply(&self.bonus)?.sum_axis(-1, true)?;
        let bonus = bonus.multiply(&value)?;
        let replacement = removal.multiply(rate)?;
        let removal = removal.negative()?;
        let inputs = Wkv7Inputs { receptance, decay, key, value, removal, replacement };
        let y = wkv7(&inputs.of_heads()?, wkv, step)?.swap_axes(1, 2)?.as_dtype(x.dtype())?;
        let [weight, bias] = &self.norm_factors;
        let y = self.norm.forward(&y)?.multiply(weight)?.add(bias)?.add(bonus)?;
        output.forward(&y.reshape(x.shape())?.multiply(gate)?)
    }
}
