//! Whether speculation pays: how often draft tokens are right, against what a verify pass costs.

use std::time::Duration;

/// The lengths of verify passes, the last known token included. They are few, because each is compiled.
pub(crate) const LENGTHS: [usize; 3] = [4, 8, 16];

/// How much more tokens a second speculation must promise. Without it, a step is queued before the
/// token before it is read.
const LEAST_GAIN: f64 = 1.1;

/// What a pass of the first of [`LENGTHS`] costs in steps, and each other one in passes of the length
/// before it, until it has been measured.
const GUESS: f64 = 1.5;

/// The weight of the latest draft token in the rate of acceptance.
const WEIGHT: f64 = 1.0 / 16.0;

/// The rates of acceptance before anything is known: of drafts that little speaks for, and of others.
const PRIOR: [f64; 2] = [0.5, 0.8];

/// From this agreement on, much speaks for a draft.
pub(crate) const MUCH: usize = 8;

/// By this factor an old measurement of a pass approaches the guess with each step without one, so
/// that what a busy machine has measured is measured again.
const KEPT: f64 = 0.999;

/// The share of what was observed that one token makes forget.
const FORGOTTEN: f64 = 0.004;

/// Seconds that a pass takes when nothing disturbs it.
#[derive(Clone, Copy, Debug, Default)]
struct Estimate(Option<f64>);

impl Estimate {
    fn add(&mut self, time: Duration) {
        let time = time.as_secs_f64();
        self.0 = Some(match self.0 {
            None => time,
            Some(old) if time < old => old + 0.5 * (time - old),
            Some(old) => old + 0.05 * (time.min(2.0 * old) - old),
        });
    }
}

/// What the passes of one model cost on this device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Costs {
    step: Estimate,
    passes: [Estimate; LENGTHS.len()],
}

impl Costs {
    /// A decode step has taken this long.
    pub fn add_step(&mut self, time: Duration) {
        self.step.add(time);
        let Some(mut guess) = self.step.0 else { return };
        for pass in &mut self.passes {
            guess *= GUESS;
            if let Some(seconds) = &mut pass.0
                && *seconds > guess
            {
                *seconds = guess + KEPT * (*seconds - guess);
            }
            guess = pass.0.unwrap_or(guess);
        }
    }

    /// A verify pass of a length of [`LENGTHS`] has taken this long, with its sampling.
    pub fn add_pass(&mut self, length: usize, time: Duration) {
        if let Some(place) = LENGTHS.iter().position(|known| *known == length) {
            self.passes[place].add(time);
        }
    }

    /// What a pass of each length costs in steps; none before a step was measured.
    fn in_steps(&self) -> Option<[f64; LENGTHS.len()]> {
        let step = self.step.0.filter(|seconds| *seconds > 0.0)?;
        let mut last = 1.0;
        Some(self.passes.map(|pass| {
            last = pass.0.map_or(last * GUESS, |seconds| seconds / step);
            last
        }))
    }
}

/// The rate of acceptance of one sequence. It is also counted for drafts that were not verified, so
/// speculation comes back when it would pay again.
#[derive(Clone, Debug)]
pub(crate) struct Governor {
    /// Where little speaks for the draft, and where much does.
    rates: [f64; 2],
}

impl Default for Governor {
    fn default() -> Self {
        Governor { rates: PRIOR }
    }
}

impl Governor {
    fn class(agreement: usize) -> usize {
        usize::from(agreement >= MUCH)
    }

    /// A draft token with this agreement before it was right, or was not.
    pub fn observe(&mut self, agreement: usize, is_right: bool) {
        let rate = &mut self.rates[Self::class(agreement)];
        *rate += WEIGHT * (f64::from(u8::from(is_right)) - *rate);
    }

    /// Forgets a little of what was observed, where nothing is while speculation is off.
    pub fn forget(&mut self) {
        for (rate, prior) in self.rates.iter_mut().zip(PRIOR) {
            *rate += FORGOTTEN * (prior - *rate);
        }
    }

