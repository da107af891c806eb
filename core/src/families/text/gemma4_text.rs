//! Gemma 4: Gemma's four norms a block, without the `1 +`; wide heads with proportional
//! rotary positions in full layers; the last layers attend over keys and values of an earlier one;
//! an input of its own for each layer; in some, experts beside each network. Follows `gemma4_text`
//! of mlx-lm.

use super::gemma3_text::{text_config, without};
use crate::{
    model::{Cache, Embedded},
    parts::{
        layer_inputs::{InputGate, LayerInputs},
        moe::mix,
        router::{check_choice, top_k},
        shared_keys::{BorrowedKeys, OwnKeys, Queries, lender},
    },
    prelude::*,
};
use mlx_rs::ops::indexing::take_along_axis;
use std::collections::HashMap;

pub const FAMILY: Family =
    Family { model_types: &["gemma4_text", "gemma4", "gemma4_unified", "gemma4_unified_text"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(default, deserialize_with = "config::optional_size")]
    global_head_dim: Option<i32>,
    #[serde(default, deserialize_with = "config::optional_size")]
    num_global_key_value_heads: Option<i32>,
    #[serde(deserialize_with = "config::count")]
    num_kv_shared_layers: i32,
    #[serde(default, deserialize_with = "config::optional_size")]
    vocab_size_per_layer_input: Option<i32>,
    #[serde(deserialize_with = "config::count")]
    hidden_size_per_layer_input: i32,
    rope_parameters: RopeParameters,
    #[serde(deserialize_with = "config::size")]
    sliding_window_pattern: i32,
    attention_k_eq_v: bool,
    use_double_wide_mlp: bool,
    enable_moe_block: bool,
    #[serde(default, deserialize_with = "config::optional_size")]
    num_experts: Option<i32>,
    #[serde(default, deserialize_with = "config::optional_size")]
    top_k_experts: Option<i32>,
    #[serde(default, deserialize_with = "config::optional_size")]
    moe_intermediate_size: Option<i32>,
    per_layer_config: Option<HashMap<String, OwnSizes>>,
}

/// What transformers 5 writes for a layer instead of the sizes of all full ones.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct OwnSizes {
    #[serde(deserialize_with = "config::optional_size")]
    head_dim: Option<i32>,
    #[serde(deserialize_with = "config::optional_size")]
    num_key_value_heads: Option<i32>,
}

/// The rotary embedding of each kind of layer.
type RopeParameters = HashMap<String, config::RopeScaling>;

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = text_config(config, json!({
        "hidden_size": 1536, "num_hidden_layers": 35, "intermediate_size": 6144,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
        "global_head_dim": 512, "rms_norm_eps": 1e-6, "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256,
        "num_kv_shared_layers": 20, "sliding_window": 512, "sliding_window_pattern": 5,
        "max_position_embeddings": 131072, "attention_k_eq_v": false,
        "final_logit_softcapping": 30.0, "use_double_wide_mlp": true, "enable_moe_block": false,
        "tie_word_embeddings": true, "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25,
            },
            "sliding_attention": {"rope_theta": 1e4},
        },
    }), json!({"vocab_size": 262144}))?;
    let config = &config;
    let e: Config = config::read(config)?;
    let c = Text::read(&without(config, &["rope_parameters"]))?;
    let layers = c.num_hidden_layers;
    if !(0..layers).contains(&e.num_kv_shared_layers) {
        let reason = format!("{} of {layers} layers", e.num_kv_shared_layers);
        return Err(Error::config("num_kv_shared_layers", reason));
    }
    ignore_parts(w, &["vision_tower", "vision_embedder", "multi_modal_projector", "audio_tower"]);
    ignore_parts(w, &["embed_audio", "embed_vision"]);
    w.ignore_named(&["input_max", "input_min", "output_max", "output_min"]);
    let decoder = Decoder::stack(w, &c, |i, w| block(w, &c, &e, i))?;
    let (body, _) = body(w);
    let end = |i| LayerEnd::read(&body.at("layers").at(i), &c, &e);
    Ok(Box::new(Gemma4 {
        inputs: e.has_inputs().then(|| e.inputs(&body, &c)).transpose()?,
        ends: (0..layers).map(end).collect::<Result<_>>()?,
        decoder: Decoder {
            embedding_scale: Some((c.hidden_size as f32).sqrt()),
            head: decoder.head.softcap(c.final_logit_softcapping),
            ..decoder
        },
    }))
}

impl Config {
    fn has_inputs(&self) -> bool {
        self.hidden_size_per_layer_input > 0
    }

