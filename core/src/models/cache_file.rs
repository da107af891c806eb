//! A cache as a safetensors file.

use crate::{
    checkpoint::shards::{load_shard, read_header},
    error::{Error, Result},
    layers::cache_plan::{Bound, CachePlan, CacheQuantization},
    mlx::{self, memory},
    models::{
        cache::{Cache, CacheCheckpoint},
        history::History,
        language::LanguageModel,
    },
};
use mlx_rs::{Array, transforms::eval};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{collections::HashMap, fs, path::Path};

/// Version 3 has checkpoints.
const VERSION: u32 = 3;

/// The oldest version that can be read: the first with rotary positions, fixed states, and keys that
/// tell media from each other.
const OLDEST: u32 = 2;

/// The names of the token ids, `[1, positions]`: of a sequence beyond the original context, within
/// it, and partly both.
const TOKENS: [(&str, Option<bool>); 3] =
    [("tokens.long", Some(true)), ("tokens.short", Some(false)), ("tokens", None)];

/// The key of the metadata under which a [`Header`] stands.
const KEY: &str = "mynah.cache";

/// The key of the metadata under which the positions of the checkpoints stand.
const CHECKPOINTS: &str = "mynah.checkpoints";

#[derive(Deserialize, Serialize)]
struct Header {
    version: u32,
    model: String,
    offset: i32,
    capacity: i32,
    quantized: bool,
    /// Whether rotary positions have a delta.
    rotary_delta: bool,
    /// How many arrays each fixed state has.
    fixed: Vec<usize>,
    /// Bits, group size, and the position from which on.
    quantization: Option<(i32, i32, usize)>,
    /// Positions, and how many of them stay.
    bound: Option<(usize, usize)>,
}

/// The arrays of a file, which are read in the order in which they were written.
struct Arrays<'a> {
    path: &'a Path,
    saved: HashMap<String, Array>,
    next: usize,
}

impl Arrays<'_> {
    /// Puts the next array of the file in the place of one of the same shape and type.
    fn fill(&mut self, array: &mut Array) -> Result<()> {
        let i = self.next;
        let found = self.take()?;
        if (found.shape(), found.dtype()) != (array.shape(), array.dtype()) {
            let (shape, expected) = (found.shape(), array.shape());
            let (dtype, wanted) = (found.dtype(), array.dtype());
            return Err(self.unfit(format!(
                "array {i} is {dtype:?} {shape:?}, expected {wanted:?} {expected:?}"
            )));
        }
        *array = found;
        Ok(())
    }

    fn take(&mut self) -> Result<Array> {
        let i = self.next;
        self.next += 1;
        let found = self.saved.remove(&i.to_string());
        found.ok_or_else(|| self.unfit(format!("array {i} is missing")))
    }

    fn finish(self) -> Result<()> {
        match self.saved.len() {
            0 => Ok(()),
            count => Err(self.unfit(format!("holds {count} arrays too many"))),
        }
    }

    fn unfit(&self, reason: String) -> Error {
        Error::SavedCache { file: self.path.into(), reason }
    }
}

impl Header {
    fn of(cache: &mut Cache, fingerprint: &str) -> Self {
        let CachePlan { capacity, quantization, bound } = cache.plan;
        let (fixed, _) = cache.fixed();
        Header {
            version: VERSION,
            model: fingerprint.into(),
            offset: cache.offset,
            capacity,
            quantized: cache.quantized,
            rotary_delta: cache.rotary_delta.is_some(),
            fixed,
            quantization: quantization.map(|q| (q.format.bits, q.format.group, q.from as usize)),
            bound: bound.map(|bound| (bound.positions as usize, bound.keep as usize)),
        }
    }

    fn plan(&self) -> Result<CachePlan> {
        let quantization = |(bits, group, from)| CacheQuantization::new(bits, group, from);
        let bound = |(positions, keep)| Bound::new(positions, keep);
        Ok(CachePlan {
            capacity: self.capacity,
            quantization: self.quantization.map(quantization).transpose()?,
            bound: self.bound.map(bound).transpose()?,
        })
    }

