//! Triangular filters at equal distances on a mel scale.

use mlx_rs::Array;

/// How frequencies in Hz become mels.
#[derive(Clone, Copy, Debug)]
pub enum MelScale {
    /// Linear up to 1 kHz, logarithmic above; each filter has an area of 1 (librosa's default).
    Slaney,
    /// `2595 log10(1 + f / 700)`, triangles of height 1 over Hz.
    Htk,
    /// `1127 ln(1 + f / 700)`, triangles of height 1 over mels, as Kaldi has them.
    Kaldi,
}

impl MelScale {
    fn mels(self, hertz: f64) -> f64 {
        match self {
            MelScale::Slaney if hertz < 1000.0 => hertz * 3.0 / 200.0,
            MelScale::Slaney => 15.0 + (hertz / 1000.0).ln() * 27.0 / 6.4_f64.ln(),
            MelScale::Htk => 2595.0 * (1.0 + hertz / 700.0).log10(),
            MelScale::Kaldi => 1127.0 * (1.0 + hertz / 700.0).ln(),
        }
    }

    fn hertz(self, mels: f64) -> f64 {
        match self {
            MelScale::Slaney if mels < 15.0 => mels * 200.0 / 3.0,
            MelScale::Slaney => 1000.0 * ((mels - 15.0) * 6.4_f64.ln() / 27.0).exp(),
            MelScale::Htk => 700.0 * (10_f64.powf(mels / 2595.0) - 1.0),
            MelScale::Kaldi => 700.0 * ((mels / 1127.0).exp() - 1.0),
        }
    }
}

/// The frequencies that a filter bank covers.
#[derive(Clone, Copy, Debug)]
pub struct FilterBank {
    /// Samples a second, in Hz.
    pub sample_rate: f64,
    /// The length of the Fourier transform.
    pub n_fft: usize,
    /// The number of filters.
    pub bins: usize,
    /// The lowest frequency, in Hz.
    pub low: f64,
    /// The highest frequency, in Hz.
    pub high: f64,
}

impl FilterBank {
    /// Filters over all frequencies.
    pub fn whole(sample_rate: f64, n_fft: usize, bins: usize) -> Self {
        FilterBank { sample_rate, n_fft, bins, low: 0.0, high: sample_rate / 2.0 }
    }

    /// The weights `[n_fft / 2 + 1, bins]`, to be multiplied with spectra from the left.
    pub fn weights(&self, scale: MelScale) -> Array {
        let [low, high] = [self.low, self.high].map(|hertz| scale.mels(hertz));
        let step = (high - low) / (self.bins + 1) as f64;
        let is_over_mels = matches!(scale, MelScale::Kaldi);
        let place = |mels: f64| if is_over_mels { mels } else { scale.hertz(mels) };
        let edges: Vec<f64> = (0..self.bins + 2).map(|i| place(low + step * i as f64)).collect();
        let frequencies = self.n_fft / 2 + 1;
        let mut weights = Vec::with_capacity(frequencies * self.bins);
        for i in 0..frequencies {
            let hertz = self.sample_rate * i as f64 / self.n_fft as f64;
            let at = if is_over_mels { scale.mels(hertz) } else { hertz };
            for edge in edges.windows(3) {
                let rise = (at - edge[0]) / (edge[1] - edge[0]);
                let fall = (edge[2] - at) / (edge[2] - edge[1]);
                let area = match scale {
                    MelScale::Slaney => 2.0 / (edge[2] - edge[0]),
                    MelScale::Htk | MelScale::Kaldi => 1.0,
                };
                weights.push((rise.min(fall).max(0.0) * area) as f32);
            }
        }
        Array::from_slice(&weights, &[frequencies as i32, self.bins as i32])
    }
}
