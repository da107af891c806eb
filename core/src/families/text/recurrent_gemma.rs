//! RecurrentGemma (Griffin): Gemma in which two of three layers replace attention by an RG-LRU after a
//! short convolution, and attention sees a window and rotates half of each head. Follows
//! `recurrent_gemma` of transformers; that of mlx-lm ignores the rotary base, the number of key heads
//! and the epsilon of the blocks.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["recurrent_gemma", "griffin"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended =
    Recommended { end_tokens: &["<end_of_turn>"], ..Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    attention_window_size: Size,
    conv1d_width: Size,
    logits_soft_cap: Option<Positive>,
    lru_width: Option<Size>,
    embeddings_scale_by_sqrt_dim: bool,
    hidden_activation: String,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let known = [LayerKind::Attention, LayerKind::Recurrence];
    let pattern = LayerKind::of_config(config, &["block_types", "_block_types"], &known)?;
    let pattern = pattern.unwrap_or_else(|| vec![known[1], known[1], known[0]]);
    let config = config::with_defaults(
        &config::without(config, &["layer_types"]),
        json!({
            "conv1d_width": 4, "embeddings_scale_by_sqrt_dim": true,
            "hidden_activation": "gelu_pytorch_tanh",
        }),
    );
    let (mut c, e): (Text, Config) = (Text::read(&config)?, config::read(&config)?);
    let act = activation::named("hidden_activation", &e.hidden_activation)?;
    let (width, heads) = (c.hidden_size, c.num_attention_heads);
    let lru = e.lru_width.map_or(width, i32::from);
    if lru % heads != 0 {
        return Err(Error::config("lru_width", format!("{lru} for {heads} heads")));
    }
    (c.mlp_bias, c.intermediate_size) = (true.into(), c.intermediate_size / 2);
    let rope = Rope::share(&c, 0.5)?;
    let norm = |w: &Scope, name| w.rms_norm(name, width, c.rms_norm_eps)?.plus_one();
    let body = w.at("model");
    let head = Head::of(w, &c)?.softcap(e.logits_soft_cap.map(f32::from));
    let ends = Ends { norm: norm(&body, "final_norm")?, head };
    let decoder = Decoder::assemble(&body, Names::default(), &c, ends, |i, w| {
        let mlp = Mlp::read(&w.at("mlp_block"), GATE_UP_DOWN, &c, gated(act))?;
        let names = TwoNorms { before_mixer: "temporal_pre_norm", before_ffn: "channel_pre_norm" };
        let (norm, t) = (|name| norm(w, name), w.at("temporal_block"));
        if pattern[i as usize % pattern.len()] == LayerKind::Attention {
            t.at("o_proj").require("bias")?;
            let attention = Attention::read(&t, QKVO, &c, rope.clone())?;
            let attention = attention.window(Some(*e.attention_window_size));
            return pre_norm_under(norm, names, attention, mlp);
        }
        let recurrence = Recurrence {
            gate: t.linear_with_bias("linear_y", width, lru)?,
            activation: act,
            input: t.linear_with_bias("linear_x", width, lru)?,
            conv: CausalConv::read(&t, "conv_1d", lru, *e.conv1d_width, true)?,
            rg_lru: RgLru::read(&t.at("rg_lru"), lru, heads)?,
            output: t.linear_with_bias("linear_out", lru, width)?,
        };
        pre_norm_under(norm, names, recurrence, mlp)
    })?;
    let embedding_scale = e.embeddings_scale_by_sqrt_dim.then(|| (width as f32).sqrt());
    Ok(Box::new(Decoder { embedding_scale, ..decoder }))
}

/// `output(activation(gate(x)) · rg_lru(conv(input(x))))`.
struct Recurrence {
    gate: Linear,
    activation: activation::Activation,
    input: Linear,
    conv: CausalConv,
    rg_lru: RgLru,
    output: Linear,
}

impl Layer for Recurrence {
    /// Of the convolution, and of the RG-LRU.
    type State = (Recurrent, Recurrent);

    fn state(&self, _: &CachePlan) -> Self::State {
        Self::State::default()
    }

    fn forward(&self, x: &Array, (last, lru): &mut Self::State, step: &Step) -> Result<Array> {
        let gate = (self.activation)(&self.gate.forward(x)?)?;
        let mixed = self.conv.forward(&self.input.forward(x)?, last, step)?;
        let y = self.rg_lru.forward(&mixed, lru, step)?;
        self.output.forward(&y.multiply(gate)?)
    }
}