    /// What no cache says of itself.
    fn contradiction(&self) -> Option<&'static str> {
        const MOST: i32 = 1 << 30;
        let most = if self.bound.is_none() { self.capacity } else { MOST };
        if !(1..=MOST).contains(&self.capacity) || !(1..=most).contains(&self.offset) {
            return Some("its positions do not fit its capacity");
        }
        (self.quantized && self.quantization.is_none()).then_some("it is quantized in no way")
    }
}

impl Cache {
    /// As [`Cache::save_with`], without checkpoints.
    ///
    /// # Errors
    /// Those of [`Cache::save_with`].
    pub fn save(
        &mut self,
        path: &Path,
        fingerprint: &str,
        metadata: &HashMap<String, String>,
    ) -> Result<()> {
        self.save_with(&[], path, fingerprint, metadata)
    }

    /// Writes everything to `path`, which ends in `.safetensors`, with checkpoints of this cache,
    /// `metadata` of the caller and the [`fingerprint`](crate::checkpoint::files::Files) of the model. A
    /// file that is there is replaced when the new one is whole.
    ///
    /// # Errors
    /// [`Error::SavedCache`] for an empty cache, for one of several rows, and when the file cannot be written.
    pub fn save_with(
        &mut self,
        checkpoints: &[CacheCheckpoint],
        path: &Path,
        fingerprint: &str,
        metadata: &HashMap<String, String>,
    ) -> Result<()> {
        let unfit = |reason: String| Error::SavedCache { file: path.into(), reason };
        if self.offset == 0 {
            return Err(unfit("there is nothing to save".into()));
        }
        if self.positions().len() > 1 {
            return Err(unfit("a batch is saved row by row".into()));
        }
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            return Err(unfit("its name does not end in `.safetensors`".into()));
        }
        let header = serde_json::to_string(&Header::of(self, fingerprint));
        let mut metadata = metadata.clone();
        metadata.insert(KEY.into(), header.map_err(|error| unfit(error.to_string()))?);
        let positions: Vec<i32> = checkpoints.iter().map(CacheCheckpoint::offset).collect();
        metadata.insert(CHECKPOINTS.into(), json!(positions).to_string());
        let copy =
            |arrays: Vec<&mut Array>| arrays.into_iter().map(|array| array.clone()).collect();
        let mut arrays: Vec<Array> = copy(self.arrays());
        for checkpoint in checkpoints {
            // In the shapes of the cache now, whatever its capacity and precision were then.
            let mut past = self.fork();
            past.restore(checkpoint)?;
            arrays.extend::<Vec<_>>(copy(past.volatile_arrays()));
        }
        let mut named: Vec<_> = (0..).map(|i: usize| i.to_string()).zip(arrays).collect();
        if let Some(history) = self.history.first() {
            let name = TOKENS.iter().find(|(_, is_long)| *is_long == history.is_long);
            if let Some((name, _)) = name {
                named.push((name.to_string(), history.tokens()?));
            }
        }
        let part = path.with_extension("part.safetensors");
        let written = Array::save_safetensors(named, &metadata, &part)
            .map_err(|error| error.to_string())
            // Values that the device has failed to compute are numbers too.
            .and_then(|()| mlx::synchronize().map_err(|error| error.to_string()))
            // MLX does not report a full disk: only reading the header back shows it.
            .and_then(|()| read_header(&part).map_err(|error| error.to_string()))
            .and_then(|_| fs::rename(&part, path).map_err(|error| error.to_string()));
        if written.is_err() {
            fs::remove_file(&part).ok();
        }
        written.map_err(unfit)
    }

    /// As [`Cache::load_with`], without the checkpoints.
    ///
    /// # Errors
    /// Those of [`Cache::load_with`].
    pub fn load(
        path: &Path,
        model: &dyn LanguageModel,
        fingerprint: &str,
    ) -> Result<(Cache, HashMap<String, String>)> {
        let (cache, _, metadata) = Cache::load_with(path, model, fingerprint)?;
        Ok((cache, metadata))
    }

    /// Reads what [`Cache::save_with`] has written for the same model: the cache, its checkpoints in
    /// the order of their positions, and the caller's metadata. What comes next is computed as if the
    /// cache had never left.
    ///
    /// # Errors
    /// [`Error::SavedCache`] when the file is damaged, of another model or of another version of
    /// this library; [`Error::MemoryLimit`].
    pub fn load_with(
        path: &Path,
        model: &dyn LanguageModel,
        fingerprint: &str,
    ) -> Result<(Cache, Vec<CacheCheckpoint>, HashMap<String, String>)> {
        let unfit = |reason: String| Error::SavedCache { file: path.into(), reason };
        let damaged = |error: Error| match error {
            Error::Checkpoint { reason, .. } => unfit(reason),
            other => unfit(other.to_string()),
        };
        let mut metadata =
            read_header(path).map_err(damaged)?.metadata().clone().unwrap_or_default();
        let header = metadata.remove(KEY).ok_or_else(|| unfit("holds no cache".into()))?;
        let no_header = |error: serde_json::Error| unfit(format!("`{KEY}`: {error}"));
        let json: serde_json::Value = serde_json::from_str(&header).map_err(no_header)?;
        if !json["version"].as_u64().is_some_and(|v| (OLDEST.into()..=VERSION.into()).contains(&v))
        {
            let reason = format!(
                "is a cache of format version {}, and this library reads versions {OLDEST} to \
                 {VERSION}; delete it and compute the cache anew",
                json["version"]
            );
            return Err(unfit(reason));
        }
        let header: Header = serde_json::from_value(json).map_err(no_header)?;
        if header.model != fingerprint {
            return Err(unfit("was saved by another model".into()));
        }
        if let Some(contradiction) = header.contradiction() {
            return Err(unfit(contradiction.into()));
        }
        let positions = metadata.remove(CHECKPOINTS).unwrap_or_else(|| "[]".into());
        let positions: Vec<i32> = serde_json::from_str(&positions)
            .ok()
            .filter(|all: &Vec<i32>| all.iter().all(|at| (1..=header.offset).contains(at)))
            .ok_or_else(|| unfit(format!("`{CHECKPOINTS}`: {positions} are no positions of it")))?;
        let plan = header.plan().map_err(damaged)?;
        // Nothing is allocated from the numbers of a file.
        let mut cache = Cache::sketch(model, &plan, header.quantized).map_err(damaged)?;
        cache.rotary_delta = header.rotary_delta.then(|| Array::from_slice(&[0_i32], &[1]));
        let saved = load_shard(path).map_err(damaged)?;
        let fixed = header.fixed.iter().fold(0_usize, |sum, size| sum.saturating_add(*size));
        if fixed > saved.len() || !cache.set_fixed(&header.fixed) {
            return Err(unfit("has other fixed states than the model".into()));
        }
        let mut arrays = Arrays { path, saved, next: 0 };
        // Fixed states have the shapes of the media that they were made from.
        let (_, is_fixed) = cache.fixed();
        for (array, is_fixed) in cache.arrays().into_iter().zip(is_fixed) {
            if is_fixed { *array = arrays.take()? } else { arrays.fill(array)? }
        }
        let found = |(name, is_long): (&str, Option<bool>)| {
            arrays.saved.remove(name).map(|tokens| (tokens, is_long))
        };
        if let Some((tokens, is_long)) = TOKENS.into_iter().find_map(found) {
            if tokens.shape() != [1, header.offset] {
                let (shape, offset) = (tokens.shape(), header.offset);
                return Err(unfit(format!("has tokens {shape:?} for {offset} positions")));
            }
            cache.history = vec![History::of(tokens, is_long)];
        } else if model.original_context().is_some() {
            let reason = "lacks the tokens, which this model needs; delete it and compute it anew";
            return Err(unfit(reason.into()));
        }
        let mut checkpoints = Vec::new();
        for offset in positions {
            let mut past = cache.fork();
            past.volatile_arrays().into_iter().try_for_each(|array| arrays.fill(array))?;
            (past.offset, past.rotary_delta) = (offset, None);
            checkpoints.push(past.checkpoint());
        }
        arrays.finish()?;
        let bytes = checkpoints.iter().map(CacheCheckpoint::bytes).sum::<usize>();
        memory::allow(cache.bytes() + bytes)?;
        // The file may go once this returns.
        let past = checkpoints.iter().flat_map(CacheCheckpoint::arrays);
        let now = cache.arrays().into_iter().map(|array| &*array);
        eval(now.chain(past)).map_err(|e| damaged(e.into()))?;
        cache.offset = header.offset;
        Ok((cache, checkpoints, metadata))
    }
}
