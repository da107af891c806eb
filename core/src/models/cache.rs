//! The cache of one sequence, or of several that decode together: one state a layer.

use crate::{
    error::{Error, Result},
    layers::{
        cache_plan::CachePlan,
        state::{State, StatePart, Volatile},
    },
    mlx::{self, memory},
    models::history::History,
};
use mlx_rs::{Array, ops};

/// Buffers of a cache grow by this many positions, so that few shapes occur.
const GROWTH: u32 = 256;

/// The states of all layers for one sequence, or for the rows of a batch.
///
/// Sequences are prefilled alone, each in its own cache. [`Cache::join`] makes one cache of them,
/// whose rows decode together at positions of their own, and [`Cache::part`] takes one out again.
pub struct Cache {
    /// How many positions it holds; of a batch, those of the longest row.
    pub offset: i32,
    /// One state a layer.
    pub states: Vec<Box<dyn State>>,
    /// Its capacity is that of the buffers now.
    pub(crate) plan: CachePlan,
    /// The capacity that was asked for.
    expected: i32,
    pub(crate) quantized: bool,
    /// By how many positions each row is behind `offset`; empty where all rows are at it.
    behind: Vec<i32>,
    /// The verify pass that is not accepted yet.
    pub(super) verified: Option<Verified>,
    /// What the rotary positions of the next tokens add to their positions in the sequence, `[batch]`,
    /// once a prompt has had positions of its own.
    pub(crate) rotary_delta: Option<Array>,
    /// The tokens of each row; none unless the model has an original context.
    pub(super) history: Vec<History>,
    /// How long the sequence becomes with the rest of a prompt that is being prefilled.
    expected_length: i32,
}

/// A verify pass: its tokens are computed, and none of them is accepted yet.
pub(super) enum Verified {
    /// The states have set these tokens `[batch, length]` aside.
    Trail(Array),
    /// The caches after none of its tokens, after the first, and so on to all of them.
    Forks(Vec<Cache>),
}

/// A place that a cache can come back to: what rewinding it may not bring back, which is ring
/// buffers and recurrent states.
#[derive(Clone)]
pub struct CacheCheckpoint {
    offset: i32,
    behind: Vec<i32>,
    quantized: bool,
    rotary_delta: Option<Array>,
    volatile: Vec<Volatile>,
    is_long: Vec<Option<bool>>,
}

impl Cache {
    /// A cache of empty states.
    pub fn new(states: Vec<Box<dyn State>>, plan: &CachePlan) -> Self {
        let now = CachePlan { capacity: plan.first_capacity(), ..*plan };
        Cache {
            offset: 0,
            states,
            plan: now,
            expected: plan.capacity,
            quantized: false,
            behind: Vec::new(),
            verified: None,
            rotary_delta: None,
            history: Vec::new(),
            expected_length: 0,
        }
    }

    /// Says how long the sequence becomes before the first token after its prompt, which a prefill in
    /// parts cannot know.
    pub(crate) fn expect_length(&mut self, length: usize) {
        self.expected_length = length as i32;
    }

    /// How long the sequence is known to become with `count` more positions.
    pub(super) fn length_with(&self, count: i32) -> i32 {
        self.expected_length.max(self.offset + count)
    }

    /// Adds the ids `[batch, length]` of a pass to the history of each row.
    pub(super) fn remember(&mut self, ids: &Array) -> Result<()> {
        if let [history] = &mut self.history[..] {
            return history.push(ids.clone());
        }
        for (row, history) in (0..).zip(&mut self.history) {
            history.push(mlx::slice(ids, 0, row, row + 1)?)?;
        }
        Ok(())
    }

    /// Leaves the history with the tokens of the positions that the cache has.
    fn fit_history(&mut self) -> Result<()> {
        self.expected_length = 0;
        let positions = self.positions();
        self.history.iter_mut().zip(positions).try_for_each(|(row, count)| row.truncate(count))
    }

    /// How it was asked to be kept.
    pub fn plan(&self) -> &CachePlan {
        &self.plan
    }