    /// The length of the verify pass that promises most tokens a second, if any promises more than
    /// single steps: at most `room` tokens, with a draft of this agreement.
    pub fn choose(&self, costs: &Costs, agreement: usize, room: usize) -> Option<usize> {
        let rate = self.rates[Self::class(agreement)].min(0.999);
        let gain = |length: usize, cost: f64| {
            let tokens = (1.0 - rate.powi(length as i32)) / (1.0 - rate);
            tokens / cost
        };
        let gains = LENGTHS.into_iter().zip(costs.in_steps()?);
        gains
            .filter(|(length, _)| *length <= room)
            .map(|(length, cost)| (length, gain(length, cost)))
            .filter(|(_, gain)| *gain > LEAST_GAIN)
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(length, _)| length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 100;

    fn costs(step: u64, passes: [u64; 3]) -> Costs {
        let mut costs = Costs::default();
        costs.add_step(Duration::from_micros(step));
        for (length, pass) in LENGTHS.into_iter().zip(passes) {
            costs.add_pass(length, Duration::from_micros(pass));
        }
        costs
    }

    fn observe(governor: &mut Governor, agreement: usize, rights: &[bool]) {
        rights.iter().for_each(|is_right| governor.observe(agreement, *is_right));
    }

    #[test]
    fn speculation_stops_where_drafts_are_wrong_and_comes_back_where_they_are_right() {
        let (mut governor, costs) = (Governor::default(), costs(1000, [1300, 1600, 2200]));
        assert!(governor.choose(&costs, 3, ROOM).is_some());
        observe(&mut governor, 3, &[false; 12]);
        assert_eq!(governor.choose(&costs, 3, ROOM), None);
        // What is known of short agreements says little about long ones.
        assert!(governor.choose(&costs, 20, ROOM).is_some());
        observe(&mut governor, 20, &[false; 40]);
        assert_eq!(governor.choose(&costs, 20, ROOM), None);
        observe(&mut governor, 20, &[true; 30]);
        assert!(governor.choose(&costs, 20, ROOM).is_some());
        observe(&mut governor, 20, &[true; 100]);
        assert_eq!(governor.choose(&costs, 20, ROOM), Some(16));
        assert_eq!(governor.choose(&costs, 20, 15), Some(8));
        assert_eq!(governor.choose(&costs, 20, 3), None);

        observe(&mut governor, 20, &[false; 100]);
        let mut tokens = 0;
        while governor.choose(&costs, 20, ROOM).is_none() {
            governor.forget();
            tokens += 1;
        }
        assert!((20..500).contains(&tokens), "{tokens}");
    }

    #[test]
    fn a_pass_that_costs_as_much_as_its_tokens_never_pays() {
        let (mut governor, costs) = (Governor::default(), costs(1000, [4000, 8000, 16_000]));
        observe(&mut governor, 20, &[true; 500]);
        assert_eq!(governor.choose(&costs, 20, ROOM), None);
        // Nothing is judged before a step was measured.
        assert_eq!(governor.choose(&Costs::default(), 20, ROOM), None);
    }

    #[test]
    fn what_a_busy_machine_has_measured_is_measured_again() {
        let (mut governor, mut costs) =
            (Governor::default(), costs(1000, [50_000, 90_000, 99_000]));
        observe(&mut governor, 20, &[true; 500]);
        assert_eq!(governor.choose(&costs, 20, ROOM), None);
        let mut steps = 0;
        while governor.choose(&costs, 20, ROOM).is_none() {
            costs.add_step(Duration::from_millis(1));
            steps += 1;
        }
        assert!((100..10_000).contains(&steps), "{steps}");
        // One disturbed step changes little.
        costs.add_step(Duration::from_secs(5));
        assert!(costs.step.0.unwrap() < 0.0011);
    }
}