    /// The window of a layer; every `sliding_window_pattern`th is full where no list says more.
    fn window(&self, c: &Text, layer: i32) -> Result<Option<i32>> {
        c.window_where(layer, |layer| (layer + 1) % self.sliding_window_pattern != 0)
    }

    /// The sizes of one layer's heads that are not those of the config.
    fn own_sizes(&self, layer: i32, is_full: bool) -> OwnSizes {
        match &self.per_layer_config {
            Some(layers) => layers.get(&layer.to_string()).copied().unwrap_or_default(),
            None if is_full => OwnSizes {
                head_dim: self.global_head_dim,
                num_key_value_heads: self
                    .num_global_key_value_heads
                    .filter(|_| self.attention_k_eq_v),
            },
            None => OwnSizes::default(),
        }
    }

    /// The layer whose keys and values another attends over.
    fn lender(&self, c: &Text, layer: i32) -> Result<Option<i32>> {
        let own = c.num_hidden_layers - self.num_kv_shared_layers;
        lender(own, layer, |layer| self.window(c, layer))
    }

    fn inputs(&self, w: &Scope, c: &Text) -> Result<LayerInputs> {
        let vocabulary = self.vocab_size_per_layer_input.unwrap_or(c.vocab_size);
        if vocabulary < c.vocab_size {
            let reason = format!("{vocabulary} are fewer than the {} tokens", c.vocab_size);
            return Err(Error::config("vocab_size_per_layer_input", reason));
        }
        LayerInputs::read(w, c, vocabulary, self.hidden_size_per_layer_input)
    }
}

/// The usual four norms around attention and the feed-forward network.
fn block(w: &Scope, c: &Text, e: &Config, i: i32) -> Result<Block> {
    let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
    let lender = e.lender(c, i)?;
    let times = if e.use_double_wide_mlp && lender.is_some() { 2 } else { 1 };
    let mlp = Mlp::sized(&w.at("mlp"), c, times * c.intermediate_size, geglu_tanh)?;
    let before = norm("pre_feedforward_layernorm")?;
    let after = norm("post_feedforward_layernorm")?;
    let ffn: Residual<Ffn> = if e.enable_moe_block {
        Residual::post(Box::new(BesideExperts::read(w, c, e, (before, mlp))?), after)
    } else {
        Residual::sandwich(before, Box::new(mlp), after)
    };
    let (before, after) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
    let a = w.at("self_attn");
    Ok(match lender {
        Some(lender) => {
            let attention = BorrowedKeys::read(&a, queries(&a, c, e, i)?, lender);
            Block::new((Residual::sandwich(before, attention, after), ffn))
        }
        None => {
            let attention = own_keys(&a, c, e, i)?;
            Block::new((Residual::sandwich(before, attention, after), ffn))
        }
    })
}

fn queries(w: &Scope, c: &Text, e: &Config, i: i32) -> Result<Queries> {
    let is_full = e.window(c, i)?.is_none();
    let kind = if is_full { "full_attention" } else { "sliding_attention" };
    let head_dim = e.own_sizes(i, is_full).head_dim.unwrap_or(c.head_dim());
    config::product("global_head_dim", [c.num_attention_heads, head_dim])?;
    let scaling = e.rope_parameters.get(kind);
    let base = scaling.and_then(|scaling| scaling.rope_theta).unwrap_or(10_000.0);
    let context = c.max_position_embeddings;
    let rope = Rope::scaled(head_dim, base, c.rope_traditional, scaling, context)?;
    Queries::read(w, c, head_dim, rope)
}

fn own_keys(w: &Scope, c: &Text, e: &Config, layer: i32) -> Result<OwnKeys> {
    let window = e.window(c, layer)?;
    let keys_are_values = e.attention_k_eq_v && window.is_none();
    let mut sizes = c.clone();
    let own = e.own_sizes(layer, window.is_none()).num_key_value_heads;
    sizes.num_key_value_heads = own.or(sizes.num_key_value_heads);
    if sizes.num_attention_heads % sizes.kv_heads() != 0 {
        let reason = format!("does not divide the {} query heads", c.num_attention_heads);
        return Err(Error::config("num_global_key_value_heads", reason));
    }
    let keys = OwnKeys::read(w, &sizes, queries(w, c, e, layer)?, !keys_are_values)?;
    Ok(keys.place(layer, window))
}

/// A network and experts, each between norms of its own; the router sees what the norms do not
/// change.
struct BesideExperts {
    mlp: (Norm, Mlp, Norm),
    router: ScaledRouter,
    experts: (Norm, GatedExperts, Norm),
}

