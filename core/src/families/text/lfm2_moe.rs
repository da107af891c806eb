//! LFM2 MoE: LFM2 whose later layers have routed experts with a correction bias. Follows `lfm2_moe`
//! of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::lfm2;

pub const FAMILY: Family =
    Family { model_types: &["lfm2_moe"], build, recommended: lfm2::RECOMMENDED };

#[derive(Deserialize)]
struct Config {
    num_experts: Size,
    num_experts_per_tok: Size,
    moe_intermediate_size: Size,
    num_dense_layers: Count,
    norm_topk_prob: bool,
    use_expert_bias: bool,
    routed_scaling_factor: Positive,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({"routed_scaling_factor": 1.0}));
    let (c, e): (Text, Config) = (lfm2::read(config)?, config::read(config)?);
    Ok(Box::new(lfm2::decoder(config, w, &c, |i, w| {
        if i < *e.num_dense_layers { lfm2::mlp(w, &c) } else { e.experts(w, &c) }
    })?))
}

impl Config {
    fn experts(&self, w: &Scope, c: &Text) -> Result<Ffn> {
        let (count, k, inner) =
            (*self.num_experts, *self.num_experts_per_tok, *self.moe_intermediate_size);
        check_choice("num_experts_per_tok", count, k)?;
        let logits = w.linear("gate", c.hidden_size, count)?;
        let bias = self.use_expert_bias.then(|| w.tensor("expert_bias", &[count])).transpose()?;
        let (normalizes, factor) = (self.norm_topk_prob, *self.routed_scaling_factor);
        let router = move |x: &Array| -> Result<(Array, Array)> {
            let scores = ops::sigmoid(logits.forward(x)?)?;
            let ids = match &bias {
                Some(bias) => top_k(&scores.as_dtype(Dtype::Float32)?.add(bias)?, k)?,
                None => top_k(&scores, k)?,
            };
            let mut weights = take_along_axis(&scores, &ids, -1)?;
            let constant = |value| mlx::scalar(value, scores.dtype());
            if normalizes {
                weights = weights.divide(weights.sum_axis(-1, true)?.add(constant(1e-6)?)?)?;
            }
            Ok((ids, weights.multiply(constant(factor)?)?))
        };
        let sizes = ExpertSizes { count, width: c.hidden_size, inner };
        Ok(Box::new(Moe::new(router, stacked_experts(w, c, sizes)?)))
    }
}
