//! A change of the sample rate by a polyphase FIR filter: a sinc of 64 zero crossings on each side
//! under a Kaiser window of β 14.77, cut off at 0.9476 of the lower Nyquist frequency. It attenuates
//! aliases by more than 120 dB and delays by 64 samples of the lower rate (4 ms at 16 kHz).
//!
//! These are the samples that `scipy.signal.resample_poly` gives with resampy's "kaiser_best" filter,
//! which is how references read audio files; rubato's filters differ from it.

use crate::error::{Error, Result};
use std::{f64::consts::PI, ops::RangeInclusive};

/// Zero crossings of the sinc on each side.
const ZERO_CROSSINGS: u32 = 64;
const ROLLOFF: f64 = 0.947_593_716_739_959_6;
const BETA: f64 = 14.769_656_459_379_492;

/// The rates that it converts, in Hz. Telephones have 8 kHz, studios at most 384 kHz.
const RATES: RangeInclusive<u32> = 1_000..=384_000;

/// Converts a stream of samples of one channel to another rate.
pub struct Resampler {
    /// Output samples for each `down` input samples.
    up: usize,
    down: usize,
    /// Half the length of the filter, in steps of `1 / up` of an input sample.
    half: usize,
    /// For each phase, the factors of the input samples, oldest first.
    phases: Vec<Vec<f32>>,
    /// The last input samples; the first one has index `start`, counted from the first sample after
    /// the padding.
    recent: Vec<f32>,
    start: usize,
    /// How many samples came in and went out.
    taken: usize,
    given: usize,
}

impl Resampler {
    /// Converts from one rate to another one, both in Hz.
    ///
    /// # Errors
    /// [`Error::Option`] for a rate outside 1 kHz to 384 kHz.
    pub fn new(from: u32, to: u32) -> Result<Self> {
        if let Some(rate) = [from, to].into_iter().find(|rate| !RATES.contains(rate)) {
            let reason = format!("{rate} Hz is outside 1 kHz to 384 kHz; resample the audio first");
            return Err(Error::option("sample_rate", reason));
        }
        let divisor = greatest_common_divisor(from, to);
        let (up, down) = (to / divisor, from / divisor);
        let (up_steps, half) = (up as usize, (ZERO_CROSSINGS * up.max(down)) as usize);
        let phases = if up == down { Vec::new() } else { phases(&filter(up.max(down)), up_steps) };
        Ok(Resampler {
            up: up_steps,
            down: down as usize,
            half,
            phases,
            recent: Vec::new(),
            start: 0,
            taken: 0,
            given: 0,
        })
    }

    /// Takes samples and appends those of the new rate that follow from the samples so far.
    pub fn push(&mut self, samples: &[f32], out: &mut Vec<f32>) {
        let Some(first) = samples.first() else { return };
        if self.phases.is_empty() {
            out.extend_from_slice(samples);
            return;
        }
        if self.taken == 0 {
            // The sound before the beginning is its first sample.
            self.recent = vec![*first; self.taps()];
        }
        self.taken += samples.len();
        self.recent.extend_from_slice(samples);
        self.give(usize::MAX, out);
    }

    /// Appends the samples that are still missing: in all, the length of the input times the ratio of
    /// the rates, rounded up. The sound after the end is its last sample.
    pub fn finish(&mut self, out: &mut Vec<f32>) {
        let Some(last) = self.recent.last().copied() else { return };
        let total = (self.taken * self.up).div_ceil(self.down);
        self.recent.resize(self.recent.len() + self.taps(), last);
        self.give(total, out);
    }

    /// The number of input samples that one output sample depends on.
    fn taps(&self) -> usize {
        self.phases.first().map_or(0, Vec::len)
    }

    /// Appends the output samples up to `total` whose input is there.
    fn give(&mut self, total: usize, out: &mut Vec<f32>) {
        let taps = self.taps();
        while self.given < total {
            let step = self.given * self.down + self.half;
            // `recent[0]` is input sample `start - taps`, and the last factor is that of `newest`.
            let newest = step / self.up + taps - self.start;
            let Some(window) = self.recent.get(newest + 1 - taps..=newest) else { break };
            let factors = &self.phases[step % self.up];
            out.push(dot(factors, window));
            self.given += 1;
        }
        let oldest = (self.given * self.down + self.half) / self.up + 1 - self.start;
        let unneeded = oldest.min(self.recent.len().saturating_sub(1));
        self.recent.drain(..unneeded);
        self.start += unneeded;
    }
}

/// The sum of products, in lanes that the compiler turns into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    let mut lanes = [0.0; 8];
    for (a, b) in a.zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// The windowed sinc, with a sum of 1, for a cut-off at `1 / rate` of the Nyquist frequency.
fn filter(rate: u32) -> Vec<f64> {
    let half = f64::from(ZERO_CROSSINGS * rate);
    let cutoff = ROLLOFF / f64::from(rate);
    let value = |i: u32| {
        let x = f64::from(i) - half;
        let angle = PI * cutoff * x;
        let sinc = if x == 0.0 { 1.0 } else { angle.sin() / angle };
        sinc * bessel_i0(BETA * (1.0 - (x / half).powi(2)).max(0.0).sqrt())
    };
    let mut filter: Vec<f64> = (0..=2 * ZERO_CROSSINGS * rate).map(value).collect();
    let sum: f64 = filter.iter().sum();
    filter.iter_mut().for_each(|value| *value /= sum);
    filter
}

/// Every `up`-th value of the filter, from each phase on, for samples from the oldest to the newest.
fn phases(filter: &[f64], up: usize) -> Vec<Vec<f32>> {
    let taps = filter.len().div_ceil(up);
    let factor = |i: usize| (filter.get(i).copied().unwrap_or(0.0) * up as f64) as f32;
    (0..up).map(|phase| (0..taps).rev().map(|tap| factor(phase + tap * up)).collect()).collect()
}

/// The modified Bessel function of order 0, by its series.
fn bessel_i0(x: f64) -> f64 {
    let (mut sum, mut term, mut k) = (1.0, 1.0, 1.0);
    while term > sum * 1e-17 {
        term *= (x / (2.0 * k)).powi(2);
        sum += term;
        k += 1.0;
    }
    sum
}
