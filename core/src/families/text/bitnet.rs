//! BitNet b1.58: Llama with ternary weights, a squared ReLU as its gate, and norms before the last
//! projection of attention and network. Follows `bitnet` of mlx-lm.

use crate::{parts::kv::Kv, prelude::*};

pub const FAMILY: Family = Family { model_types: &["bitnet"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(&config::with_defaults(config, json!({"tie_word_embeddings": true})))?;
    let rope = Rope::of(&c)?;
    let decoder = Decoder::stack(w, &c, |_, w| {
        let (a, f) = (w.at("self_attn"), w.at("mlp"));
        let (width, inner) = (c.hidden_size, c.intermediate_size);
        let (all, keys) = (c.num_attention_heads * c.head_dim(), c.kv_heads() * c.head_dim());
        let attend = |name, input, output| projection(&a, name, input, output, c.attention_bias);
        let projections = [
            attend("q_proj", width, all)?,
            attend("k_proj", width, keys)?,
            attend("v_proj", width, keys)?,
            attend("o_proj", all, width)?,
        ];
        let attention = NormedAttention {
            attention: Attention::new(projections, &c, rope.clone()),
            norm: a.rms_norm("attn_sub_norm", all, c.rms_norm_eps)?,
        };
        let mlp = NormedMlp {
            gate: projection(&f, "gate_proj", width, inner, c.mlp_bias)?,
            up: projection(&f, "up_proj", width, inner, c.mlp_bias)?,
            norm: f.rms_norm("ffn_sub_norm", inner, c.rms_norm_eps)?,
            down: projection(&f, "down_proj", inner, width, c.mlp_bias)?,
        };
        pre_norm(w, &c, attention, mlp)
    })?;
    Ok(Box::new(decoder))
}

fn projection(w: &Scope, name: &str, input: i32, output: i32, bias: bool) -> Result<Linear> {
    if bias { w.linear_with_bias(name, input, output) } else { w.linear(name, input, output) }
}

struct NormedAttention {
    attention: Attention,
    norm: Norm,
}

impl Layer for NormedAttention {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        self.attention.state(plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        self.attention.project(&self.norm.forward(&self.attention.gather(x, kv, step)?)?)
    }
}

struct NormedMlp {
    gate: Linear,
    up: Linear,
    norm: Norm,
    down: Linear,
}

impl Layer for NormedMlp {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        let y = relu_squared(&self.gate.forward(x)?)?.multiply(self.up.forward(x)?)?;
        self.down.forward(&self.norm.forward(&y)?)
    }
}
