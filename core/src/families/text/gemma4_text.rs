//! Gemma 4 (dense): Gemma's four norms a block, without the `1 +`; wide heads with proportional
//! rotary positions in full layers; the last layers attend over keys and values of an earlier one;
//! an input of its own for each layer. Follows `gemma4_text` of mlx-lm.

use super::gemma3_text::text_config;
use crate::{
    model::{Cache, Embedded},
    parts::{
        attention::{join_heads, split_heads},
        kv::{Kv, Seen},
    },
    prelude::*,
};
use std::{any::Any, collections::HashMap};

pub const FAMILY: Family =
    Family { model_types: &["gemma4_text", "gemma4", "gemma4_unified", "gemma4_unified_text"], build };

#[derive(Deserialize)]
struct Config {
    global_head_dim: Option<i32>,
    num_global_key_value_heads: Option<i32>,
    num_kv_shared_layers: i32,
    #[serde(default, deserialize_with = "config::optional_size")]
    vocab_size_per_layer_input: Option<i32>,
    hidden_size_per_layer_input: Option<i32>,
    rope_parameters: RopeParameters,
    #[serde(deserialize_with = "config::size")]
    sliding_window_pattern: i32,
    attention_k_eq_v: bool,
    final_logit_softcapping: Option<f32>,
    use_double_wide_mlp: bool,
    enable_moe_block: bool,
}

/// The rotary embedding of each kind of layer.
type RopeParameters = HashMap<String, config::RopeScaling>;

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &text_config(config, json!({
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
    }), json!({"vocab_size": 262144}));
    let e: Config = config::read(config)?;
    if e.enable_moe_block {
        return Err(Error::config("enable_moe_block", "experts of this family are not supported yet"));
    }
    let mut outer = config.clone();
    if let Json::Object(fields) = &mut outer {
        fields.remove("rope_parameters");
    }
    let mut c = Text::read(&outer)?;
    let layers = c.num_hidden_layers;
    let kind = |i| if (i + 1) % e.sliding_window_pattern == 0 { "full" } else { "sliding" };
    let kinds = (0..layers).map(|i| format!("{}_attention", kind(i)));
    c.layer_types.get_or_insert_with(|| kinds.collect());
    if !(0..layers).contains(&e.num_kv_shared_layers) {
        let reason = format!("{} of {layers} layers", e.num_kv_shared_layers);
        return Err(Error::config("num_kv_shared_layers", reason));
    }
    let towers = "vision_tower multi_modal_projector audio_tower embed_audio embed_vision vision_embedder";
    for tower in towers.split(' ') {
        w.ignore(tower);
        w.at("model").ignore(tower);
    }
    w.ignore_named(&["input_max", "input_min", "output_max", "output_min"]);
    let (body, head) = body(w);
    let width = e.hidden_size_per_layer_input.filter(|width| *width > 0);
    let read = |i| Gemma4Layer::read(&body.at("layers").at(i), &c, &e, i);
    Ok(Box::new(Gemma4 {
        embedding: body.embedding("embed_tokens", c.vocab_size, c.hidden_size)?,
        embedding_scale: (c.hidden_size as f32).sqrt(),
        inputs: width.map(|width| LayerInputs::read(&body, &c, &e, width)).transpose()?,
        layers: (0..layers).map(read).collect::<Result<_>>()?,
        norm: body.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?,
        head: Head::read(&head, c.tie_word_embeddings, c.hidden_size, c.vocab_size)?
            .softcap(e.final_logit_softcapping),
    }))
}

struct Gemma4 {
    embedding: Embedding,
    embedding_scale: f32,
    inputs: Option<LayerInputs>,
    layers: Vec<Gemma4Layer>,
    norm: Norm,
    head: Head,
}

impl LanguageModel for Gemma4 {
    fn vocabulary(&self) -> u32 {
        self.embedding.vocabulary()
    }

    fn cache(&self, plan: &CachePlan) -> Cache {
        let state = |layer: &Gemma4Layer| -> Box<dyn State> {
            match layer.attention.source {
                Source::Own { window, .. } => Box::new(Kv::new(window, plan)),
                Source::Shared(_) => Box::new(()),
            }
        };
        Cache::new(self.layers.iter().map(state).collect(), plan)
    }