impl BesideExperts {
    fn read(w: &Scope, c: &Text, e: &Config, (before, mlp): (Norm, Mlp)) -> Result<Self> {
        let missing = |field| move || Error::config(field, "missing, but there are experts");
        let count = e.num_experts.ok_or_else(missing("num_experts"))?;
        let k = e.top_k_experts.ok_or_else(missing("top_k_experts"))?;
        let inner = e.moe_intermediate_size.ok_or_else(missing("moe_intermediate_size"))?;
        check_choice("top_k_experts", (count, k))?;
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        let sizes = [count, c.hidden_size, inner];
        let experts = GatedExperts::read(w, "experts.switch_glu", sizes, geglu_tanh)?;
        let [first, second] = ["post_feedforward_layernorm_1", "post_feedforward_layernorm_2"];
        Ok(BesideExperts {
            mlp: (before, mlp, norm(first)?),
            router: ScaledRouter::read(&w.at("router"), c, (count, k))?,
            experts: (norm("pre_feedforward_layernorm_2")?, experts, norm(second)?),
        })
    }
}

impl Layer for BesideExperts {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        let (before, mlp, after) = &self.mlp;
        let dense = after.forward(&mlp.forward(&before.forward(x)?, &mut (), step)?)?;
        let (ids, weights) = self.router.route(x)?;
        let (before, experts, after) = &self.experts;
        let sparse = mix(&experts.forward(&before.forward(x)?, &ids)?, &weights)?;
        Ok(dense.add(after.forward(&sparse)?)?)
    }
}

/// The largest logits of a normalised token, whose softmax is scaled by a factor of each expert.
struct ScaledRouter {
    norm: Norm,
    logits: Linear,
    scale: Array,
    k: i32,
}

impl ScaledRouter {
    fn read(w: &Scope, c: &Text, (count, k): (i32, i32)) -> Result<Self> {
        let width = c.hidden_size;
        let factors = w.take("scale", &[width])?;
        let root = mlx::scalar((width as f32).powf(-0.5), factors.dtype())?;
        let weight = Some(w.keep(factors.multiply(root)?));
        Ok(ScaledRouter {
            norm: Norm::Rms { weight, eps: c.rms_norm_eps },
            logits: w.linear("proj", width, count)?,
            scale: w.tensor("per_expert_scale", &[count])?,
            k,
        })
    }
}

impl Router for ScaledRouter {
    fn route(&self, x: &Array) -> Result<(Array, Array)> {
        let logits = self.logits.forward(&self.norm.forward(x)?)?;
        let ids = top_k(&logits, self.k)?;
        let weights = ops::softmax_axis(take_along_axis(&logits, &ids, -1)?, -1, None)?;
        let weights = weights.multiply(self.scale.take_axis(&ids, 0)?)?;
        Ok((ids, weights))
    }
}

struct Gemma4 {
    decoder: Decoder,
    ends: Vec<LayerEnd>,
    inputs: Option<LayerInputs>,
}

impl Wrapper for Gemma4 {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        let inputs = self.inputs.as_ref().map(|inputs| inputs.forward(x)).transpose()?;
        let mut h = x.hidden.clone();
        let layers = self.decoder.blocks.iter().zip(&self.ends).zip(&mut cache.states);
        for (i, ((block, end), state)) in (0..).zip(layers) {
            h = end.forward(&block.forward(&h, &mut **state, step)?, inputs.as_ref(), i)?;
        }
        self.decoder.norm.forward(&h)
    }
}

/// What follows a block: its own input through a gate, and a factor.
struct LayerEnd {
    input: Option<InputGate>,
    scalar: Array,
}

impl LayerEnd {
    fn read(w: &Scope, c: &Text, e: &Config) -> Result<Self> {
        let input = || InputGate::read(w, c, e.hidden_size_per_layer_input);
        let input = e.has_inputs().then(input).transpose()?;
        Ok(LayerEnd { input, scalar: w.tensor("layer_scalar", &[1])? })
    }

    fn forward(&self, h: &Array, inputs: Option<&Array>, i: i32) -> Result<Array> {
        let mut h = h.clone();
        if let (Some(gate), Some(inputs)) = (&self.input, inputs) {
            let input = mlx::slice(inputs, 2, i, i + 1)?.squeeze_axes(&[2])?;
            h = h.add(gate.forward(&h, &input)?)?;
        }
        Ok(h.multiply(&self.scalar)?)
    }
}
