//! Qwen 3.5 and 3.6: Qwen 3 Next with the projections of Gated DeltaNet in four matrices, dense or
//! with experts. Follows `qwen3_5` and `qwen3_5_moe` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::qwen3_next;

pub const FAMILY: Family = Family {
    model_types: &["qwen3_5_text", "qwen3_5_moe_text"],
    build,
    recommended: RECOMMENDED,
};

pub const RECOMMENDED: Recommended = Recommended {
    sampling: Sampling { top_k: 20, ..Sampling::nucleus(1.0, 0.95) },
    ..Recommended::NOTHING
};

pub fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    Ok(Box::new(decoder(&config::text(config)?, w)?))
}

fn decoder(config: &Json, w: &Scope) -> Result<Decoder> {
    let config = config::with_defaults(
        config,
        json!({
            "rms_norm_eps": 1e-6, "intermediate_size": config.get("moe_intermediate_size"),
            "linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4,
        }),
    );
    qwen3_next::decoder(&config, w)
}