    fn embed(&self, ids: &Array) -> Result<Embedded> {
        let hidden = self.embedding.lookup(ids)?;
        let scale = mlx::scalar(self.embedding_scale, hidden.dtype())?;
        Ok(Embedded { ids: ids.clone(), hidden: hidden.multiply(scale)? })
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        let inputs = self.inputs.as_ref().map(|inputs| inputs.forward(x)).transpose()?;
        let mut h = x.hidden.clone();
        let mut seen: Vec<Seen> = Vec::new();
        for (i, (layer, state)) in self.layers.iter().zip(&mut cache.states).enumerate() {
            let input = match &inputs {
                Some(inputs) => Some(mlx::slice(inputs, 2, i as i32, i as i32 + 1)?.squeeze_axes(&[2])?),
                None => None,
            };
            h = layer.forward(&h, &mut **state, &mut seen, input, step)?;
        }
        self.norm.forward(&h)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        self.head.forward(hidden, &self.embedding)
    }
}

/// What each layer gets beside the residual stream: a row of a second token table plus a
/// projection of the embedding.
struct LayerInputs {
    table: Embedding,
    projection: Linear,
    norm: Norm,
    layers: i32,
    width: i32,
    hidden_size: i32,
}

impl LayerInputs {
    fn read(w: &Scope, c: &Text, e: &Config, width: i32) -> Result<Self> {
        let (layers, hidden_size) = (c.num_hidden_layers, c.hidden_size);
        let vocabulary = e.vocab_size_per_layer_input.unwrap_or(c.vocab_size);
        Ok(LayerInputs {
            table: w.embedding("embed_tokens_per_layer", vocabulary, layers * width)?,
            projection: w.linear("per_layer_model_projection", hidden_size, layers * width)?,
            norm: w.rms_norm("per_layer_projection_norm", width, c.rms_norm_eps)?,
            layers,
            width,
            hidden_size,
        })
    }

    /// `[batch, length, layers, width]`.
    fn forward(&self, x: &Embedded) -> Result<Array> {
        let constant = |value: f32| mlx::scalar(value, x.hidden.dtype());
        let shape = [x.ids.dim(0), x.ids.dim(1), self.layers, self.width];
        let token = self.table.lookup(&x.ids)?.multiply(constant((self.width as f32).sqrt())?)?;
        let context = self.projection.forward(&x.hidden)?;
        let context = context.multiply(constant((self.hidden_size as f32).powf(-0.5))?)?;
        let context = self.norm.forward(&context.reshape(&shape)?)?;
        let sum = context.add(token.reshape(&shape)?)?;
        Ok(sum.multiply(constant(std::f32::consts::FRAC_1_SQRT_2)?)?)
    }
}

struct Gemma4Layer {
    attention: Gemma4Attention,
    mlp: Mlp,
    /// Before and after attention, before and after the feed-forward network.
    norms: [Norm; 4],
    input: Option<LayerInput>,
    scalar: Array,
}

/// How a layer takes its own input in.
struct LayerInput {
    gate: Linear,
    projection: Linear,
    norm: Norm,
}

impl Gemma4Layer {
    fn read(w: &Scope, c: &Text, e: &Config, i: i32) -> Result<Self> {
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        let own = c.num_hidden_layers - e.num_kv_shared_layers;
        let wide = e.use_double_wide_mlp && i >= own && own > 0;
        let mut sizes = c.clone();
        sizes.intermediate_size *= if wide { 2 } else { 1 };
        let input = |width| -> Result<LayerInput> {
            Ok(LayerInput {
                gate: w.linear("per_layer_input_gate", c.hidden_size, width)?,
                projection: w.linear("per_layer_projection", width, c.hidden_size)?,
                norm: norm("post_per_layer_input_norm")?,
            })
        };
        Ok(Gemma4Layer {
            attention: Gemma4Attention::read(&w.at("self_attn"), c, e, i)?,
            mlp: Mlp::read(&w.at("mlp"), GATE_UP_DOWN, &sizes, geglu_tanh)?,
            norms: [
                norm("input_layernorm")?,
                norm("post_attention_layernorm")?,
                norm("pre_feedforward_layernorm")?,
                norm("post_feedforward_layernorm")?,
            ],
            input: e.hidden_size_per_layer_input.filter(|n| *n > 0).map(input).transpose()?,
            scalar: w.tensor("layer_scalar", &[1])?,
        })
    }

