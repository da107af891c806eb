//! Klear: Qwen 3's attention; what the routed experts give and what the shared one gives are mixed
//! by two coefficients of each token. Follows `Klear` of mlx-lm.

use super::{glm4_moe::stacked, qwen3, qwen3_moe};
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["klear", "Klear"], build };

#[derive(Deserialize)]
struct Config {
    n_shared_experts: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let experts: qwen3_moe::Config = config::read(config)?;
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let attention = qwen3::attention(&w.at("self_attn"), &c, rope.clone())?;
        let mlp = w.at("mlp");
        let ffn: Ffn = if experts.is_sparse(i) {
            Box::new(Mixed::read(&mlp, &c, &e, &experts)?)
        } else {
            dense(&mlp, &c)?
        };
        pre_norm(w, &c, attention, ffn)
    })?))
}

struct Mixed {
    routed: Moe,
    shared: Mlp,
    coefficient: Linear,
}

impl Mixed {
    fn read(w: &Scope, c: &Text, e: &Config, experts: &qwen3_moe::Config) -> Result<Self> {
        let (count, inner) = (*experts.num_experts, *experts.moe_intermediate_size);
        let routing = LossFreeRouting {
            n_routed_experts: count,
            num_experts_per_tok: *experts.num_experts_per_tok,
            n_group: None,
            topk_group: None,
            norm_topk_prob: experts.norm_topk_prob,
            routed_scaling_factor: 1.0,
        };
        let bias = w.tensor("expert_bias", &[count])?;
        let logits = w.linear("gate", c.hidden_size, count)?;
        let mut router = LossFreeRouter::new(logits, Some(bias), &routing)?;
        if experts.norm_topk_prob {
            router = router.normalized();
        }
        let width = config::product("n_shared_experts", [inner, *e.n_shared_experts])?;
        Ok(Mixed {
            routed: Moe::new(router.rounded(), stacked(w, [count, c.hidden_size, inner])?),
            shared: Mlp::sized(&w.at("shared_experts"), c, width, swiglu)?,
            coefficient: w.linear_with_bias("coefficient", c.hidden_size, 2)?,
        })
    }
}

impl Layer for Mixed {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        let coefficients = ops::softmax_axis(self.coefficient.forward(x)?, -1, true)?;
        let parts = ops::split_equal(&coefficients, 2, -1)?;
        let routed = self.routed.forward(x, &mut (), step)?.multiply(&parts[0])?;
        Ok(routed.add(self.shared.forward(x, &mut (), step)?.multiply(&parts[1])?)?)
    }
}
