//! MiMo V2 Flash: sliding-window and full layers with different head counts, head sizes and rotary
//! bases; values narrower than keys, and scaled; DeepSeek V3's mixture of experts. Follows
//! `mimo_v2_flash` of mlx-lm, Xiaomi's code for `rope_scaling`, and transformers for the configs that it
//! saves.

use crate::families::prelude::*;
use crate::families::text::deepseek_v3;

pub const FAMILY: Family =
    Family { model_types: &["mimo_v2_flash"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    hybrid_layer_pattern: Vec<i32>,
    moe_layer_freq: Vec<i32>,
    moe_intermediate_size: Size,
    n_shared_experts: Count,
    v_head_dim: Size,
    attention_value_scale: Option<Positive>,
    add_swa_attention_sink_bias: bool,
    add_full_attention_sink_bias: bool,
}

/// The fields of sliding-window layers, under the names that the config uses for full layers.
const SLIDING: [(&str, &str); 6] = [
    ("swa_num_attention_heads", "num_attention_heads"),
    ("swa_num_key_value_heads", "num_key_value_heads"),
    ("swa_head_dim", "head_dim"),
    ("swa_v_head_dim", "v_head_dim"),
    ("swa_rope_theta", "rope_theta"),
    ("sliding_window_size", "sliding_window"),
];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "routed_scaling_factor": 1.0, "n_shared_experts": 0,
        }),
    );
    let kinds: Option<Vec<String>> = config::field(config, "layer_types")?;
    let (mut full, sliding) = match kinds {
        Some(kinds) if config.get("hybrid_layer_pattern").is_none() => saved_kinds(config, &kinds)?,
        _ => {
            let others = config::without(config, &SLIDING.map(|(_, ours)| ours));
            (Kind::read(config, &[])?, Kind::read(&others, &SLIDING)?)
        }
    };
    full.text.sliding_window = None.into();
    let (c, e) = (&full.text, &full.config);
    let layers = c.num_hidden_layers;
    config::check_entries("hybrid_layer_pattern", Some(&e.hybrid_layer_pattern), layers)?;
    config::check_entries("moe_layer_freq", Some(&e.moe_layer_freq), layers)?;
    let routing = deepseek_v3::routing(config)?;
    let (inner, shared) = (*e.moe_intermediate_size, *e.n_shared_experts);
    // It predicts further tokens: ready for drafters.
    w.at("model").ignore("mtp");
    Ok(Box::new(Decoder::stack(w, c, |i, w| {
        let (kind, has_sinks) = match e.hybrid_layer_pattern[i as usize] {
            1 => (&sliding, e.add_swa_attention_sink_bias),
            _ => (&full, e.add_full_attention_sink_bias),
        };
        let ffn = match e.moe_layer_freq[i as usize] {
            1 => routed_experts(&w.at("mlp"), c, &routing, inner, shared)?,
            _ => dense(&w.at("mlp"), c)?,
        };
        pre_norm(w, c, kind.attention(&w.at("self_attn"), has_sinks)?, ffn)
    })?))
}

/// Both kinds from a config that transformers has saved. It lists the kinds of layers, nests the rotary
/// parameters by kind, and takes for granted what else differs between them.
fn saved_kinds(config: &Json, kinds: &[String]) -> Result<(Kind, Kind)> {
    LayerKind::of_config(config, &["layer_types"], &[LayerKind::Attention])?;
    let sparse: Vec<String> = config::field(config, "mlp_layer_types")?;
    let marked = |list: &[String], kind| -> Vec<i32> {
        list.iter().map(|name| i32::from(name == kind)).collect()
    };
    let config = &config::with_defaults(
        config,
        json!({
            "hybrid_layer_pattern": marked(kinds, "sliding_attention"),
            "moe_layer_freq": marked(&sparse, "sparse"),
            "add_swa_attention_sink_bias": true, "add_full_attention_sink_bias": false,
        }),
    );
    let of = |kind| match config.get("rope_parameters").and_then(|nested| nested.get(kind)) {
        Some(own) => config.with("rope_parameters", own),
        None => config.clone(),
    };
    let heads: Size = config::field(config, "num_key_value_heads")?;
    let sliding = of("sliding_attention").with("num_key_value_heads", 2 * *heads);
    Ok((Kind::read(&of("full_attention"), &[])?, Kind::read(&sliding, &[])?))
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
            config::product("v_head_dim", [text.num_attention_heads, *e.v_head_dim])?;
            let rope = Rope::share(&text, 1.0)?;
            Ok(Kind { text, config: e, rope })
        })
    }

    /// Attention whose values are narrower than keys, and scaled.
    fn attention(&self, w: &Scope, has_sinks: bool) -> Result<impl Layer + use<>> {
        let Kind { text: c, config: e, rope } = self;
        let (width, heads, [queries, keys]) = (c.hidden_size, c.num_attention_heads, c.qk_widths());
        let read = if *c.attention_bias { Scope::linear_with_bias } else { Scope::linear };
        let projections = [
            read(w, "q_proj", width, queries)?,
            read(w, "k_proj", width, keys)?,
            read(w, "v_proj", width, c.kv_heads() * *e.v_head_dim)?,
            w.linear("o_proj", heads * *e.v_head_dim, width)?,
        ];
        let sinks = has_sinks.then(|| w.tensor("attention_sink_bias", &[heads])).transpose()?;
        let attention = Attention::new(projections, c, rope.clone());
        let attention = attention.sinks(sinks).window(*c.sliding_window);
        let scale = e.attention_value_scale;
        Ok(attention.run_by(move |attention, x, kv, step| {
            let [q, k, mut v] = attention.heads(x, step)?;
            if let Some(Positive(scale)) = scale {
                v = v.multiply(mlx::scalar(scale, v.dtype())?)?;
            }
            attention.project(&attention.attend([q, k, v], kv, step)?)
        }))
    }
}
