//! The fields of the config.

use crate::families::prelude::*;
use std::collections::HashMap;

#[derive(Deserialize)]
pub struct Config {
    pub hidden_dim: Size,
    pub style_dim: Size,
    pub n_layer: Size,
    pub n_token: Size,
    pub max_dur: Size,
    pub text_encoder_kernel_size: Size,
    pub plbert: AlbertConfig,
    pub istftnet: GeneratorConfig,
    pub vocab: HashMap<char, u32>,
    pub sample_rate: Option<Size>,
}

#[derive(Deserialize)]
pub struct AlbertConfig {
    pub hidden_size: Size,
    pub num_attention_heads: Size,
    pub intermediate_size: Size,
    pub max_position_embeddings: Size,
    pub num_hidden_layers: Size,
    pub embedding_size: Option<Size>,
    pub layer_norm_eps: Option<Epsilon>,
}

#[derive(Deserialize)]
pub struct GeneratorConfig {
    pub upsample_rates: Vec<Size>,
    pub upsample_kernel_sizes: Vec<Size>,
    pub upsample_initial_channel: Size,
    pub resblock_kernel_sizes: Vec<Size>,
    pub resblock_dilation_sizes: Vec<Vec<Size>>,
    pub gen_istft_n_fft: Size,
    pub gen_istft_hop_size: Size,
}
