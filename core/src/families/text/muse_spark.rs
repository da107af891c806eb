//! Muse Spark (text): a residual stream of single precision that fixed gates mix with each branch,
//! experts at a narrower width between two projections, Muse Glimmer's attention with what heads
//! gather normalised. Follows `muse_spark` of mlx-lm, and transformers for bases of single layers.

use super::{glm4_moe, minimax::SinglePrecision};
use crate::{
    model::{Cache, Embedded},
    parts::{
        attention::{join_heads, split_heads},
        kv::Kv,
    },
    prelude::*,
};
use mlx_rs::Dtype;

pub const FAMILY: Family = Family { model_types: &["muse_spark", "muse_spark_open"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "config::epsilon")]
    post_norm_eps: f32,
    #[serde(deserialize_with = "config::positive")]
    qk_scale_factor: f32,
    layer_rope_theta: Option<Vec<f32>>,
    #[serde(deserialize_with = "config::positive")]
    final_logit_softcapping: f32,
    #[serde(deserialize_with = "config::positive")]
    output_multiplier: f32,
    #[serde(deserialize_with = "config::positive")]
    residual_gate_temperature: f32,
    #[serde(deserialize_with = "config::size")]
    moe_hidden_size: i32,
    #[serde(deserialize_with = "config::size")]
    moe_intermediate_size: i32,
    #[serde(default, deserialize_with = "config::count")]
    num_shared_experts: i32,
    mlp_layer_types: Option<Vec<String>>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config::text(config)?, json!({
        "vocab_size": 202_048, "hidden_size": 8192, "intermediate_size": 16384,
        "num_hidden_layers": 62, "num_attention_heads": 128, "num_key_value_heads": 16,
        "head_dim": 64, "max_position_embeddings": 1_048_576, "rms_norm_eps": 1e-5,
        "post_norm_eps": 1e-8, "rope_parameters": {"rope_theta": 500_000.0},
        "sliding_window": 2048, "final_logit_softcapping": 20.0, "tie_word_embeddings": false,
        "qk_scale_factor": 5.473_006_486_387_5, "output_multiplier": 0.176_776_695_296_636_9,
        "residual_gate_temperature": 0.3, "moe_hidden_size": 4096, "moe_intermediate_size": 4096,
        "num_local_experts": 256, "num_experts_per_tok": 8, "routed_scaling_factor": 1.0,
        "norm_topk_prob": true,
    }));
    let (mut c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let names = [("num_local_experts", "n_routed_experts")];
    let routing: LossFreeRouting = config::read_renamed(config, &names, config::read)?;
    let (layers, rotates) = (c.num_hidden_layers, |i: i32| (c.num_hidden_layers - 1 - i) % 4 != 0);
    let kind = |i| if rotates(i) { "sliding_attention" } else { "full_attention" };
    config::check_entries("layer_rope_theta", e.layer_rope_theta.as_ref(), layers)?;
    let usual = |i| if rotates(i) { c.rope_theta() } else { 0.0 };
    let bases = e.layer_rope_theta.clone().unwrap_or_else(|| (0..layers).map(usual).collect());
    let kinds = (0..layers).map(|i| kind(i).into()).collect();
    c.layer_types.get_or_insert(kinds);
    let is_dense = |kinds: &Vec<String>| kinds.iter().any(|kind| kind != "sparse");
    if e.num_shared_experts > 0 || e.mlp_layer_types.as_ref().is_some_and(is_dense) {
        return Err(Error::config("mlp_layer_types", "networks that are not sparse are unknown"));
    }
    // The text is read alone.
    ignore_parts(w, &["vision_tower", "vision_adapter", "vision_projection", "audio_tower"]);
    let decoder = Decoder::stack(w, &c, |i, w| {
        let form = Form::of(w, &c, &e);
        let base = bases[i as usize];
        let attention = form.attention(&w.at("self_attn"), base, c.window(i)?)?;
        let moe = form.experts(&w.at("mlp"), &routing)?;
        let post = w.at("post_feedforward_layernorm");
        let scale = form.gain(&post, "weight", c.hidden_size)?;
        let attention = form.branch("input_layernorm", ATTENTION_GATE, attention)?;
        let moe = form.branch("pre_feedforward_layernorm", NETWORK_GATE, moe)?;
        Ok(Block::new((attention, Branch { scale: Some(scale), ..moe })))
    })?;
    let Norm::Rms { weight: Some(weight), .. } = &decoder.norm else {
        return Err(Error::Internal("the last norm has weights".into()));
    };
    Ok(Box::new(SingleStream {
        dtype: weight.dtype(),
        norm: Norm::Rms { weight: None, eps: c.rms_norm_eps },
        multiplier: e.output_multiplier,
        softcap: e.final_logit_softcapping,
        decoder,
    }))
}

/// A gate as it was published, and the two factors that MLX's files have instead.
const ATTENTION_GATE: [&str; 3] =
    ["post_attention_residual_gate", "add_attn_alpha", "add_attn_beta"];
