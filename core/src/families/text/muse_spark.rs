//! Muse Spark (text): Muse Glimmer's attention with normalised head outputs, a float32 residual
//! stream that fixed gates mix with each branch, and experts that work at a narrower width between
//! two projections. Follows `muse_spark` of mlx-lm, and transformers for rotary bases of single
//! layers.

use crate::families::prelude::*;

pub const FAMILY: Family = Family {
    model_types: &["muse_spark", "muse_spark_open"],
    build,
    recommended: Recommended::NOTHING,
};

#[derive(Deserialize)]
struct Config {
    post_norm_eps: Epsilon,
    qk_scale_factor: Positive,
    layer_rope_theta: Option<Vec<f32>>,
    final_logit_softcapping: Positive,
    output_multiplier: Positive,
    residual_gate_temperature: Positive,
    moe_hidden_size: Size,
    moe_intermediate_size: Size,
    #[serde(default)]
    num_shared_experts: Count,
    mlp_layer_types: Option<Vec<String>>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let tied: Option<bool> = config::field(config, "tie_word_embeddings")?;
    let config = &config::with_defaults(
        &config::text(config)?,
        json!({
            "vocab_size": 202_048, "hidden_size": 8192, "intermediate_size": 16384,
            "num_hidden_layers": 62, "num_attention_heads": 128, "num_key_value_heads": 16,
            "head_dim": 64, "max_position_embeddings": 1_048_576, "rms_norm_eps": 1e-5,
            "post_norm_eps": 1e-8, "rope_theta": 500_000.0, "sliding_window": 2048,
            "final_logit_softcapping": 20.0,
            "qk_scale_factor": 5.473_006_486_387_5, "output_multiplier": 0.176_776_695_296_636_9,
            "residual_gate_temperature": 0.3, "moe_hidden_size": 4096, "moe_intermediate_size": 4096,
            "num_local_experts": 256, "num_experts_per_tok": 8, "routed_scaling_factor": 1.0,
            "norm_topk_prob": true,
        }),
    );
    let (mut c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    // What `text_config` says of tied embeddings does not count in the whole model.
    c.tie_word_embeddings = Some(tied.unwrap_or(false));
    let routing = LossFreeRouting::read(config, &[("num_local_experts", "n_routed_experts")])?;
    let layers = c.num_hidden_layers;
    config::check_entries("layer_rope_theta", e.layer_rope_theta.as_ref(), layers)?;
    let is_dense = |kinds: &Vec<String>| kinds.iter().any(|kind| kind != "sparse");
    if *e.num_shared_experts > 0 || e.mlp_layer_types.as_ref().is_some_and(is_dense) {
        let reason = "layers without experts are not supported";
        return Err(Error::unsupported("mlp_layer_types", reason));
    }
    // Only the text model is read.
    ignore_parts(w, &["vision_tower", "vision_adapter", "vision_projection", "audio_tower"]);
    let decoder = Decoder::stack(w, &c, |i, w| {
        let form = Form::of(w, &c, &e);
        let rotates = |i: i32| (layers - 1 - i) % 4 != 0;
        let base = match &e.layer_rope_theta {
            Some(bases) => bases[i as usize],
            None if rotates(i) => c.rope_theta(),
            None => 0.0,
        };
        let attention = form.attention(&w.at("self_attn"), base, c.window_where(i, rotates)?)?;
        let network = form.experts(&w.at("mlp"), &routing)?;
        let scale = form.gain("post_feedforward_layernorm", c.hidden_size)?;
        Ok(Block::new((
            form.branch("input_layernorm", ATTENTION_GATE, attention, None)?,
            form.branch("pre_feedforward_layernorm", NETWORK_GATE, network, Some(scale))?,
        )))
    })?;
    let Norm::Rms { weight: Some(weight), .. } = &decoder.norm else {
        return Err(Error::Internal("the last norm has weights".into()));
    };
    Ok(Box::new(SingleStream {
        dtype: weight.dtype(),
        norm: Norm::Rms { weight: None, eps: c.rms_norm_eps },
        multiplier: *e.output_multiplier,
        softcap: *e.final_logit_softcapping,
        decoder,
    }))
}

/// The names of a gate as it was published, and of the two factors that MLX's files have instead.
#[derive(Clone, Copy)]
struct GateNames {
    published: &'static str,
    alpha: &'static str,
    beta: &'static str,
}

const ATTENTION_GATE: GateNames = GateNames {
    published: "post_attention_residual_gate",
    alpha: "add_attn_alpha",
    beta: "add_attn_beta",
};
const NETWORK_GATE: GateNames = GateNames {
    published: "post_feedforward_residual_gate",
    alpha: "add_ffn_alpha",
    beta: "add_ffn_beta",
};

/// The scope of one layer, and whether it is in the layout of MLX checkpoints.
struct Form<'a> {
    w: &'a Scope,
    c: &'a Text,
    e: &'a Config,
    is_converted: bool,
}

