//! LongCat Flash: layers of two DeepSeek V3 attentions and two dense networks, across which a
//! mixture of experts takes a shortcut; some of its experts do nothing. Follows `longcat_flash` of
//! mlx-lm.

use crate::{
    parts::{kv::Kv, moe::mix, router::top_k},
    prelude::*,
};
use mlx_rs::ops::indexing::take_along_axis;

pub const FAMILY: Family = Family { model_types: &["longcat_flash"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Config::read(config)?;
    // It predicts further tokens, which nobody needs but a drafter.
    w.at("model").ignore("mtp");
    Ok(Box::new(Decoder::stack(w, &c.text, |_, w| c.block(w))?))
}

pub struct Config {
    pub text: Text,
    latent: LatentSizes,
    experts: ExpertsConfig,
    rope: Rope,
}

#[derive(Deserialize)]
struct ExpertsConfig {
    #[serde(deserialize_with = "config::size")]
    moe_topk: i32,
    #[serde(deserialize_with = "config::size")]
    expert_ffn_hidden_size: i32,
    #[serde(deserialize_with = "config::size")]
    n_routed_experts: i32,
    #[serde(deserialize_with = "config::count")]
    zero_expert_num: i32,
    #[serde(deserialize_with = "config::positive")]
    routed_scaling_factor: f32,
    norm_topk_prob: bool,
    router_bias: bool,
    mla_scale_q_lora: bool,
    mla_scale_kv_lora: bool,
}

impl Config {
    pub fn read(config: &Json) -> Result<Self> {
        let mut config = config::with_defaults(config, json!({
            "norm_topk_prob": false, "router_bias": false, "zero_expert_num": 0,
            "mla_scale_q_lora": true, "mla_scale_kv_lora": true, "tie_word_embeddings": false,
        }));
        for (field, only) in [("attention_method", "MLA"), ("zero_expert_type", "identity")] {
            if let Some(value) = config.get(field).filter(|value| **value != only) {
                return Err(Error::config(field, format!("{value} is not {only}")));
            }
        }
        if let Some(fields) = config.as_object_mut() {
            // Transformers counts attentions here.
            fields.remove("num_hidden_layers");
        }
        let names =
            [("num_layers", "num_hidden_layers"), ("ffn_hidden_size", "intermediate_size")];
        let text = Text::read_renamed(&config, &names)?;
        let latent = LatentSizes::read(&config, text.num_attention_heads)?;
        let (rope, experts) = (latent.rope(&text)?, config::read(&config)?);
        Ok(Config { text, latent, experts, rope })
    }

    pub fn block(&self, w: &Scope) -> Result<Block> {
        let halves = [self.half(w, 0)?, self.half(w, 1)?];
        Ok(Block::new(Shortcut { halves, moe: IdleMoe::read(&w.at("mlp"), self)? }))
    }

    fn half(&self, w: &Scope, i: i32) -> Result<Half> {
        let (c, e) = (&self.text, &self.experts);
        let norm = |name| w.at(name).rms_norm(&i.to_string(), c.hidden_size, c.rms_norm_eps);
        let scale = |rank| (c.hidden_size as f32 / rank as f32).sqrt();
        let q_rank = self.latent.q_lora_rank.filter(|_| e.mla_scale_q_lora);
        let kv_rank = Some(self.latent.kv_lora_rank).filter(|_| e.mla_scale_kv_lora);
        // The norms of low ranks have an epsilon of their own.
        let a = w.at("self_attn").at(i);
        Ok(Half {
            before_attention: norm("input_layernorm")?,
            attention: Mla::read(&a, c, &self.latent, 1e-5, self.rope.clone())?,
            q_scale: q_rank.map(scale),
            latent_scale: kv_rank.map(scale),
            before_mlp: norm("post_attention_layernorm")?,
            mlp: Mlp::read(&w.at("mlps").at(i), GATE_UP_DOWN, c, swiglu)?,
        })
    }
}

struct Shortcut {
    halves: [Half; 2],
    moe: IdleMoe,
}

struct Half {
    before_attention: Norm,
    attention: Mla,
    q_scale: Option<f32>,
    latent_scale: Option<f32>,
    before_mlp: Norm,
    mlp: Mlp,
}

impl Layer for Shortcut {
    type State = (Kv, Kv);

    fn state(&self, plan: &CachePlan) -> (Kv, Kv) {
        (Kv::new(None, plan), Kv::new(None, plan))
    }

    fn forward(&self, x: &Array, (first_kv, second_kv): &mut (Kv, Kv), step: &Step) -> Result<Array> {
        let [first, second] = &self.halves;
        let (h, normed) = first.attend(x, first_kv, step)?;
        let shortcut = self.moe.forward(&normed)?;
        let h = h.add(first.mlp.forward(&normed, &mut (), step)?)?;
        let (h, normed) = second.attend(&h, second_kv, step)?;
        let h = h.add(second.mlp.forward(&normed, &mut (), step)?)?;
        Ok(h.add(shortcut)?)
    }
}

impl Half {
    /// The stream after attention, and what the networks see of it.
    fn attend(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<(Array, Array)> {
        let mut projected = self.attention.project(&self.before_attention.forward(x)?)?;
        let scales = [(&mut projected.q, self.q_scale), (&mut projected.latent, self.latent_scale)];
        for (x, scale) in scales {
            if let Some(scale) = scale {
                *x = x.multiply(mlx::scalar(scale, x.dtype())?)?;
            }
        }
        let rotated = self.attention.rotate(&projected, step)?;
        let h = x.add(self.attention.attend(&projected, &rotated, kv, step)?)?;
        let normed = self.before_mlp.forward(&h)?;
        Ok((h, normed))
    }
}

/// Experts of which those after the last give back what they get.
struct IdleMoe {
    logits: Linear,
    correction: Array,
    experts: GatedExperts,
    count: i32,
    top_k: i32,
    normalize: bool,
    factor: f32,
}

impl IdleMoe {
    fn read(w: &Scope, Config { text, experts: e, .. }: &Config) -> Result<Self> {
        let (width, count) = (text.hidden_size, e.n_routed_experts);
        let all = count + e.zero_expert_num;
        if e.moe_topk > all {
            let reason = format!("{} of {all} experts cannot be chosen", e.moe_topk);
            return Err(Error::config("moe_topk", reason));
        }
        let router = w.at("router");
        let read = if e.router_bias { Scope::linear_with_bias } else { Scope::linear };
        let sizes = [count, width, e.expert_ffn_hidden_size];
        Ok(IdleMoe {
            logits: read(&router, "classifier", width, all)?,
            correction: router.tensor("e_score_correction_bias", &[all])?,
            experts: GatedExperts::read(w, "switch_mlp", sizes, swiglu)?,
            count,
            top_k: e.moe_topk,
            normalize: e.norm_topk_prob,
            factor: e.routed_scaling_factor,
        })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let scores = ops::softmax_axis(self.logits.forward(x)?, -1, None)?;
        let ids = top_k(&scores.add(&self.correction)?, self.top_k)?;
        let mut weights = take_along_axis(&scores, &ids, -1)?;
        let constant = |value| mlx::scalar(value, weights.dtype());
        let (factor, zero) = (constant(self.factor)?, constant(0.0)?);
        if self.normalize {
            let sum = weights.sum_axis(-1, true)?.add(constant(1e-20)?)?;
            weights = weights.divide(sum)?;
        }
        let weights = weights.multiply(factor)?.as_dtype(x.dtype())?;
        let idle = ids.ge(Array::from_int(self.count))?;
        let busy = ops::select(&idle, Array::from_int(0).as_dtype(ids.dtype())?, &ids)?;
        let y = mix(&self.experts.forward(x, &busy)?, &ops::select(&idle, &zero, &weights)?)?;
        let kept = ops::select(&idle, &weights, &zero)?.sum_axis(-1, true)?;
        Ok(y.add(x.multiply(kept)?)?)
    }
}
