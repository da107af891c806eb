//! MiniMax Text 01: Mixtral in which most layers have lightning attention, and whose branches join the
//! normalised stream. Follows `minimax` of transformers.

use crate::families::prelude::*;
use crate::families::text::mixtral;

/// The epsilon of the norm of lightning attention, which no config says.
const EPS: f32 = 1e-6;

#[derive(Deserialize)]
struct Config {
    full_attn_alpha_factor: Factor,
    full_attn_beta_factor: Factor,
    linear_attn_alpha_factor: Factor,
    linear_attn_beta_factor: Factor,
    mlp_alpha_factor: Factor,
    mlp_beta_factor: Factor,
}

/// A factor of the stream or of a branch.
#[derive(Clone, Copy, Deserialize)]
struct Factor(f32);

/// Whether a config is one of this family.
pub(super) fn is_described_by(config: &Json) -> bool {
    config.get("linear_attn_alpha_factor").is_some()
}

pub(super) fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
            "rms_norm_eps": 1e-5, "rope_theta": 1e6,
            "full_attn_alpha_factor": 1, "full_attn_beta_factor": 1, "linear_attn_alpha_factor": 1,
            "linear_attn_beta_factor": 1, "mlp_alpha_factor": 1, "mlp_beta_factor": 1,
        }),
    );
    let known = [LayerKind::Attention, LayerKind::Recurrence];
    let kinds = LayerKind::of_config(config, &["layer_types"], &known)?;
    let config = &config::without(config, &["layer_types"]);
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    config::check_entries("layer_types", kinds.as_ref(), c.num_hidden_layers)?;
    let kinds = kinds.unwrap_or_else(|| vec![known[0], known[1]]);
    let act = activation::named("hidden_act", c.hidden_act.as_deref().unwrap_or("silu"))?;
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        let (a, moe) = (w.at("self_attn"), w.at("block_sparse_moe"));
        let (before_mixer, before_ffn) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
        let ffn = Normed {
            norm: before_ffn,
            inner: mixtral::feed_forward(&moe, &c, config)?,
            factors: [e.mlp_alpha_factor, e.mlp_beta_factor],
        };
        Ok(match kinds[i as usize % kinds.len()] {
            LayerKind::Recurrence => {
                let inner = Lightning::read(&a, &c, act, i)?;
                let factors = [e.linear_attn_alpha_factor, e.linear_attn_beta_factor];
                Block::new((Normed { norm: before_mixer, inner, factors }, ffn))
            }
            _ => {
                let inner = Attention::read(&a, QKVO, &c, rope.clone())?.window(*c.sliding_window);
                let factors = [e.full_attn_alpha_factor, e.full_attn_beta_factor];
                Block::new((Normed { norm: before_mixer, inner, factors }, ffn))
            }
        })
    })?))
}

/// `alpha · norm(x) + beta · inner(norm(x))`.
struct Normed<L> {
    norm: Norm,
    inner: L,
    factors: [Factor; 2],
}

impl<L: Layer> Layer for Normed<L> {
    type State = L::State;

    fn state(&self, plan: &CachePlan) -> L::State {
        self.inner.state(plan)
    }

    fn forward(&self, x: &Array, state: &mut L::State, step: &Step) -> Result<Array> {
        let x = self.norm.forward(x)?;
        let y = self.inner.forward(&x, state, step)?;
        let [alpha, beta] = self.factors.map(|Factor(value)| mlx::scalar(value, x.dtype()));
        Ok(x.multiply(alpha?)?.add(y.multiply(beta?)?)?)
    }
}

/// Lightning attention without positions, with a norm over all heads and a gate after it.
struct Lightning {
    /// The widths of each head's query, key and value stand next to each other.
    qkv: Linear,
    activation: activation::Activation,
    heads: i32,
    log_decay: Array,
    norm: Norm,
    gate: Linear,
    output: Linear,
}

impl Lightning {
    fn read(w: &Scope, c: &Text, activation: activation::Activation, layer: i32) -> Result<Self> {
        let ([width, _], heads) = (c.qk_widths(), c.num_attention_heads);
        // What the decays of a block are is saved beside the weights.
        for name in ["slope_rate", "query_decay", "key_decay", "diagonal_decay"] {
            w.ignore(name);
        }
        let factor = 1.0 - layer as f32 / ((c.num_hidden_layers - 1) as f32 + 1e-5) + 1e-5;
        let slope = |head| -(-8.0 * f64::from(head) / f64::from(heads)).exp2() as f32 * factor;
        let log_decay: Vec<f32> = (1..=heads).map(slope).collect();
        Ok(Lightning {
            qkv: w.linear("qkv_proj", c.hidden_size, 3 * width)?,
            activation,
            heads,
            log_decay: w.keep(Array::from_slice(&log_decay, &[heads, 1, 1])),
            norm: w.rms_norm("norm", width, EPS)?,
            gate: w.linear("output_gate", c.hidden_size, width)?,
            output: w.linear("out_proj", width, c.hidden_size)?,
        })
    }
}

impl Layer for Lightning {
    type State = Recurrent;

    fn state(&self, _: &CachePlan) -> Recurrent {
        Recurrent::default()
    }

    fn forward(&self, x: &Array, state: &mut Recurrent, step: &Step) -> Result<Array> {
        let qkv = (self.activation)(&self.qkv.forward(x)?)?;
        let parts = split_heads(&qkv, self.heads)?.split_equal(3, -1)?;
        let [q, k, v] = [0, 1, 2].map(|i| parts[i].clone());
        let y = lightning_attention(&Heads { q, k, v }, &self.log_decay, state, step)?;
        let y = self.norm.forward(&join_heads(&y)?.as_dtype(x.dtype())?)?;
        self.output.forward(&y.multiply(ops::sigmoid(self.gate.forward(x)?)?)?)
    }
}
