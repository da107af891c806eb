//! ERNIE 4.5 with experts: ERNIE 4.5 (dense) with routed and shared experts in some layers. Follows
//! `ernie4_5_moe` of mlx-lm, and transformers for the correction bias of the router.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["ernie4_5_moe"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    moe_intermediate_size: Count,
    moe_num_shared_experts: Count,
    moe_layer_interval: Size,
    /// A layer index, or one for each kind of expert.
    moe_layer_start_index: PerLayer<i64>,
    moe_layer_end_index: Option<PerLayer<i64>>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "moe_k": 1, "moe_layer_interval": 1, "moe_layer_start_index": 0, "moe_gate_act": "softmax",
            "moe_intermediate_size": 0, "moe_num_shared_experts": 0, "norm_topk_prob": true,
            "routed_scaling_factor": 1.0, "rope_traditional": true, "tie_word_embeddings": true,
        }),
    );
    let names = [("use_bias", "attention_bias"), ("use_bias", "mlp_bias")];
    let (c, e): (Text, Config) = (Text::read_renamed(config, &names)?, config::read(config)?);
    let sparse = e.sparse()?;
    config::only(config, json!({"moe_norm_min": 1e-12}))?;
    let rope = Rope::of(&c)?;
    // The multi-token prediction layers are ignored; they are meant for speculative decoding.
    ignore_parts(w, &["mtp_block", "mtp_linear_proj", "mtp_hidden_norm", "mtp_emb_norm"]);
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
        let mlp = w.at("mlp");
        let ffn = if sparse(i) { experts(&mlp, &c, &e, config)? } else { dense(&mlp, &c)? };
        pre_norm(w, &c, attention, ffn)
    })?))
}

impl Config {
    /// The layers with experts.
    fn sparse(&self) -> Result<impl Fn(i32) -> bool> {
        let empty = |field| move || Error::config(field, "is empty");
        let starts = self.moe_layer_start_index.entries().iter().min();
        let start = *starts.ok_or_else(empty("moe_layer_start_index"))?;
        let ends = self.moe_layer_end_index.as_ref().map(|ends| ends.entries().iter().max());
        let end = *ends.unwrap_or(Some(&-1)).ok_or_else(empty("moe_layer_end_index"))?;
        let Size(interval) = self.moe_layer_interval;
        Ok(move |layer: i32| {
            let within = i64::from(layer) >= start && (end < 0 || i64::from(layer) <= end);
            (layer + 1) % interval == 0 && within
        })
    }
}

fn experts(w: &Scope, c: &Text, e: &Config, config: &Json) -> Result<Ffn> {
    let names = [("moe_num_experts", "n_routed_experts"), ("moe_k", "num_experts_per_tok")];
    let routing = LossFreeRouting::read(config, &names)?;
    let count = routing.n_routed_experts;
    let inner = match *e.moe_intermediate_size {
        0 => c.intermediate_size,
        inner => inner,
    };
    // MLX checkpoints omit it.
    let statics = w.at("moe_statics");
    let correction = statics.optional("e_score_correction_bias", &[1, count])?;
    let logits = w.linear("gate", c.hidden_size, count)?;
    check_choice("moe_k", count, routing.num_experts_per_tok)?;
    let router = LossFreeRouter::new(logits, correction, &routing)?.normalized();
    let router = router.scores(router::score(config, "moe_gate_act")?);
    let moe =
        Moe::new(router, stacked_experts(w, c, ExpertSizes { count, width: c.hidden_size, inner })?);
    with_shared_expert(w, c, moe, inner, *e.moe_num_shared_experts)
}