    fn forward(
        &self,
        x: &Array,
        state: &mut dyn State,
        seen: &mut Vec<Seen>,
        input: Option<Array>,
        step: &Step,
    ) -> Result<Array> {
        let [before, after, before_mlp, after_mlp] = &self.norms;
        let y = self.attention.forward(&before.forward(x)?, state, seen, step)?;
        let h = x.add(after.forward(&y)?)?;
        let y = self.mlp.forward(&before_mlp.forward(&h)?, &mut (), step)?;
        let mut h = h.add(after_mlp.forward(&y)?)?;
        if let (Some(layer), Some(input)) = (&self.input, input) {
            let y = layer.projection.forward(&geglu_tanh(&layer.gate.forward(&h)?, &input)?)?;
            h = h.add(layer.norm.forward(&y)?)?;
        }
        Ok(h.multiply(&self.scalar)?)
    }
}

struct Gemma4Attention {
    q: Linear,
    q_norm: Norm,
    output: Linear,
    source: Source,
    rope: Rope,
    heads: i32,
}

/// Where keys and values come from.
enum Source {
    Own {
        k: Linear,
        /// Values are the keys before their norm when there is none.
        v: Option<Linear>,
        k_norm: Norm,
        v_norm: Norm,
        heads: i32,
        window: Option<i32>,
    },
    /// From the layer of this number.
    Shared(usize),
}

impl Gemma4Attention {
    fn read(w: &Scope, c: &Text, e: &Config, i: i32) -> Result<Self> {
        let window = c.window(i)?;
        let is_full = window.is_none();
        let head_dim = match e.global_head_dim {
            Some(wide) if is_full && wide > 0 => wide,
            _ => c.head_dim(),
        };
        let (width, heads) = (c.hidden_size, c.num_attention_heads);
        let kind = if is_full { "full_attention" } else { "sliding_attention" };
        let scaling = e.rope_parameters.get(kind);
        let base = scaling.and_then(|scaling| scaling.rope_theta).unwrap_or(10_000.0);
        let context = c.max_position_embeddings;
        let norm = |name| w.rms_norm(name, head_dim, c.rms_norm_eps);
        let own = c.num_hidden_layers - e.num_kv_shared_layers;
        let source = if i < own {
            let keys_are_values = e.attention_k_eq_v && is_full;
            let kv_heads = match e.num_global_key_value_heads {
                Some(global) if keys_are_values => global,
                _ => c.kv_heads(),
            };
            let read = |name| w.linear(name, width, kv_heads * head_dim);
            Source::Own {
                k: read("k_proj")?,
                v: (!keys_are_values).then(|| read("v_proj")).transpose()?,
                k_norm: norm("k_norm")?,
                v_norm: Norm::Rms { weight: None, eps: c.rms_norm_eps },
                heads: kv_heads,
                window,
            }
        } else {
            for unused in ["k_proj", "v_proj", "k_norm"] {
                w.ignore(unused);
            }
            let kinds = c.layer_types.as_ref().map_or(&[][..], Vec::as_slice);
            let donor = kinds[..own as usize].iter().rposition(|kind| *kind == kinds[i as usize]);
            let reason = "no layer of the same kind has keys and values to share";
            Source::Shared(donor.ok_or_else(|| Error::config("num_kv_shared_layers", reason))?)
        };
        Ok(Gemma4Attention {
            q: w.linear("q_proj", width, heads * head_dim)?,
            q_norm: norm("q_norm")?,
            output: w.linear("o_proj", heads * head_dim, width)?,
            source,
            rope: Rope::scaled(head_dim, base, c.rope_traditional, scaling, context)?,
            heads,
        })
    }

    fn forward(
        &self,
        x: &Array,
        state: &mut dyn State,
        seen: &mut Vec<Seen>,
        step: &Step,
    ) -> Result<Array> {
        let q = self.q_norm.forward(&split_heads(&self.q.forward(x)?, self.heads)?)?;
        let q = self.rope.forward(&q, step)?;
        let visible = match &self.source {
            Source::Shared(layer) => seen[*layer].clone(),
            Source::Own { k, v, k_norm, v_norm, heads, .. } => {
                let keys = split_heads(&k.forward(x)?, *heads)?;
                let values = match v {
                    Some(v) => split_heads(&v.forward(x)?, *heads)?,
                    None => keys.clone(),
                };
                let keys = self.rope.forward(&k_norm.forward(&keys)?, step)?;
                let state = (state as &mut dyn Any).downcast_mut::<Kv>();
                let kv = state.expect("a layer with keys of its own has a Kv");
                seen.push(kv.update(keys, v_norm.forward(&values)?, step)?);
                seen[seen.len() - 1].clone()
            }
        };
        let y = visible.attend(&q, &Scores { scale: 1.0, sinks: None }, step)?;
        self.output.forward(&join_heads(&y)?)
    }
}
