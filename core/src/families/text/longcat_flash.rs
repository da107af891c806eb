//! LongCat Flash: layers with two DeepSeek V3 attentions and two dense MLPs, and a mixture of
//! experts on a shortcut across them; some of its experts are identities. Follows `longcat_flash`
//! of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["longcat_flash"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Config::read(config)?;
    // The multi-token prediction layers are ignored; they are meant for speculative decoding.
    w.at("model").ignore("mtp");
    Ok(Box::new(Decoder::stack(w, &c.text, |_, w| c.block(w))?))
}

pub struct Config {
    pub text: Text,
    latent: LatentSizes,
    own: OwnConfig,
    rope: Rope,
}

#[derive(Deserialize)]
struct OwnConfig {
    moe_topk: Size,
    expert_ffn_hidden_size: Size,
    n_routed_experts: Size,
    zero_expert_num: Count,
    routed_scaling_factor: Positive,
    norm_topk_prob: bool,
    router_bias: bool,
    mla_scale_q_lora: bool,
    mla_scale_kv_lora: bool,
}

impl Config {
    pub fn read(config: &Json) -> Result<Self> {
        config::only(config, json!({"attention_method": "MLA", "zero_expert_type": "identity"}))?;
        // transformers counts attentions as layers.
        let config = &config::without(config, &["num_hidden_layers"]);
        let config = &config::with_defaults(
            config,
            json!({
                "norm_topk_prob": false, "router_bias": false, "zero_expert_num": 0,
                "mla_scale_q_lora": true, "mla_scale_kv_lora": true, "tie_word_embeddings": false,
            }),
        );
        let names = [("num_layers", "num_hidden_layers"), ("ffn_hidden_size", "intermediate_size")];
        let text = Text::read_renamed(config, &names)?;
        let latent = LatentSizes::read(config, text.num_attention_heads)?;
        let rope = latent.rope(&text)?;
        Ok(Config { text, latent, own: config::read(config)?, rope })
    }

    pub fn block(&self, w: &Scope) -> Result<Block> {
        let halves = [self.half(w, 0)?, self.half(w, 1)?];
        Ok(Block::new(Shortcut { halves, experts: self.experts(&w.at("mlp"))? }))
    }

    fn half(&self, w: &Scope, i: i32) -> Result<Half> {
        let (c, e) = (&self.text, &self.own);
        let norm = |name| w.at(name).rms_norm(&i.to_string(), c.hidden_size, c.rms_norm_eps);
        let scale = |rank| (c.hidden_size as f32 / rank as f32).sqrt();
        let q_rank = self.latent.q_lora_rank.filter(|_| e.mla_scale_q_lora);
        let kv_rank = Some(self.latent.kv_lora_rank).filter(|_| e.mla_scale_kv_lora);
        // The norms of the low-rank projections have an epsilon of their own.
        let a = w.at("self_attn").at(i);
        Ok(Half {
            before_attention: norm("input_layernorm")?,
            attention: Mla::read(&a, c, &self.latent, 1e-5, self.rope.clone())?,
            scales: [q_rank.map(scale), kv_rank.map(scale)],
            before_mlp: norm("post_attention_layernorm")?,
            mlp: Mlp::of(&w.at("mlps").at(i), GATE_UP_DOWN, c)?,
        })
    }

    /// A mixture whose expert ids above the number of experts are identities.
    fn experts(&self, w: &Scope) -> Result<Ffn> {
        let (e, width, count) = (&self.own, self.text.hidden_size, *self.own.n_routed_experts);
        let (all, k) = (count + *e.zero_expert_num, *e.moe_topk);
        check_choice("moe_topk", all, k)?;
        let router = w.at("router");
        let read = if e.router_bias { Scope::linear_with_bias } else { Scope::linear };
        let logits = read(&router, "classifier", width, all)?;
        let correction = router.tensor("e_score_correction_bias", &[all])?;
        let (normalize, factor) = (e.norm_topk_prob, *e.routed_scaling_factor);
        let route = move |x: &Array| -> Result<(Array, Array)> {
            let scores = ops::softmax_axis(logits.forward(x)?, -1, None)?;
            let ids = top_k(&scores.add(&correction)?, k)?;
            let mut weights = take_along_axis(&scores, &ids, -1)?;
            let constant = |value| mlx::scalar(value, scores.dtype());
            if normalize {
                let sum = weights.sum_axis(-1, true)?.add(constant(1e-20)?)?;
                weights = weights.divide(sum)?;
            }
            Ok((ids, weights.multiply(constant(factor)?)?.as_dtype(x.dtype())?))
        };
        let sizes = ExpertSizes { count, width, inner: *e.expert_ffn_hidden_size };
        // transformers saves tensors of the identities too.
        (count..all).for_each(|i| w.at("experts").ignore(&i.to_string()));
        let experts = GatedExperts::read(w, "switch_mlp", sizes, gate_of(&self.text)?)?;
        Ok(Box::new(Map(move |x: &Array| {
            let (ids, weights) = route(x)?;
            let idle = ids.ge(Array::from_int(count))?;
            let busy = ops::select(&idle, Array::from_int(0).as_dtype(ids.dtype())?, &ids)?;
            let zero = mlx::scalar(0.0, weights.dtype())?;
            let y = mix(&experts.forward(x, &busy)?, &ops::select(&idle, &zero, &weights)?)?;
            let kept = ops::select(&idle, &weights, &zero)?.sum_axis(-1, true)?;
            Ok(y.add(x.multiply(kept)?)?)
        })))
    }
}

struct Shortcut {
    halves: [Half; 2],
    experts: Ffn,
}

struct Half {
    before_attention: Norm,
    attention: Mla,
    /// The factors of queries and of latents.
    scales: [Option<f32>; 2],
    before_mlp: Norm,
    mlp: Mlp,
}

impl Layer for Shortcut {
    type State = (KvCache, KvCache);

    fn state(&self, plan: &CachePlan) -> (KvCache, KvCache) {
        (KvCache::new(None, plan), KvCache::new(None, plan))
    }

    fn forward(
        &self,
        x: &Array,
        (first_kv, second_kv): &mut (KvCache, KvCache),
        step: &Step,
    ) -> Result<Array> {
        let [first, second] = &self.halves;
        let (h, normed) = first.attend(x, first_kv, step)?;
        let shortcut = self.experts.forward(&normed, &mut (), step)?;
        let h = h.add(first.mlp.apply(&normed)?)?;
        let (h, normed) = second.attend(&h, second_kv, step)?;
        Ok(h.add(second.mlp.apply(&normed)?)?.add(shortcut)?)
    }
}

impl Half {
    /// The residual stream after attention, and its normalised value, which the MLPs read.
    fn attend(&self, x: &Array, kv: &mut KvCache, step: &Step) -> Result<(Array, Array)> {
        let mut projected = self.attention.project(&self.before_attention.forward(x)?)?;
        for (x, scale) in [&mut projected.q, &mut projected.latent].into_iter().zip(self.scales) {
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