const NETWORK_GATE: [&str; 3] = ["post_feedforward_residual_gate", "add_ffn_alpha", "add_ffn_beta"];

/// One layer's place, and whether MLX has converted it.
struct Form<'a> {
    w: &'a Scope,
    c: &'a Text,
    e: &'a Config,
    is_converted: bool,
}

impl<'a> Form<'a> {
    fn of(w: &'a Scope, c: &'a Text, e: &'a Config) -> Self {
        let is_published = |[gate, ..]: [&str; 3]| w.at(gate).has("gate");
        let is_converted = ![ATTENTION_GATE, NETWORK_GATE].into_iter().any(is_published);
        Form { w, c, e, is_converted }
    }

    /// The weights of a norm, published less one.
    fn gain(&self, w: &Scope, name: &str, width: i32) -> Result<Array> {
        let weight = w.take(name, &[width])?;
        Ok(w.keep(match self.is_converted {
            true => weight,
            false => weight.add(mlx::scalar(1.0, weight.dtype())?)?,
        }))
    }

    fn norm(&self, w: &Scope, name: &str, width: i32) -> Result<Norm> {
        let weight = self.gain(&w.at(name), "weight", width)?;
        Ok(Norm::Rms { weight: Some(weight), eps: self.c.rms_norm_eps })
    }

    fn attention(&self, w: &Scope, base: f32, window: Option<i32>) -> Result<Mixer> {
        let (c, width, [queries, keys]) = (self.c, self.c.hidden_size, self.c.qk_widths());
        let single = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys), ("gate_proj", queries)];
        let [q, k, v, gate] = if single.iter().any(|(name, _)| w.has_below(name)) {
            let [q, k, v, gate] = single.map(|(name, output)| w.linear(name, width, output));
            [q?, k?, v?, gate?]
        } else {
            w.fused("qkvg_proj", width, [queries, keys, keys, queries])?
        };
        // Converted, the rows of queries and keys stand in another order.
        let (pairs, context) = (self.is_converted, c.max_position_embeddings);
        let rope = match base {
            0.0 => Rope::None,
            base if base > 0.0 && base.is_finite() => {
                Rope::scaled(c.head_dim(), base, pairs, c.rope_scaling(), context)?
            }
            base => return Err(Error::config("layer_rope_theta", format!("{base} is no base"))),
        };
        Ok(Mixer {
            projections: [q, k, v, gate, w.linear("o_proj", queries, width)?],
            heads: [c.num_attention_heads, c.kv_heads()],
            norm: Norm::Rms { weight: None, eps: c.rms_norm_eps },
            factor: self.e.qk_scale_factor,
            rope,
            scores: Scores { scale: (c.head_dim() as f32).powf(-0.5), sinks: None },
            window,
        })
    }

    fn experts(&self, w: &Scope, routing: &LossFreeRouting) -> Result<NarrowMoe> {
        let (width, narrow) = (self.c.hidden_size, self.e.moe_hidden_size);
        let (count, multiplier) = (routing.n_routed_experts, self.e.output_multiplier);
        let sigmoid = move |logits: &Array| -> Result<Array> {
            Ok(ops::sigmoid(logits.multiply(Array::from_f32(multiplier))?)?)
        };
        let (experts, sizes) = (w.at("experts"), [count, narrow, self.e.moe_intermediate_size]);
        let scale = self.gain(&experts.at("post_expert_norm"), "weight", narrow)?;
        Ok(NarrowMoe {
            router: SinglePrecision(
                glm4_moe::router(w, self.c, routing)?.normalized().scores(sigmoid),
            ),
            before: w.linear("pre_expert_proj", width, narrow)?,
            norm: self.norm(w, "pre_expert_norm", narrow)?,
            experts: GatedExperts::read(w, "experts", sizes, single_swiglu)?,
            scale: scale.as_dtype(Dtype::Float32)?,
            post: Norm::Rms { weight: None, eps: self.e.post_norm_eps },
            after: w.linear("post_expert_proj", narrow, width)?,
        })
    }

    fn branch<L>(&self, norm: &str, gate: [&str; 3], inner: L) -> Result<Branch<L>> {
        let (w, width) = (self.w, self.c.hidden_size);
        let weight = self.gain(&w.at(norm), "weight", width)?;
        let single = |x: Array| x.as_dtype(Dtype::Float32);
        let [gate, alpha, beta] = gate;
        let [alpha, beta] = if self.is_converted {
            [single(w.take(alpha, &[width])?)?, single(w.take(beta, &[width])?)?]
        } else {
            let constant = Array::from_f32;
            let gate = single(w.at(gate).take("gate", &[width])?)?;
            let gate = gate.divide(constant(self.e.residual_gate_temperature))?;
            let beta = ops::sigmoid(&gate)?;
            let rest = ops::sigmoid(gate.negative()?)?.multiply(beta.add(constant(1.0))?)?;
            [ops::maximum(&rest, constant(1e-3))?.sqrt()?, beta]
        };
        Ok(Branch {
            dtype: weight.dtype(),
            pre: Norm::Rms { weight: Some(weight), eps: self.c.rms_norm_eps },
            inner,
            scale: None,
            post: Norm::Rms { weight: None, eps: self.e.post_norm_eps },
            alpha: w.keep(alpha),
            beta: w.keep(beta),
        })
    }
}

