//! Gemma 4: Gemma 3 whose norms do not add 1, with wide heads and a proportional rotary embedding
//! in full layers, KV caches that the last layers share with earlier ones, an extra input for each
//! layer, and in some models experts beside each MLP. Follows `gemma4_text` of mlx-lm.

use crate::families::text::{gemma, gemma3_text::text_config};
use crate::{
    families::prelude::*,
    layers::{
        attention::shared_keys::{Place, SharedKeys, lender},
        layer_inputs::{InputGate, LayerInputs},
    },
};

pub const FAMILY: Family = Family {
    model_types: &["gemma4_text", "gemma4_unified", "gemma4_unified_text"],
    build,
    recommended: Recommended::NOTHING,
};

#[derive(Deserialize)]
struct Config {
    global_head_dim: Option<Size>,
    num_global_key_value_heads: Option<Size>,
    num_kv_shared_layers: Count,
    vocab_size_per_layer_input: Option<Size>,
    hidden_size_per_layer_input: Count,
    sliding_window_pattern: Size,
    attention_k_eq_v: bool,
    use_double_wide_mlp: bool,
    enable_moe_block: bool,
    per_layer_config: Option<ByLayer<OwnSizes>>,
}

#[derive(Deserialize)]
struct ExpertsConfig {
    num_experts: Size,
    top_k_experts: Size,
    moe_intermediate_size: Size,
}

/// What transformers 5 writes for one layer, where older configs have one size for all full layers.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct OwnSizes {
    head_dim: Option<Size>,
    num_key_value_heads: Option<Size>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    ignore_parts(w, &["vision_embedder", "audio_tower", "embed_audio", "embed_vision"]);
    language_model(config, w)
}

/// The language model alone, of any of the models.
pub fn language_model(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    // Unified models have no input for each layer.
    let model_type = config.get("model_type").and_then(Json::as_str).unwrap_or_default();
    let layer_input = if model_type.starts_with("gemma4_unified") { 0 } else { 256 };
    let defaults = json!({
        "hidden_size": 1536, "num_hidden_layers": 35, "intermediate_size": 6144,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
        "global_head_dim": 512, "rms_norm_eps": 1e-6, "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": layer_input,
        "num_kv_shared_layers": 20, "sliding_window": 512, "sliding_window_pattern": 5,
        "max_position_embeddings": 131072, "attention_k_eq_v": false,
        "final_logit_softcapping": 30.0, "use_double_wide_mlp": true, "enable_moe_block": false,
        "tie_word_embeddings": true,
    });
    let mut config = text_config(config, defaults, json!({"vocab_size": 262144}))?;
    if config.get("rope_parameters").is_none_or(Json::is_null) {
        let usual = json!({
            "full_attention": {
                "rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25,
            },
            "sliding_attention": {"rope_theta": 1e4},
        });
        config = config.with("rope_parameters", usual);
    }
    let config = &config;
    let (c, e): (Text, Config) = (gemma::read(config)?, config::read(config)?);
    let experts = e.enable_moe_block.then(|| config::read(config)).transpose()?;
    let layers = c.num_hidden_layers;
    if !(0..layers).contains(&*e.num_kv_shared_layers) {
        let reason = format!("{} of {layers} layers", *e.num_kv_shared_layers);
        return Err(Error::config("num_kv_shared_layers", reason));
    }
    let inputs = e.inputs(&body(w).0, &c)?;
    let decoder = Decoder::stack(w, &c, |i, w| e.block(w, &c, experts.as_ref(), i))?;
    Ok(Box::new(Gemma4 {
        inputs,
        decoder: Decoder {
            embedding_scale: Some((c.hidden_size as f32).sqrt()),
            head: decoder.head.softcap(*c.final_logit_softcapping),
            ..decoder
        },
    }))
}

impl Config {
    /// The four norms around attention and MLP, and what follows them.
    fn block(
        &self,
        w: &Scope,
        c: &Text,
        experts: Option<&ExpertsConfig>,
        layer: i32,
    ) -> Result<Block> {
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        let FourNorms { before_mixer, after_mixer, before_ffn, after_ffn } = FOUR_NORMS;
        let sizes = self.heads(c, layer)?;
        let place = self.place(&sizes, layer)?;
        let times = if self.use_double_wide_mlp && place.lender.is_some() { 2 } else { 1 };
        let mlp = Mlp::sized(&w.at("mlp"), c, times * c.intermediate_size)?;
        let (before, after) = (norm(before_ffn)?, norm(after_ffn)?);
        let network: Residual<Ffn> = match experts {
            Some(e) => Residual::post(Box::new(beside_experts(w, c, e, before, mlp)?), after),
            None => Residual::sandwich(before, Box::new(mlp), after),
        };
        let attention = SharedKeys::read(&w.at("self_attn"), &sizes, place)?;
        let attention = Residual::sandwich(norm(before_mixer)?, attention, norm(after_mixer)?);
        let width = Some(*self.hidden_size_per_layer_input).filter(|width| *width > 0);
        let input = width.map(|width| InputGate::read(w, c, width, layer)).transpose()?;
        let end = LayerEnd { input, scalar: w.tensor("layer_scalar", &[1])? };
        Ok(Block::new(((attention, network), end)))
    }