    /// How many positions each row of the batch holds; one number where all hold as many.
    pub fn positions(&self) -> Vec<i32> {
        if self.behind.is_empty() {
            return vec![self.offset];
        }
        self.behind.iter().map(|behind| self.offset - behind).collect()
    }

    fn set_positions(&mut self, positions: &[i32]) {
        self.offset = positions.iter().copied().max().unwrap_or(0);
        self.behind = match positions {
            [_] => Vec::new(),
            _ => positions.iter().map(|position| self.offset - position).collect(),
        };
    }

    /// How many rows its arrays have.
    pub fn rows(&self) -> usize {
        let mut fork = self.fork();
        fork.arrays().first().map_or(1, |array| array.dim(0) as usize)
    }

    fn parts(&mut self) -> impl Iterator<Item = StatePart<'_>> {
        self.states.iter_mut().flat_map(|state| state.parts())
    }

    /// Makes room for `positions` in all.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`], [`Error::Mlx`].
    pub fn reserve(&mut self, positions: i32) -> Result<()> {
        let needed = self.needed(positions);
        if needed > self.plan.capacity {
            let mut grown = self.fork();
            grown.plan.capacity = (needed as u32).next_multiple_of(GROWTH) as i32;
            grown.fit()?;
            memory::allow(grown.bytes())?;
            *self = grown;
        }
        Ok(())
    }

    /// The capacity that `positions` in all need.
    fn needed(&self, positions: i32) -> i32 {
        self.plan.bound.map_or(positions, |bound| positions.min(bound.positions))
    }

    /// Whether its buffers have room for `count` more positions.
    pub(super) fn has_room(&self, count: i32) -> bool {
        self.needed(self.offset + count) <= self.plan.capacity
    }

    /// Gives all states the capacity of the cache.
    pub(super) fn fit(&mut self) -> Result<()> {
        let capacity = self.plan.capacity;
        self.parts().try_for_each(|part| part.reserve(capacity))
    }

    /// Gives up room that a longer sequence has left, if it is most of the capacity.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub(crate) fn shrink(&mut self, positions: usize) -> Result<()> {
        let CachePlan { capacity, .. } = CachePlan::new(positions.max(self.offset as usize));
        if self.plan.capacity / 2 > capacity {
            self.plan.capacity = capacity;
            self.parts().try_for_each(|part| part.shrink(capacity))?;
        }
        Ok(())
    }

    /// Moves on after a pass over `count` positions of each row.
    pub(super) fn advance(&mut self, count: i32) -> Result<()> {
        self.offset += count;
        self.quantize_if_due()
    }

    /// A batch is quantized as a whole, once its shortest row is long enough.
    fn quantize_if_due(&mut self) -> Result<()> {
        if self.quantized || !self.is_due_after(0) { Ok(()) } else { self.quantize() }
    }

    /// Whether the plan wants it quantized after `count` more positions.
    pub(super) fn is_due_after(&self, count: i32) -> bool {
        let shortest = self.offset - self.behind.iter().copied().max().unwrap_or(0);
        self.plan.quantization.is_some_and(|q| shortest + count >= q.from)
    }

    pub(super) fn quantize(&mut self) -> Result<()> {
        self.quantized = true;
        self.parts().try_for_each(StatePart::quantize)?;
        self.plan.capacity = self.plan.capacity.max(self.expected);
        self.fit()
    }

    /// All arrays of the states.
    pub fn arrays(&mut self) -> Vec<&mut Array> {
        let parts = self.states.iter_mut().flat_map(|state| state.parts());
        parts.flat_map(StatePart::arrays).chain(&mut self.rotary_delta).collect()
    }

    /// Those of them that later tokens overwrite beyond recovery.
    pub(super) fn volatile_arrays(&mut self) -> Vec<&mut Array> {
        self.parts().filter(StatePart::is_volatile).flat_map(StatePart::arrays).collect()
    }

    /// What the states set aside in a verify pass.
    pub(super) fn trail(&mut self) -> Vec<&mut Array> {
        self.parts().flat_map(StatePart::trail).collect()
    }

    /// Makes room for what a compiled verify pass sets aside.
    pub(super) fn expect_trail(&mut self) {
        self.parts().for_each(StatePart::expect_trail);
    }

    /// Whether a verify pass can run over several tokens at once.
    pub(super) fn verifies_at_once(&self) -> bool {
        self.fork().parts().all(|part| part.verifies_at_once())
    }

    /// Forgets what belongs to the media of a prompt and to no position: the next prompt brings its
    /// own.
    pub(crate) fn forget_media(&mut self) {
        for part in self.states.iter_mut().flat_map(|state| state.parts()) {
            if let StatePart::Fixed(fixed) = part {
                fixed.0.clear();
            }
        }
        self.rotary_delta = None;
    }

    /// The sizes of the fixed states, and for each of [`Cache::arrays`] whether it is one of theirs.
    pub(super) fn fixed(&mut self) -> (Vec<usize>, Vec<bool>) {
        let (mut sizes, mut is_fixed) = (Vec::new(), Vec::new());
        for part in self.parts() {
            let fixed = matches!(part, StatePart::Fixed(_));
            let count = part.arrays().len();
            if fixed {
                sizes.push(count);
            }
            is_fixed.extend(std::iter::repeat_n(fixed, count));
        }
        is_fixed.extend(self.rotary_delta.iter().map(|_| false));
        (sizes, is_fixed)
    }

    /// Gives each fixed state placeholder arrays, as many as `sizes` says.
    pub(super) fn set_fixed(&mut self, sizes: &[usize]) -> bool {
        let mut fixed: Vec<_> = self
            .parts()
            .filter_map(|part| match part {
                StatePart::Fixed(fixed) => Some(fixed),
                _ => None,
            })
            .collect();
        for (fixed, size) in fixed.iter_mut().zip(sizes) {
            fixed.0 = vec![Array::from_int(0); *size];
        }
        fixed.len() == sizes.len()
    }

    /// The bytes of its arrays, whether or not other caches share them.
    pub fn bytes(&self) -> usize {
        self.fork().arrays().iter().map(|array| array.nbytes()).sum()
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.parts().for_each(StatePart::clear);
        (self.offset, self.quantized, self.rotary_delta) = (0, false, None);
        (self.behind, self.verified) = (Vec::new(), None);
        (self.history, self.expected_length) = (Vec::new(), 0);
    }

    /// Removes all positions; what belongs to none of them stays (see
    /// [`Fixed`](crate::layers::state::Fixed)).
    fn rewind_to_start(&mut self) {
        self.parts().for_each(StatePart::rewind_to_start);
        (self.offset, self.quantized, self.rotary_delta) = (0, false, None);
        (self.behind, self.verified) = (Vec::new(), None);
        (self.history, self.expected_length) = (Vec::new(), 0);
    }

    /// Removes the last `count` positions of each row; `false`, with nothing changed, when a state
    /// cannot. All of them can always be removed. Quantized entries stay quantized.
    pub fn rewind(&mut self, count: i32) -> bool {
        let (from, to) = (self.offset, self.offset - count);
        if to == 0 {
            self.rewind_to_start();
            return true;
        }
        let behind = self.behind.iter().copied().max().unwrap_or(0);
        let can = (behind + 1..=from).contains(&to) && self.parts().all(|p| p.rewinds(from, to));
        if can {
            (self.offset, self.verified) = (to, None);
            return self.fit_history().is_ok();
        }
        can
    }

    /// Whether it could go back to any position by removing those after it.
    pub fn rewinds(&self) -> bool {
        self.fork().parts().all(|part| !part.is_volatile())
    }

    /// The place where it is now. Arrays are shared, and those in it are copied when the cache
    /// changes them.
    pub fn checkpoint(&mut self) -> CacheCheckpoint {
        let volatile = self.parts().map(|part| part.volatile()).collect();
        CacheCheckpoint {
            offset: self.offset,
            behind: self.behind.clone(),
            quantized: self.quantized,
            rotary_delta: self.rotary_delta.clone(),
            volatile,
            is_long: self.history.iter().map(|history| history.is_long).collect(),
        }
    }

    /// Goes back to a checkpoint of this cache, or of one that it was forked from or that was forked
    /// from it, whose positions it still has; `false`, with nothing changed, when it is before it.
    /// Entries that have been quantized since stay quantized.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub fn restore(&mut self, checkpoint: &CacheCheckpoint) -> Result<bool> {
        if checkpoint.offset > self.offset {
            return Ok(false);
        }
        if checkpoint.offset == 0 {
            self.rewind_to_start();
            return Ok(true);
        }
        for (mut part, volatile) in self.parts().zip(&checkpoint.volatile) {
            part.restore(volatile);
        }
        self.offset = checkpoint.offset;
        self.behind.clone_from(&checkpoint.behind);
        self.verified = None;
        self.rotary_delta = checkpoint.rotary_delta.clone();
        self.fit_history()?;
        for (history, then) in self.history.iter_mut().zip(&checkpoint.is_long) {
            history.is_long = history.is_long.filter(|now| Some(*now) == *then);
        }
        self.fit()?;
        if self.quantized || checkpoint.quantized {
            self.quantize()?;
        }
        Ok(true)
    }

    /// A copy that shares its arrays: the one that goes on first copies what it changes. A verify
    /// pass that is not accepted is not copied.
    pub fn fork(&self) -> Cache {
        let states = self.states.iter().map(|state| state.fork()).collect();
        Cache {
            states,
            behind: self.behind.clone(),
            verified: None,
            rotary_delta: self.rotary_delta.clone(),
            history: self.history.clone(),
            ..*self
        }
    }

    /// One cache whose rows are the sequences of `caches`, in this order, for decode steps over all
    /// of them. All must be of one model and have the same plan, none may be empty, and either all
    /// are quantized already or none is. A batch can be joined again, with rows that enter.
    ///
    /// A batch that is to be quantized from some position on is quantized when its shortest row
    /// gets there; a row that is parted is quantized as soon as it is long enough itself.
    ///
    /// # Errors
    /// [`Error::Internal`] for caches that do not fit; [`Error::MemoryLimit`], [`Error::Mlx`].
    pub fn join(mut caches: Vec<Cache>) -> Result<Cache> {
        let unfit = |what: &str| Err(Error::Internal(format!("caches cannot be joined: {what}")));
        let Some(first) = caches.first() else { return unfit("there are none") };
        let (plan, quantized) = (first.plan, first.quantized);
        let capacity = caches.iter().map(|cache| cache.plan.capacity).max().unwrap_or(0);
        for cache in &mut caches {
            if cache.offset == 0 || cache.verified.is_some() {
                return unfit("one is empty or has tokens to accept");
            }
            if (CachePlan { capacity: plan.capacity, ..cache.plan }) != plan {
                return unfit("their plans differ");
            }
            if cache.quantized != quantized {
                return unfit("only some are quantized");
            }
            cache.plan.capacity = capacity;
            cache.fit()?;
        }
        let each = |cache: &Cache| match &cache.positions()[..] {
            [position] => vec![*position; cache.rows()],
            positions => positions.to_vec(),
        };
        let positions: Vec<i32> = caches.iter().flat_map(each).collect();
        // A row without rotary positions of its own has a delta of 0.
        if caches.iter().any(|cache| cache.rotary_delta.is_some()) {
            for cache in &mut caches {
                let none = ops::zeros::<i32>(&[cache.rows() as i32])?;
                cache.rotary_delta.get_or_insert(none);
            }
        }
        let mut joined = caches[0].fork();
        let rows: Vec<Vec<&mut Array>> = caches.iter_mut().map(Cache::arrays).collect();
        if rows.iter().any(|arrays| arrays.len() != rows[0].len()) {
            return unfit("they are of different models");
        }
        for (i, array) in joined.arrays().into_iter().enumerate() {
            let arrays: Vec<&Array> = rows.iter().map(|arrays| &*arrays[i]).collect();
            *array = ops::concatenate(&arrays, 0)?;
        }
        joined.expected = caches.iter().map(|cache| cache.expected).max().unwrap_or(0);
        joined.set_positions(&positions);
        joined.history = caches.iter().flat_map(|cache| cache.history.iter().cloned()).collect();
        memory::allow(joined.bytes())?;
        Ok(joined)
    }

    /// A cache of one row of a batch, which goes on alone or joins another batch.
    ///
    /// # Errors
    /// As [`Cache::select`].
    pub fn part(&self, row: usize) -> Result<Cache> {
        self.select(&[row])
    }

    /// A cache of these rows of a batch, in this order.
    ///
    /// # Errors
    /// [`Error::Internal`] for a row that the batch does not have, or when tokens are still to be
    /// accepted; [`Error::Mlx`].
    pub fn select(&self, rows: &[usize]) -> Result<Cache> {
        let count = self.rows();
        if rows.is_empty() || rows.iter().any(|row| *row >= count) || self.verified.is_some() {
            let reason = format!("a batch of {count} rows cannot give the rows {rows:?} now");
            return Err(Error::Internal(reason));
        }
        let mut chosen = self.fork();
        let positions = self.positions();
        let position = |row: &usize| *positions.get(*row).unwrap_or(&self.offset);
        chosen.set_positions(&rows.iter().map(position).collect::<Vec<_>>());
        let history = |row: &usize| self.history.get(*row).cloned();
        chosen.history = rows.iter().filter_map(history).collect();
        let ids: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
        for array in chosen.arrays() {
            *array = match ids[..] {
                // A slice alone would keep the whole batch.
                [row] => mlx::slice(array, 0, row, row + 1)?.contiguous()?,
                _ => array.take_axis(Array::from_slice(&ids, &[ids.len() as i32]), 0)?,
            };
        }
        chosen.quantize_if_due()?;
        Ok(chosen)
    }

    /// Keeps the first `count` tokens of the last verify pass, as if they had been decode steps, and
    /// takes the others back; of a batch, as many of each row.
    ///
    /// # Errors
    /// As [`Cache::accept_rows`].
    pub fn accept(&mut self, count: i32) -> Result<()> {
        self.accept_rows(&vec![count; self.positions().len()])
    }

    /// As [`Cache::accept`], with a number of tokens for each row.
    ///
    /// # Errors
    /// [`Error::Internal`] without a verify pass before, and for more tokens than it had;
    /// [`Error::Mlx`].
    pub fn accept_rows(&mut self, counts: &[i32]) -> Result<()> {
        let positions = self.positions();
        let length = match &self.verified {
            Some(Verified::Trail(ids)) => ids.dim(1),
            Some(Verified::Forks(forks)) => forks.len() as i32 - 1,
            None => return Err(Error::Internal("no verify pass waits to be accepted".into())),
        };
        if counts.len() != positions.len() || counts.iter().any(|n| !(0..=length).contains(n)) {
            let reason = format!("{counts:?} tokens of {length} in {} rows", positions.len());
            return Err(Error::Internal(reason));
        }
        match self.verified.take() {
            Some(Verified::Forks(mut forks)) => {
                *self = match counts {
                    [count] => forks.swap_remove(*count as usize),
                    counts if counts.iter().all(|count| *count == counts[0]) => {
                        forks.swap_remove(counts[0] as usize)
                    }
                    counts => {
                        let row = |(row, count): (usize, &i32)| forks[*count as usize].part(row);
                        Cache::join(counts.iter().enumerate().map(row).collect::<Result<_>>()?)?
                    }
                };
            }
            Some(Verified::Trail(ids)) => {
                self.parts().try_for_each(|part| part.accept(counts, &positions))?;
                self.remember(&ids)?;
                let accepted: Vec<i32> =
                    positions.iter().zip(counts).map(|(from, count)| from + count).collect();
                self.set_positions(&accepted);
                self.fit_history()?;
            }
            None => {}
        }
        self.quantize_if_due()
    }
}

impl CacheCheckpoint {
    /// How many positions the cache held.
    pub fn offset(&self) -> i32 {
        self.offset
    }

    /// The bytes of its arrays, whether or not others share them: none where a cache can rewind.
    pub fn bytes(&self) -> usize {
        self.arrays().map(Array::nbytes).sum()
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.volatile.iter().flat_map(Volatile::arrays)
    }
}
