//! What most families use.

pub use crate::{
    config::{self, Json, Text},
    decoder::{Decoder, Head, body, pre_norm, pre_norm_named},
    error::{Error, Result},
    families::Family,
    layer::{Block, CachePlan, Layer, Parallel, Residual, State, Step},
    mlx,
    model::{LanguageModel, Wrapper},
    parts::{
        attention::{Attention, QKVO, QkNorm},
        conv::CausalConv,
        ffn::{
            Ffn, GATE_UP_DOWN, Mlp, PlainMlp, geglu, geglu_tanh, gelu, gelu_tanh, relu_squared,
            sum, swiglu,
        },
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
