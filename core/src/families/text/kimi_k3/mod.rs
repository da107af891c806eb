//! Kimi K3: Kimi Linear with attention over the sums of earlier blocks of layers in place of the
//! residual stream (attention residuals), another activation, experts in a latent space, gates on
//! latent attention and decays of a lower bound. Follows `kimi_k3` of mlx-lm; the vision tower is
//! ignored.

mod attention_residuals;

use crate::families::prelude::*;
use crate::families::text::kimi_linear::{self, DeltaLayers};
use crate::layers::{attention::gated::sigmoid, recurrent::decay::lower_bound};
use attention_residuals::{BlockMix, LastMix, MixedBlock};

pub const FAMILY: Family =
    Family { model_types: &["kimi_k3"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    activation_situ_beta: Option<Positive>,
    activation_situ_linear_beta: Option<Positive>,
    attn_res_block_size: Option<Size>,
    mla_use_output_gate: bool,
    latent_moe_use_norm: bool,
    routed_expert_hidden_size: Option<Size>,
    num_experts: Count,
    num_shared_experts: Count,
    moe_intermediate_size: Option<Size>,
    first_k_dense_replace: Count,
    moe_layer_freq: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    ignore_parts(w, &["vision_tower", "vision_model", "multi_modal_projector", "mm_projector"]);
    let config = &config::text(config)?;
    config::only(
        config,
        json!({"mla_use_nope": true, "hidden_act": "situ", "moe_router_activation_func": "sigmoid"}),
    )?;
    let config = &config::with_defaults(
        config,
        json!({
            "rms_norm_eps": 1e-5, "mla_use_output_gate": false, "latent_moe_use_norm": false,
            "num_experts": 0, "num_experts_per_token": 16, "num_shared_experts": 0, "moe_renormalize": true,
            "moe_router_activation_func": "sigmoid", "routed_scaling_factor": 1.0, "num_expert_group": 1,
            "first_k_dense_replace": 0, "moe_layer_freq": 1,
        }),
    );
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let delta = DeltaLayers::read(config)?;
    let linear = config.get("linear_attn_config");
    let bound = linear.map(|linear| config::field::<Option<f32>>(linear, "gate_lower_bound"));
    let bound = bound.transpose()?.flatten();
    let bound = bound.map(|bound| lower_bound("gate_lower_bound", bound)).transpose()?;
    let latent = LatentSizes::read(config, c.num_attention_heads)?;
    let (body, head) = body(w);
    body.ignore("mtp");
    head.ignore("mtp");
    ignore_prediction_layers(w, &c);
    let mut decoder = Decoder::stack(w, &c, |i, w| {
        let (a, ffn) = (w.at("self_attn"), e.network(w, &c, config, i)?);
        if delta.include(i) {
            let mixer = DeltaNet::kimi(&a, delta.sizes(&c)?, c.rms_norm_eps, bound)?;
            return e.block(w, &c, i, mixer, ffn);
        }
        // The norms of the low-rank projections have an epsilon of their own.
        let mla = Mla::read(&a, &c, &latent, 1e-6, Rope::None)?;
        let gates = config::product("v_head_dim", [c.num_attention_heads, latent.v_head_dim])?;
        let gate = e.mla_use_output_gate.then(|| -> Result<OutputGate> {
            let projection = a.linear("g_proj", c.hidden_size, gates)?;
            Ok(OutputGate { projection, gates, squash: sigmoid })
        });
        e.block(w, &c, i, gated_mla(mla, gate.transpose()?), ffn)
    })?;
    if e.attn_res_block_size.is_some() {
        let mix = BlockMix::read(&body, "output_attn_res", &c)?;
        decoder.blocks.push(Block::new(LastMix(mix)));
    }
    Ok(Box::new(decoder))
}

impl Config {
    fn block(
        &self,
        w: &Scope,
        c: &Text,
        layer: i32,
        mixer: impl Layer + 'static,
        ffn: Ffn,
    ) -> Result<Block> {
        let Some(Size(size)) = self.attn_res_block_size else { return pre_norm(w, c, mixer, ffn) };
        Ok(Block::new(MixedBlock::read(w, c, layer % size == 0, mixer, ffn)?))
    }

    /// The feed-forward network of one layer.
    fn network(&self, w: &Scope, c: &Text, config: &Json, layer: i32) -> Result<Ffn> {
        let is_dense = layer < *self.first_k_dense_replace || layer % *self.moe_layer_freq != 0;
        if is_dense || *self.num_experts == 0 {
            return Ok(Box::new(Mlp::read(&w.at("mlp"), GATE_UP_DOWN, c, self.situ())?));
        }
        let place = if w.has_below("block_sparse_moe") { "block_sparse_moe" } else { "mlp" };
        let (w, count, hidden) = (w.at(place), *self.num_experts, c.hidden_size);
        let Some(Size(inner)) = self.moe_intermediate_size else {
            return Err(Error::config("moe_intermediate_size", "missing"));
        };
        let width = self.routed_expert_hidden_size.map_or(hidden, i32::from);
        let router = kimi_linear::router(&w, c, config)?.rounded();
        let sizes = ExpertSizes { count, width, inner };
        let experts = GatedExperts::read(&w, "switch_mlp", sizes, self.situ())?;
        let routed: Ffn = if self.routed_expert_hidden_size.is_some() {
            let norm = self.latent_moe_use_norm;
            let norm = norm.then(|| w.rms_norm("routed_expert_norm", width, c.rms_norm_eps));
            let (norm, down) = (norm.transpose()?, w.linear("routed_expert_down_proj", hidden, width)?);
            let up = w.linear("routed_expert_up_proj", width, hidden)?;
            Box::new(Map(move |x: &Array| {
                let (ids, weights) = router.route(x)?;
                let y = mix(&experts.forward(&down.forward(x)?, &ids)?, &weights)?;
                up.forward(&norm.as_ref().map_or(Ok(y.clone()), |norm| norm.forward(&y))?)
            }))
        } else {
            Box::new(Moe::new(router, experts))
        };
        let Count(shared) = self.num_shared_experts;
        if shared == 0 {
            return Ok(routed);
        }
        let inner = config::product("num_shared_experts", [shared, inner])?;
        Ok(sum(routed, Mlp::sized_with(&w.at("shared_experts"), c, inner, self.situ())?))
    }

    /// SiTU: `beta · tanh(gate / beta) · sigmoid(gate) · up`, with `up` bounded in the same way where
    /// there is a bound; in float32.
    fn situ(&self) -> impl Gate + use<> {
        let beta = self.activation_situ_beta.map_or(1.0, f32::from);
        let linear_beta = self.activation_situ_linear_beta.map(f32::from);
        let bounded = |x: &Array, bound: f32| -> Result<Array> {
            let bound = Array::from_f32(bound);
            Ok(ops::tanh(&x.divide(&bound)?)?.multiply(bound)?)
        };
        move |gate: &Array, up: &Array| {
            let (gate, wide) = (gate.as_dtype(Dtype::Float32)?, up.as_dtype(Dtype::Float32)?);
            let gate = bounded(&gate, beta)?.multiply(ops::sigmoid(&gate)?)?;
            let values = linear_beta.map_or(Ok(wide.clone()), |bound| bounded(&wide, bound))?;
            Ok(gate.multiply(values)?.as_dtype(up.dtype())?)
        }
    }
}
