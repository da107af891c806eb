//! Mechanisms of audio models: convolutions over time with weight norm, Snake, SEANet, LSTM, vector
//! quantization, and the inverse short-time Fourier transform. Sequences are `[batch, length, channels]`.

pub mod conv;
pub mod lstm;
pub mod noise;
pub mod quantizer;
pub mod seanet;
pub mod sequence;
pub mod snake;
pub mod snake_net;
