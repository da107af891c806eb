//! Front ends: samples of one channel, between -1 and 1, to spectra and log-mel features.

pub mod conformer;
pub mod conv;
pub mod encoder;
pub mod filter_bank;
pub mod kaldi;
pub mod log_mel;
pub mod normalized_log_mel;
pub mod stft;