impl<'a> Form<'a> {
    fn of(w: &'a Scope, c: &'a Text, e: &'a Config) -> Self {
        let is_published = |names: GateNames| w.at(names.published).has("gate");
        let is_converted = ![ATTENTION_GATE, NETWORK_GATE].into_iter().any(is_published);
        Form { w, c, e, is_converted }
    }

    /// The weights of a norm; published checkpoints store `w − 1`.
    fn gain(&self, name: &str, width: i32) -> Result<Array> {
        let w = self.w.at(name);
        let weight = w.take("weight", &[width])?;
        Ok(w.keep(match self.is_converted {
            true => weight,
            false => weight.add(mlx::scalar(1.0, weight.dtype())?)?,
        }))
    }

    /// Attention whose heads are normalised before and after mixing, with a gate on each element.
    fn attention(
        &self,
        w: &Scope,
        base: f32,
        window: Option<i32>,
    ) -> Result<impl Layer<State = KvCache> + use<>> {
        let (c, width, [queries, keys]) = (self.c, self.c.hidden_size, self.c.qk_widths());
        let parts =
            [("q_proj", queries), ("k_proj", keys), ("v_proj", keys), ("gate_proj", queries)];
        let [q, k, v, gate] = if parts.iter().any(|(name, _)| w.has_below(name)) {
            let [q, k, v, gate] = parts.map(|(name, output)| w.linear(name, width, output));
            [q?, k?, v?, gate?]
        } else {
            w.fused("qkvg_proj", width, [queries, keys, keys, queries])?
        };
        let output = w.linear("o_proj", queries, width)?;
        // MLX checkpoints order the rows of queries and keys differently.
        let (pairs, context) = (self.is_converted, c.max_position_embeddings);
        let rope = match base {
            0.0 => Rope::None,
            base if base > 0.0 && base.is_finite() => {
                Rope::scaled(c.head_dim(), base, pairs, c.rope_scaling(), context)?
            }
            base => return Err(Error::config("layer_rope_theta", format!("{base} is no base"))),
        };
        let (heads, kv_heads, factor) =
            (c.num_attention_heads, c.kv_heads(), *self.e.qk_scale_factor);
        let norm = Norm::Rms { weight: None, eps: c.rms_norm_eps };
        let scores = Scores { scale: (c.head_dim() as f32).powf(-0.5), sinks: None };
        let run = move |x: &Array, kv: &mut KvCache, step: &Step| {
            let queries = norm.forward(&split_heads(&q.forward(x)?, heads)?)?;
            let queries = single(&queries)?.multiply(Array::from_f32(factor))?;
            let queries = rope.forward(&queries.as_dtype(x.dtype())?, step)?;
            let keys = norm.forward(&split_heads(&k.forward(x)?, kv_heads)?)?;
            let (keys, values) = (rope.forward(&keys, step)?, v.forward(x)?);
            let values = split_heads(&values, kv_heads)?;
            let gathered = kv.attend(&queries, keys, values, &scores, step)?;
            let gathered = join_heads(&norm.forward(&single(&gathered)?)?)?;
            let gated = gathered.multiply(ops::sigmoid(single(&gate.forward(x)?)?)?)?;
            output.forward(&gated.as_dtype(x.dtype())?)
        };
        Ok(Mixer { window, run })
    }

