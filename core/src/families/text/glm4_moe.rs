//! GLM 4.5 to 4.7: Llama with the biases of Qwen 2, a partial rotary embedding, and DeepSeek V3's
//! mixture of routed and shared experts. Follows `glm4_moe` of mlx-lm, and transformers for
//! `rope_scaling`.

use crate::families::prelude::*;
use crate::families::text::qwen2;

pub const FAMILY: Family =
    Family { model_types: &["glm4_moe"], build, recommended: Recommended::NOTHING };

pub fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(config)?;
    let use_qk_norm: bool = config::field(config, "use_qk_norm")?;
    let sparsity = Sparsity::read(config, c.num_hidden_layers)?;
    let routing: LossFreeRouting = config::read(config)?;
    let rope = Rope::share(&c, 0.5)?;
    ignore_prediction_layers(w, &c);
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let a = w.at("self_attn");
        let mut attention = qwen2::attention(&a, &c, rope.clone())?;
        if use_qk_norm {
            attention = attention.qk_norm(QkNorm::before_rope(&a, ["q_norm", "k_norm"], &c)?);
        }
        let network =
            sparsity.network(&w.at("mlp"), &c, i, |w, _| loss_free_router(w, &c, &routing))?;
        pre_norm(w, &c, attention, network)
    })?))
}
