//! What most families use.

pub use crate::{
    config::{self, Count, Epsilon, Json, PerLayer, Positive, RopeScaling, Size, Text},
    decoder::{
        Decoder, FOUR_NORMS, Head, TWO_NORMS, body, ignore_parts, pre_norm, pre_norm_named,
        pre_norm_under, sandwich,
    },
    error::{Error, Result},
    families::Family,
    layer::{Block, CachePlan, Layer, Map, Parallel, Residual, State, Step},
    mlx,
    model::{Cache, Embedded, LanguageModel, Wrapper},
    parts::{
        activation::{self, gelu, gelu_tanh, relu_squared},
        attention::{self, Attention, Mixer, QKVO, QkNorm, join_heads, split_heads},
        conv::CausalConv,
        ffn::{
            Ffn, GATE_UP_DOWN, Gate, Mlp, PlainMlp, dense, gated, geglu, geglu_tanh, sum, swiglu,
        },
        gated_attention::gated_attention,
        kv::{Kv, Scores},
        latent::LatentSizes,
        linear::{Embedding, Experts, Linear, Matrix},
        mamba::{Mamba2, Mamba2Sizes},
        mla::{ExpandedMla, Mla},
        moe::{GatedExperts, Moe, dispatch, mix},
        norm::Norm,
        rope::Rope,
        router::{
            self, LinearRouter, LossFreeRouter, LossFreeRouting, Router, TopK, check_choice,
            first_top_k, softmax_then_top_k, softmax_then_top_k_normalized, top_k,
            top_k_then_softmax,
        },
    },
    state::Recurrent,
    weights::Scope,
};
pub use mlx_rs::{Array, Dtype, ops, ops::indexing::take_along_axis};
pub use serde::Deserialize;
pub use serde_json::json;
