//! Solar Open: GLM 4.5 with a rotary embedding of the whole head. Follows `solar_open` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::glm4_moe;

pub const FAMILY: Family =
    Family { model_types: &["solar_open"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    glm4_moe::build(
        &config::with_defaults(
            config,
            json!({
                "partial_rotary_factor": 1.0, "use_qk_norm": false,
                "first_k_dense_replace": 0, "intermediate_size": config.get("moe_intermediate_size"),
                "rope_theta": 1e6,
            }),
        ),
        w,
    )
}
