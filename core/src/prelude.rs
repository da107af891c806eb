//! What most families use.

pub use crate::{
    config::{self, Json, Text},
    decoder::{
        Decoder, FOUR_NORMS, Head, TWO_NORMS, body, ignore_parts, pre_norm, pre_norm_named,
        pre_norm_under, sandwich,
    },
    error::{Error, Result},
    families::Family,
    layer::{Block, CachePlan, Layer, Map, Parallel, Residual, State, Step},
    mlx,
    model::{LanguageModel, Wrapper},
    parts::{
        activation::{self, gelu, gelu_tanh, relu_squared},
        attention::{Attention, QKVO, QkNorm},
        conv::CausalConv,
        ffn::{Ffn, GATE_UP_DOWN, Mlp, PlainMlp, gated, geglu, geglu_tanh, sum, swiglu},
        kv::Scores,
        latent::LatentSizes,
        linear::{Embedding, Experts, Linear, Matrix},
        mamba::{Mamba2, Mamba2Sizes},
        mla::{ExpandedMla, Mla},
        moe::{GatedExperts, Moe},
        norm::Norm,
        rope::Rope,
        router::{LinearRouter, LossFreeRouter, LossFreeRouting, Router},
    },
    state::Recurrent,
    weights::Scope,
};
pub use mlx_rs::{Array, ops};
pub use serde::Deserialize;
pub use serde_json::json;