    /// The window of a layer; without a list, every `sliding_window_pattern`th layer is a full
    /// layer.
    fn window(&self, c: &Text, layer: i32) -> Result<Option<i32>> {
        c.window_where(layer, |layer| (layer + 1) % *self.sliding_window_pattern != 0)
    }

    /// The sizes of one layer, which may have its own head size.
    fn heads(&self, c: &Text, layer: i32) -> Result<Text> {
        let kv_heads = self.num_global_key_value_heads.filter(|_| self.attention_k_eq_v);
        let own = match &self.per_layer_config {
            Some(layers) => layers.get(layer).copied().unwrap_or_default(),
            None if self.window(c, layer)?.is_none() => {
                OwnSizes { head_dim: self.global_head_dim, num_key_value_heads: kv_heads }
            }
            None => OwnSizes::default(),
        };
        let mut c = c.clone();
        c.head_dim = own.head_dim.map(i32::from).or(c.head_dim);
        c.num_key_value_heads = own.num_key_value_heads.map(i32::from).or(c.num_key_value_heads);
        c.check_heads("num_global_key_value_heads")?;
        Ok(c)
    }

    fn place(&self, c: &Text, layer: i32) -> Result<Place> {
        let window = self.window(c, layer)?;
        let scaling = c.rope_of(window).ok();
        let base = scaling.and_then(|scaling| scaling.rope_theta).unwrap_or(10_000.0);
        let (dims, context) = (c.head_dim(), c.max_position_embeddings);
        let own = c.num_hidden_layers - *self.num_kv_shared_layers;
        Ok(Place {
            layer,
            lender: lender(own, layer, |layer| self.window(c, layer))?,
            window,
            rope: Rope::scaled(dims, base, *c.rope_traditional, scaling, context)?,
            keys_are_values: self.attention_k_eq_v && window.is_none(),
        })
    }

    fn inputs(&self, w: &Scope, c: &Text) -> Result<Option<LayerInputs>> {
        let vocabulary = self.vocab_size_per_layer_input.map_or(c.vocab_size, i32::from);
        match *self.hidden_size_per_layer_input {
            0 => Ok(None),
            _ if vocabulary < c.vocab_size => {
                let reason = format!("{vocabulary} are fewer than the {} tokens", c.vocab_size);
                Err(Error::config("vocab_size_per_layer_input", reason))
            }
            width => LayerInputs::read(w, c, vocabulary, width).map(Some),
        }
    }
}

/// An MLP and experts, each between norms of its own; the router reads the input before the norms.
fn beside_experts(
    w: &Scope,
    c: &Text,
    e: &ExpertsConfig,
    before: Norm,
    mlp: Mlp,
) -> Result<impl Layer<State = ()> + use<>> {
    let (count, k, inner) = (*e.num_experts, *e.top_k_experts, *e.moe_intermediate_size);
    check_choice("top_k_experts", count, k)?;
    let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
    let after = norm("post_feedforward_layernorm_1")?;
    let router = scaled_router(&w.at("router"), c, count, k)?;
    let before_experts = norm("pre_feedforward_layernorm_2")?;
    let sizes = ExpertSizes { count, width: c.hidden_size, inner };
    let experts = GatedExperts::read(w, "experts.switch_glu", sizes, gate_of(c)?)?;
    let after_experts = norm("post_feedforward_layernorm_2")?;
    Ok(Map(move |x: &Array| {
        let dense = after.forward(&mlp.apply(&before.forward(x)?)?)?;
        let (ids, weights) = router.route(x)?;
        let sparse = mix(&experts.forward(&before_experts.forward(x)?, &ids)?, &weights)?;
        Ok(dense.add(after_experts.forward(&sparse)?)?)
    }))
}

/// The largest logits of a normalised token, whose softmax is scaled by a factor of each expert.
fn scaled_router(w: &Scope, c: &Text, count: i32, k: i32) -> Result<impl Router + use<>> {
    let width = c.hidden_size;
    let factors = w.take("scale", &[width])?;
    let root = mlx::scalar((width as f32).powf(-0.5), factors.dtype())?;
    let weight = Some(w.keep(factors.multiply(root)?));
    let norm = Norm::Rms { weight, eps: c.rms_norm_eps };
    let logits = w.linear("proj", width, count)?;
    let scale = w.tensor("per_expert_scale", &[count])?;
    Ok(move |x: &Array| {
        let logits = logits.forward(&norm.forward(x)?)?;
        let ids = top_k(&logits, k)?;
        let weights = ops::softmax_axis(take_along_axis(&logits, &ids, -1)?, -1, None)?;
        let weights = weights.multiply(scale.take_axis(&ids, 0)?)?;
        Ok((ids, weights))
    })
}

/// A decoder that may have an extra input for each layer.
struct Gemma4 {
    decoder: Decoder,
    inputs: Option<LayerInputs>,
}

impl Wrapper for Gemma4 {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        if let Some(inputs) = &self.inputs {
            inputs.leave(x, step)?;
        }
        self.decoder.forward(x, cache, step)
    }
}

/// The end of a block: its layer input through a gate, and a factor.
struct LayerEnd {
    input: Option<InputGate>,
    scalar: Array,
}

impl Layer for LayerEnd {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, h: &Array, (): &mut (), step: &Step) -> Result<Array> {
        match &self.input {
            Some(gate) => Ok(h.add(gate.forward(h, step)?)?.multiply(&self.scalar)?),
            None => Ok(h.multiply(&self.scalar)?),
        }
    }
}
