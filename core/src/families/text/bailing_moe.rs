//! Ling and Ring: Llama with a fused QKV projection, in some with normalised queries and keys, and
//! DeepSeek V3's mixture of experts, in some with another scoring function. Follows `bailing_moe`
//! of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::baichuan_m1;

pub const FAMILY: Family =
    Family { model_types: &["bailing_moe"], build, recommended: Recommended::NOTHING };

/// The config, and the weights around the mixers of layers.
pub struct Ling {
    pub text: Text,
    own: Config,
    routing: LossFreeRouting,
    score: fn(&Array) -> Result<Array>,
}

#[derive(Deserialize)]
struct Config {
    moe_intermediate_size: Size,
    moe_shared_expert_intermediate_size: Option<Size>,
    num_shared_experts: Count,
    first_k_dense_replace: Count,
    mlp_layer_types: Option<Vec<String>>,
    rotary_dim: Option<Size>,
    use_qk_norm: bool,
    norm_head: bool,
    moe_router_enable_expert_bias: bool,
    moe_router_enable_shared_expert: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let ling = Ling::read(config)?;
    let (c, refine) = (&ling.text, |router: LossFreeRouter| router.choosing(top_k).rounded());
    let rope = Rope::rotary_dim(c, ling.own.rotary_dim)?;
    Ok(Box::new(ling.decoder(w, refine, |_, w, ffn| {
        pre_norm(w, c, ling.attention(&w.at("attention"), c, rope.clone())?, ffn)
    })?))
}

impl Ling {
    pub fn read(config: &Json) -> Result<Self> {
        let config = &config::with_defaults(
            config,
            json!({
                "use_bias": false, "use_qkv_bias": false, "norm_head": false, "use_qk_norm": false,
                "moe_router_enable_expert_bias": false, "moe_router_enable_shared_expert": true,
                "routed_scaling_factor": 1.0, "score_function": "softmax", "n_group": 1, "topk_group": 4,
                "num_shared_experts": 0,
            }),
        );
        let names = [("use_bias", "mlp_bias"), ("use_qkv_bias", "attention_bias")];
        Ok(Ling {
            text: Text::read_renamed(config, &names)?,
            own: config::read(config)?,
            routing: LossFreeRouting::read(config, &[("num_experts", "n_routed_experts")])?,
            score: router::score(config, "score_function")?,
        })
    }

    /// The decoder, with what `refine` makes of the routers, and blocks of a mixer and this
    /// feed-forward network.
    pub fn decoder(
        &self,
        w: &Scope,
        refine: impl Fn(LossFreeRouter) -> LossFreeRouter,
        block: impl Fn(i32, &Scope, Ffn) -> Result<Block>,
    ) -> Result<Decoder> {
        let Ling { text: c, own, .. } = self;
        // Some checkpoints expect an output head whose columns are divided by their lengths
        // (`norm_head`).
        let head = if own.norm_head { baichuan_m1::unit_head(w, c, 0)? } else { Head::of(w, c)? };
        let names = Names { embedding: "word_embeddings", ..Names::default() };
        Decoder::named(&w.at("model"), names, c, head, |i, w| {
            let mlp = w.at("mlp");
            let is_dense = match &own.mlp_layer_types {
                Some(kinds) => config::entry("mlp_layer_types", kinds, i)? == "dense",
                None => i < *own.first_k_dense_replace,
            };
            let ffn = if is_dense { dense(&mlp, c)? } else { self.experts(&mlp, &refine)? };
            block(i, w, ffn)
        })
    }

    /// Attention with the heads of `c`.
    pub fn attention(&self, w: &Scope, c: &Text, rope: Rope) -> Result<Attention> {
        for (name, biased) in [("query_key_value", *c.attention_bias), ("dense", *c.mlp_bias)] {
            if biased {
                w.at(name).require("bias")?;
            }
        }
        let attention = Attention::fused(w, ["query_key_value", "dense"], c, rope)?;
        if !self.own.use_qk_norm {
            return Ok(attention);
        }
        Ok(attention.qk_norm(QkNorm::before_rope(w, ["query_layernorm", "key_layernorm"], c)?))
    }

    fn experts(
        &self,
        w: &Scope,
        refine: impl Fn(LossFreeRouter) -> LossFreeRouter,
    ) -> Result<Ffn> {
        let Ling { text: c, own: e, routing, score } = self;
        let (count, width, inner) =
            (routing.n_routed_experts, c.hidden_size, *e.moe_intermediate_size);
        let gate = w.at("gate");
        let bias = e.moe_router_enable_expert_bias.then(|| gate.tensor("expert_bias", &[count]));
        let logits = if gate.has("weight") {
            w.linear("gate", width, count)?
        } else {
            gate.linear("gate_proj", width, count)?
        };
        let router = LossFreeRouter::new(logits, bias.transpose()?, routing)?.scores(*score);
        let sizes = ExpertSizes { count, width, inner };
        let moe = Moe::new(refine(router), stacked_experts(w, c, sizes)?);
        let inner = e.moe_shared_expert_intermediate_size.map_or(inner, i32::from);
        let shared = if e.moe_router_enable_shared_expert { *e.num_shared_experts } else { 0 };
        with_shared_expert(w, c, moe, inner, shared)
    }
}
