//! The imports that most families need.

pub(crate) use crate::{
    checkpoint::{
        config::{
            self, ByLayer, Count, Epsilon, Json, PerLayer, Positive, RopeScaling, Size, Text,
        },
        scope::Scope,
    },
    error::{Error, Result},
    families::{Family, Recommended, Sampling},
    layers::{
        algebra::{Block, Layer, Map, Parallel},
        attention::{
            gated::{OutputGate, gated_attention, gated_mla},
            grouped::{self, Attention, Mixer, QKVO, QkNorm, join_heads, split_heads},
            kv_cache::KvCache,
            latent::LatentSizes,
            mla::{ExpandedMla, Mla},
            scores::Scores,
            view::AttentionView,
        },
        cache_plan::CachePlan,
        embedded::Embedded,
        feed_forward::{
            activation::{self, gelu, gelu_tanh, relu_squared},
            mlp::{
                Ffn, GATE_UP_DOWN, Gate, Mlp, MlpNames, PlainMlp, PlainNames, W1_W3_W2, dense,
                gate_of, gated, geglu, sum, swiglu,
            },
            moe::{ExpertSizes, FusedNames, GatedExperts, Moe, dispatch, mix},
            routed_experts::{
                Sparsity, loss_free_router, loss_free_router_at, routed_experts, stacked_experts,
                with_shared_expert,
            },
            router::{
                self, LinearRouter, LossFreeRouter, LossFreeRouting, Router, TopK, check_choice,
                first_top_k, softmax_then_top_k, softmax_then_top_k_normalized, top_k,
                top_k_then_softmax,
            },
        },
        linear::{Embedding, ExpertNames, Experts, Linear},
        norm::Norm,
        position::rope::Rope,
        recurrent::{
            conv::CausalConv,
            decay::Decay,
            delta_net::{DeltaNet, DeltaSizes, short_convs, short_qkv},
            hybrid::LayerKind,
            lightning::{Heads, lightning_attention, log_decays},
            mamba2::{GatedNorm, Mamba2, Mamba2Config},
            rg_lru::RgLru,
            selective_scan::{
                SelectionNorms, SelectiveScan, SelectiveScanBiases, SelectiveScanSizes,
            },
            ssd::{Ssd, SsdInputs, SsdSizes, TimeStepLimit},
            wkv7::{Wkv7Inputs, wkv7},
        },
        residual::Residual,
        state::Recurrent,
        step::{Rotary, Step},
        vision::{
            config::{VisionConfig, in_vision_config, nested as vision_config, square_width},
            encoder::{self, AttentionNames, Encoder, FC1_FC2},
            grid::{Grid, MergeOrder, Wavelengths, rope_2d, rope_2d_of_neighbours},
            patches::{Kernel, PatchEmbedding},
            position_table::{Interpolation, PositionTable},
            siglip::VisionTransformer,
        },
    },
    mlx::{
        self,
        matrix::{Matrix, StackSizes},
    },
    models::{
        cache::Cache,
        decoder::{
            Decoder, Ends, FOUR_NORMS, FourNorms, Head, Names, TWO_NORMS, TwoNorms, body,
            ignore_parts, ignore_prediction_layers, pre_norm, pre_norm_named, pre_norm_under,
            sandwich,
        },
        language::{LanguageModel, Media, Wrapper},
        sighted::{GridPositions, Sighted, Tower, Visibility},
    },
};
pub(crate) use mlx_rs::{Array, Dtype, ops, ops::indexing::take_along_axis};
pub(crate) use serde::Deserialize;
pub(crate) use serde_json::{Value, json};