    /// Experts at a narrower width; the output of each is normalised before they are mixed.
    fn experts(
        &self,
        w: &Scope,
        routing: &LossFreeRouting,
    ) -> Result<impl Layer<State = ()> + use<>> {
        let (c, e, multiplier) = (self.c, self.e, *self.e.output_multiplier);
        let (width, narrow) = (c.hidden_size, *e.moe_hidden_size);
        let router = loss_free_router(w, c, routing)?
            .normalized()
            .scores(move |logits| Ok(ops::sigmoid(logits.multiply(Array::from_f32(multiplier))?)?));
        let before = w.linear("pre_expert_proj", width, narrow)?;
        let weight = Some(self.gain("mlp.pre_expert_norm", narrow)?);
        let norm = Norm::Rms { weight, eps: c.rms_norm_eps };
        let sizes = ExpertSizes {
            count: routing.n_routed_experts,
            width: narrow,
            inner: *e.moe_intermediate_size,
        };
        let experts = GatedExperts::read(w, "experts", sizes, single_swiglu)?;
        let scale = single(&self.gain("mlp.experts.post_expert_norm", narrow)?)?;
        let post = Norm::Rms { weight: None, eps: *e.post_norm_eps };
        let after = w.linear("post_expert_proj", narrow, width)?;
        Ok(Map(move |x: &Array| {
            let (ids, weights) = router.route(&single(x)?)?;
            let narrow = norm.forward(&before.forward(x)?)?;
            let y = single(&experts.forward(&narrow, &ids)?)?;
            let y = post.forward(&y.multiply(&scale)?)?;
            let weights = single(&weights.as_dtype(x.dtype())?)?.expand_dims(-1)?;
            let y = y.multiply(weights)?.sum_axis(-2, false)?;
            after.forward(&y.as_dtype(x.dtype())?)
        }))
    }

    fn branch<L>(
        &self,
        norm: &str,
        names: GateNames,
        inner: L,
        scale: Option<Array>,
    ) -> Result<Branch<L>> {
        let (w, width) = (self.w, self.c.hidden_size);
        let weight = self.gain(norm, width)?;
        let [alpha, beta] = if self.is_converted {
            [single(&w.take(names.alpha, &[width])?)?, single(&w.take(names.beta, &[width])?)?]
        } else {
            let constant = Array::from_f32;
            let gate = single(&w.at(names.published).take("gate", &[width])?)?;
            let gate = gate.divide(constant(*self.e.residual_gate_temperature))?;
            let beta = ops::sigmoid(&gate)?;
            let rest = ops::sigmoid(gate.negative()?)?.multiply(beta.add(constant(1.0))?)?;
            [ops::maximum(&rest, constant(1e-3))?.sqrt()?, beta]
        };
        Ok(Branch {
            dtype: weight.dtype(),
            pre: Norm::Rms { weight: Some(weight), eps: self.c.rms_norm_eps },
            inner,
            scale,
            post: Norm::Rms { weight: None, eps: *self.e.post_norm_eps },
            alpha: w.keep(alpha),
            beta: w.keep(beta),
        })
    }
}

fn single(x: &Array) -> Result<Array> {
    Ok(x.as_dtype(Dtype::Float32)?)
}

/// `alpha · x + beta · norm(scale · inner(norm(x)))` in a float32 residual stream.
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
        let y = single(&self.post.forward(&y)?)?;
        Ok(x.multiply(&self.alpha)?.add(y.multiply(&self.beta)?)?)
    }
}

/// SwiGLU in float32.
fn single_swiglu(gate: &Array, up: &Array) -> Result<Array> {
    Ok(swiglu(&single(gate)?, &single(up)?)?.as_dtype(up.dtype())?)
}

/// A decoder with normalised embeddings and a float32 residual stream and logits.
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
        let x = self.decoder.embed(ids)?;
        Ok(x.with_hidden(single(&self.norm.forward(&x.hidden)?)?))
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        Ok(self.decoder.forward(x, cache, step)?.as_dtype(self.dtype)?)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let logits = single(&self.decoder.logits(hidden)?)?;
        let cap = Array::from_f32(self.softcap);
        let scaled = logits.multiply(Array::from_f32(self.multiplier))?.divide(&cap)?;
        Ok(ops::tanh(&scaled)?.multiply(cap)?)
    }
}
