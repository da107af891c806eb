//! Mechanisms of audio models: front ends, which make spectra and log-mel features of samples;
//! convolutions over time with weight norm, Snake, SEANet, LSTM and vector quantization. Sequences are
//! `[batch, length, channels]`.

pub mod anti_aliased;
pub mod batch_norm;
pub mod conformer;
pub mod conv_next;
pub mod convolution;
pub mod convolution_2d;
pub mod ctc;
pub mod encoder;
pub mod filter_bank;
pub mod istft_head;
pub mod kaldi;
pub mod layer_scale;
pub mod log_mel;
pub mod lstm;
pub mod noise;
pub mod normalized_log_mel;
pub mod quantizer;
pub mod seanet;
pub mod seanet_stack;
pub mod sequence;
pub mod snake;
pub mod snake_net;
pub mod stft;
