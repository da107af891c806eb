//! MiMo V2 Flash: sliding and full layers that differ in heads, their widths and rotary bases;
//! values narrower than keys, and scaled; DeepSeek V3's experts. Follows `mimo_v2_flash` of mlx-lm,
//! and Xiaomi's code where that stretches positions.

use super::{deepseek_v3, gemma3_text::without, glm4_moe};
use crate::{
    parts::{
        attention::{join_heads, split_heads},
        kv::Kv,
    },
    prelude::*,
};

pub const FAMILY: Family = Family { model_types: &["mimo_v2_flash"], build };

#[derive(Deserialize)]
struct Config {
    hybrid_layer_pattern: Vec<i32>,
    moe_layer_freq: Vec<i32>,
    #[serde(deserialize_with = "config::size")]
    moe_intermediate_size: i32,
    #[serde(default, deserialize_with = "config::count")]
    n_shared_experts: i32,
    #[serde(deserialize_with = "config::size")]
    v_head_dim: i32,
    #[serde(default, deserialize_with = "config::optional_positive")]
    attention_value_scale: Option<f32>,
    add_swa_attention_sink_bias: bool,
    add_full_attention_sink_bias: bool,
}

/// What sliding layers have for themselves, as the config of full ones spells it.
const SLIDING: [(&str, &str); 6] = [
    ("swa_num_attention_heads", "num_attention_heads"),
    ("swa_num_key_value_heads", "num_key_value_heads"),
    ("swa_head_dim", "head_dim"),
    ("swa_v_head_dim", "v_head_dim"),
    ("swa_rope_theta", "rope_theta"),
    ("sliding_window_size", "sliding_window"),
];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &match config.get("routed_scaling_factor") {
        Some(Json::Null) => without(config, &["routed_scaling_factor"]),
        _ => config.clone(),
    };
    let config = &config::with_defaults(config, json!({"routed_scaling_factor": 1.0}));
    let full = Kind::read(config, &[])?;
    let own = without(config, &SLIDING.map(|(_, ours)| ours));
    let sliding = Kind::read(&own, &SLIDING)?;
    let (c, e) = (&full.text, &full.config);
    for (field, list) in
        [("hybrid_layer_pattern", &e.hybrid_layer_pattern), ("moe_layer_freq", &e.moe_layer_freq)]
    {
        if list.len() != c.num_hidden_layers as usize {
            let reason = format!("{} entries for {} layers", list.len(), c.num_hidden_layers);
            return Err(Error::config(field, reason));
        }
    }
    let routing = deepseek_v3::routing(config)?;
    // It predicts further tokens: ready for drafters.
    w.at("model").ignore("mtp");
    let decoder = Decoder::stack(w, c, |i, w| {
        let (a, mlp) = (w.at("self_attn"), w.at("mlp"));
        let attention = if e.hybrid_layer_pattern[i as usize] == 1 {
            let window = sliding.text.sliding_window;
            Mixer { window, ..sliding.attention(&a, e.add_swa_attention_sink_bias)? }
        } else {
            full.attention(&a, e.add_full_attention_sink_bias)?
        };
        let ffn = if e.moe_layer_freq[i as usize] == 1 {
            glm4_moe::experts(&mlp, c, &routing, [e.moe_intermediate_size, e.n_shared_experts])?
        } else {
            Box::new(Mlp::read(&mlp, GATE_UP_DOWN, c, swiglu)?)
        };
        pre_norm(w, c, attention, ffn)
    })?;
    Ok(Box::new(decoder))
}

/// The sizes of one kind of layer.
struct Kind {
    text: Text,
    config: Config,
    rope: Rope,
}

impl Kind {
    fn read(config: &Json, names: &[(&str, &str)]) -> Result<Self> {
        let names = &[names, &[("layernorm_epsilon", "rms_norm_eps")]].concat();
        config::read_renamed(config, names, |config| {
            let (text, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
            config::product("v_head_dim", [text.num_attention_heads, e.v_head_dim])?;
            let rope = Rope::share(&text, 1.0)?;
            Ok(Kind { text, config: e, rope })
        })
    }

    fn attention(&self, w: &Scope, has_sinks: bool) -> Result<Mixer> {
        let Kind { text: c, config: e, rope } = self;
        let (width, heads, kv_heads) = (c.hidden_size, c.num_attention_heads, c.kv_heads());
        let [queries, keys] = c.qk_widths();
        let read = if c.attention_bias { Scope::linear_with_bias } else { Scope::linear };
        let sinks = has_sinks.then(|| w.tensor("attention_sink_bias", &[heads])).transpose()?;
        Ok(Mixer {
            q: read(w, "q_proj", width, queries)?,
            k: read(w, "k_proj", width, keys)?,
            v: read(w, "v_proj", width, kv_heads * e.v_head_dim)?,
            output: w.linear("o_proj", heads * e.v_head_dim, width)?,
            heads: [heads, kv_heads],
            rope: rope.clone(),
            value_scale: e.attention_value_scale,
            scores: Scores { scale: (c.head_dim() as f32).powf(-0.5), sinks },
            window: None,
        })
    }
}

/// Attention whose values are scaled.
struct Mixer {
    q: Linear,
    k: Linear,
    v: Linear,
    output: Linear,
    heads: [i32; 2],
    rope: Rope,
    value_scale: Option<f32>,
    scores: Scores,
    window: Option<i32>,
}

impl Layer for Mixer {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        Kv::new(self.window, plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        let [heads, kv_heads] = self.heads;
        let queries = self.rope.forward(&split_heads(&self.q.forward(x)?, heads)?, step)?;
        let keys = self.rope.forward(&split_heads(&self.k.forward(x)?, kv_heads)?, step)?;
        let mut values = split_heads(&self.v.forward(x)?, kv_heads)?;
        if let Some(scale) = self.value_scale {
            values = values.multiply(mlx::scalar(scale, values.dtype())?)?;
        }
        let gathered = kv.attend(&queries, keys, values, &self.scores, step)?;
        self.output.forward(&join_heads(&gathered)?)
    }
}