/// `alpha · x + beta · norm(scale · inner(norm(x)))` in a stream of single precision.
struct Branch<L> {
    pre: Norm,
    dtype: Dtype,
    inner: L,
    scale: Option<Array>,
    post: Norm,
    alpha: Array,
    beta: Array,
}

impl<L: Layer> Layer for Branch<L> {
    type State = L::State;

    fn state(&self, plan: &CachePlan) -> L::State {
        self.inner.state(plan)
    }

    fn forward(&self, x: &Array, state: &mut L::State, step: &Step) -> Result<Array> {
        let h = self.pre.forward(x)?.as_dtype(self.dtype)?;
        let mut y = self.inner.forward(&h, state, step)?;
        if let Some(scale) = &self.scale {
            y = y.multiply(scale)?;
        }
        let y = self.post.forward(&y)?.as_dtype(Dtype::Float32)?;
        Ok(x.multiply(&self.alpha)?.add(y.multiply(&self.beta)?)?)
    }
}

/// Attention whose heads are normalised before they mix and after, with a gate on each element.
struct Mixer {
    projections: [Linear; 5],
    heads: [i32; 2],
    norm: Norm,
    factor: f32,
    rope: Rope,
    scores: Scores,
    window: Option<i32>,
}

impl Layer for Mixer {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        Kv::new(self.window, plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        let ([q, k, v, gate, output], [heads, kv_heads]) = (&self.projections, self.heads);
        let single = |x: &Array| x.as_dtype(Dtype::Float32);
        let queries = self.norm.forward(&split_heads(&q.forward(x)?, heads)?)?;
        let queries = single(&queries)?.multiply(Array::from_f32(self.factor))?;
        let queries = self.rope.forward(&queries.as_dtype(x.dtype())?, step)?;
        let keys = self.norm.forward(&split_heads(&k.forward(x)?, kv_heads)?)?;
        let keys = self.rope.forward(&keys, step)?;
        let values = split_heads(&v.forward(x)?, kv_heads)?;
        let gathered = kv.attend(&queries, keys, values, &self.scores, step)?;
        let gathered = join_heads(&self.norm.forward(&single(&gathered)?)?)?;
        let gated = gathered.multiply(ops::sigmoid(single(&gate.forward(x)?)?)?)?;
        output.forward(&gated.as_dtype(x.dtype())?)
    }
}

/// Experts that work at a narrower width; each is normalised before they are mixed.
struct NarrowMoe {
    router: SinglePrecision,
    before: Linear,
    norm: Norm,
    experts: GatedExperts,
    scale: Array,
    post: Norm,
    after: Linear,
}

impl Layer for NarrowMoe {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        let (ids, weights) = self.router.route(x)?;
        let narrow = self.norm.forward(&self.before.forward(x)?)?;
        let y = self.experts.forward(&narrow, &ids)?.as_dtype(Dtype::Float32)?;
        let y = self.post.forward(&y.multiply(&self.scale)?)?;
        let weights = weights.as_dtype(Dtype::Float32)?.expand_dims(-1)?;
        let y = y.multiply(weights)?.sum_axis(-2, false)?;
        self.after.forward(&y.as_dtype(x.dtype())?)
    }
}

/// SwiGLU in single precision.
fn single_swiglu(gate: &Array, up: &Array) -> Result<Array> {
    let single = |x: &Array| x.as_dtype(Dtype::Float32);
    Ok(swiglu(&single(gate)?, &single(up)?)?.as_dtype(up.dtype())?)
}

/// A decoder whose embeddings are normalised, and whose stream and logits are of single precision.
struct SingleStream {
    decoder: Decoder,
    dtype: Dtype,
    norm: Norm,
    multiplier: f32,
    softcap: f32,
}

impl Wrapper for SingleStream {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn embed(&self, ids: &Array) -> Result<Embedded> {
        let Embedded { ids, hidden } = self.decoder.embed(ids)?;
        let hidden = self.norm.forward(&hidden)?.as_dtype(Dtype::Float32)?;
        Ok(Embedded { ids, hidden })
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        Ok(self.decoder.forward(x, cache, step)?.as_dtype(self.dtype)?)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let logits = self.decoder.logits(hidden)?.as_dtype(Dtype::Float32)?;
        let cap = Array::from_f32(self.softcap);
        let scaled = logits.multiply(Array::from_f32(self.multiplier))?.divide(&cap)?;
        Ok(ops::tanh(&scaled)?.multiply(cap)?)
    }
}
