//! Strict access to a checkpoint: every read names a shape, and every tensor must be read.
//!
//! Reading is lazy. [`Scope::finish`] brings what was read into memory, in the order in which it
//! was read, each byte once.

use crate::{
    checkpoint::{
        adapter::Adapter, config::Json, files::Files, quantization::Quantization, shards,
    },
    error::{Error, Result},
    mlx::{self, memory},
};
use mlx_rs::{Array, Dtype, transforms::eval};
use serde_json::Value;
use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    fmt::Display,
    rc::Rc,
};

/// Tensors that some files carry and no model needs.
const NEVER_NEEDED: &[&str] = &[
    // Precomputed rotary frequencies of old exporters; they follow from the config.
    "rotary_emb.inv_freq",
];

/// What only the values of a tensor can tell.
type Check = Box<dyn FnOnce() -> Result<()>>;

pub(super) struct Store {
    pub unread: RefCell<HashMap<String, Array>>,
    read: RefCell<Vec<Array>>,
    /// They wait until tensors are read in earnest: an inspection has names and shapes only.
    checks: RefCell<Vec<Check>>,
    pub quantization: Quantization,
    adapter: Option<Adapter>,
    config: Json,
    /// What all floating-point tensors become, where the file says so.
    precision: Option<Dtype>,
}

/// A place in the checkpoint's tree of names, such as `model.layers.3`.
#[derive(Clone)]
pub struct Scope {
    pub(super) store: Rc<Store>,
    pub(super) path: String,
    /// Whether the path is itself a tensor, whose companions are not below but beside it.
    pub(super) is_parameter: bool,
    /// Whether matrices are stored the other way round.
    pub(super) is_transposed: bool,
}

impl Scope {
    /// Opens the weights of a checkpoint: the shards that its index names, else `model*.safetensors`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a missing shard, a damaged header, a size that does not match, a
    /// tensor that stands in two shards; [`Error::Quantization`] for a scheme that is not supported.
    pub fn open(files: &Files, config: &Value) -> Result<Self> {
        let config = Json::from(config);
        let quantization = Quantization::of_checkpoint(files, &config)?;
        Ok(Scope::over(shards::tensors(files)?, config, quantization))
    }

    /// As [`Scope::open`], with an adapter, if there is one.
    pub(crate) fn open_with(
        files: &Files,
        adapter: Option<&Files>,
        config: &Value,
    ) -> Result<Self> {
        let scope = Scope::open(files, config)?;
        match adapter {
            Some(adapter) => scope.with_adapter(adapter),
            None => Ok(scope),
        }
    }

    /// A scope over tensors that are already at hand.
    ///
    /// # Errors
    /// [`Error::Quantization`] for a scheme that is not supported.
    pub fn new(tensors: HashMap<String, Array>, config: &Value) -> Result<Self> {
        let config = Json::from(config);
        let quantization = Quantization::read(&config)?;
        Ok(Scope::over(tensors, config, quantization))
    }

    fn over(tensors: HashMap<String, Array>, config: Json, quantization: Quantization) -> Self {
        let precision = quantization.precision(&tensors);
        let (unread, read) = (RefCell::new(tensors), RefCell::default());
        let (checks, adapter) = (RefCell::default(), None);
        let store =
            Rc::new(Store { unread, read, checks, quantization, adapter, config, precision });
        Scope { store, path: String::new(), is_parameter: false, is_transposed: false }
    }

    /// With the adapter in a folder, before anything is read.
    ///
    /// # Errors
    /// [`Error::Config`] for a kind of adapter that is not supported; [`Error::Checkpoint`] for a
    /// damaged file; [`Error::TensorShape`] and [`Error::Adapter`] where it does not fit.
    pub fn with_adapter(mut self, files: &Files) -> Result<Self> {
        let adapter = Adapter::open(files)?;
        let store = Rc::get_mut(&mut self.store);
        let store = store.ok_or_else(|| Error::Internal("reading has begun".into()))?;
        adapter.replace(store.unread.get_mut())?;
        store.adapter = Some(adapter);
        Ok(self)
    }

    /// The place `name` below this one.
    pub fn at(&self, name: impl Display) -> Scope {
        Scope { path: self.name(name), is_parameter: false, ..self.clone() }
    }

    /// The place of a matrix that is not called `{name}.weight` but `name`, as stacked experts of
    /// Hugging Face files are; its scales are called `{name}_weight_scale`, `{name}_scale` and so on.
    pub fn parameter(&self, name: impl Display) -> Scope {
        Scope { is_parameter: true, ..self.at(name) }
    }

    /// The same place, where matrices are stored as `[…, input, output]`.
    pub fn transposed(&self) -> Scope {
        Scope { is_transposed: true, ..self.clone() }
    }

    pub(super) fn name(&self, name: impl Display) -> String {
        if self.is_parameter {
            return self.name_beside(&name.to_string());
        }
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    fn name_beside(&self, name: &str) -> String {
        if name == "weight" {
            return self.path.clone();
        }
        let whole = format!("{}_{name}", self.path);
        match name.strip_prefix("weight_") {
            Some(short) if !self.store.unread.borrow().contains_key(&whole) => {
                format!("{}_{short}", self.path)
            }
            _ => whole,
        }
    }

    /// Whether a tensor of this name is there and not read yet.
    pub fn has(&self, name: &str) -> bool {
        self.store.unread.borrow().contains_key(&self.name(name))
    }

    /// An error unless a tensor of this name is there and not read yet.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn require(&self, name: &str) -> Result<()> {
        if self.has(name) { Ok(()) } else { Err(Error::MissingTensor(self.name(name))) }
    }

    /// Whether there are unread tensors below `name`.
    pub fn has_below(&self, name: &str) -> bool {
        let prefix = self.name(name) + ".";
        self.store.unread.borrow().keys().any(|tensor| tensor.starts_with(&prefix))
    }

    /// The shape of a tensor that is there and not read yet.
    pub fn shape(&self, name: &str) -> Option<Vec<i32>> {
        self.store.unread.borrow().get(&self.name(name)).map(|tensor| tensor.shape().to_vec())
    }

    /// The type of a tensor that is there and not read yet.
    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.store.unread.borrow().get(&self.name(name)).map(Array::dtype)
    }

    /// The full name of a tensor here.
    pub(crate) fn full_name(&self, name: &str) -> String {
        self.name(name)
    }

    /// What is added to the matrices, if anything.
    pub(crate) fn adapter(&self) -> Option<&Adapter> {
        self.store.adapter.as_ref()
    }

    /// The config of the checkpoint, which remembers what was read of it.
    pub fn config(&self) -> &Json {
        &self.store.config
    }

    /// What the checkpoint says about quantized tensors.
    pub(crate) fn quantization(&self) -> &Quantization {
        &self.store.quantization
    }

    /// Leaves the tensors below `name` unread, where the family knows why nobody needs them.
    pub fn ignore(&self, name: &str) {
        let (exact, prefix) = (self.name(name), self.name(name) + ".");
        let keep = |tensor: &String| *tensor != exact && !tensor.starts_with(&prefix);
        self.store.unread.borrow_mut().retain(|tensor, _| keep(tensor));
    }

    /// As [`Scope::ignore`], for all names here that start so.
    pub fn ignore_starting(&self, start: &str) {
        let start = self.name(start);
        self.store.unread.borrow_mut().retain(|tensor, _| !tensor.starts_with(&start));
    }

    /// Leaves all tensors here unread whose name ends in one of these components.
    pub fn ignore_named(&self, components: &[&str]) {
        let ignored = |tensor: &String| {
            tensor.starts_with(&self.path)
                && tensor.rsplit('.').next().is_some_and(|last| components.contains(&last))
        };
        self.store.unread.borrow_mut().retain(|tensor, _| !ignored(tensor));
    }

    pub(crate) fn take_any(&self, name: &str) -> Result<Array> {
        let name = self.name(name);
        let tensor = self.store.unread.borrow_mut().remove(&name);
        tensor.ok_or(Error::MissingTensor(name))
    }

    /// Reads a tensor from which the family makes what the model uses; it [`Scope::keep`]s that.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`]; [`Error::Quantization`] when it holds
    /// integers.
    pub fn take(&self, name: &str, shape: &[i32]) -> Result<Array> {
        let tensor = self.take_any(name)?;
        // Weights packed into bytes have another shape too; that they are packed says more.
        if tensor.dtype() == Dtype::Uint8 {
            return Err(self.integers(name, &tensor));
        }
        if tensor.shape() != shape {
            return Err(self.misshaped(name, &tensor, shape));
        }
        if !mlx::is_floating(&tensor) {
            return Err(self.integers(name, &tensor));
        }
        match self.store.precision {
            Some(dtype) if dtype != tensor.dtype() => Ok(tensor.as_dtype(dtype)?),
            _ => Ok(tensor),
        }
    }

    /// As [`Scope::take`], for a tensor of bytes.
    ///
    /// # Errors
    /// As [`Scope::take`].
    pub fn take_bytes(&self, name: &str, shape: &[i32]) -> Result<Array> {
        self.take_as(name, shape, Dtype::Uint8)
    }

    /// As [`Scope::take`], for a tensor of exactly this type.
    pub(crate) fn take_as(&self, name: &str, shape: &[i32], dtype: Dtype) -> Result<Array> {
        let tensor = self.take_any(name)?;
        if tensor.shape() != shape {
            return Err(self.misshaped(name, &tensor, shape));
        }
        if tensor.dtype() != dtype {
            let reason = format!("holds {:?}, not {dtype:?}", tensor.dtype());
            return Err(Error::Quantization { path: self.name(name), reason });
        }
        Ok(tensor)
    }

    pub(super) fn integers(&self, name: &str, tensor: &Array) -> Error {
        let reason = format!("holds {:?}, and no format that is supported", tensor.dtype());
        Error::Quantization { path: self.name(name), reason }
    }

    pub(crate) fn misshaped(&self, name: &str, tensor: &Array, expected: &[i32]) -> Error {
        let (found, expected) = (tensor.shape().to_vec(), expected.to_vec());
        Error::TensorShape { name: self.name(name), found, expected }
    }

    /// Remembers an array that the model will use, so that [`Scope::finish`] computes it.
    pub fn keep(&self, array: Array) -> Array {
        self.store.read.borrow_mut().push(array.clone());
        array
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`].
    pub fn tensor(&self, name: &str, shape: &[i32]) -> Result<Array> {
        Ok(self.keep(self.take(name, shape)?))
    }

    /// Reads one tensor if it is there.
    ///
    /// # Errors
    /// [`Error::TensorShape`].
    pub fn optional(&self, name: &str, shape: &[i32]) -> Result<Option<Array>> {
        self.has(name).then(|| self.tensor(name, shape)).transpose()
    }

    /// Looks at values once there are any.
    pub(crate) fn check_later(&self, check: impl FnOnce() -> Result<()> + 'static) {
        self.store.checks.borrow_mut().push(Box::new(check));
    }

    /// Checks that nothing is left unread and brings all that was read into memory; `progress`
    /// gets the share that is there, from 0 to 1.
    ///
    /// # Errors
    /// [`Error::UnusedTensors`]; [`Error::MemoryLimit`]; [`Error::Mlx`] when a file cannot be read.
    pub fn finish(&self, mut progress: impl FnMut(f32)) -> Result<()> {
        let mut reading = self.reading()?;
        while let Some(share) = reading.next()? {
            progress(share);
        }
        Ok(())
    }

    /// As [`Scope::finish`], for whoever has other things to do meanwhile.
    pub(crate) fn reading(&self) -> Result<Reading> {
        let unread = self.store.unread.take();
        let needed = |name: &&String| {
            !NEVER_NEEDED.iter().any(|suffix| name.ends_with(suffix))
                && !self.store.quantization.is_superfluous(name)
        };
        let unused: BTreeSet<_> = unread.keys().filter(needed).cloned().collect();
        if !unused.is_empty() {
            return Err(Error::UnusedTensors(unused.into_iter().collect()));
        }
        self.adapter().map_or(Ok(()), Adapter::finish)?;
        let arrays = self.store.read.take();
        let total = arrays.iter().map(Array::nbytes).sum();
        Ok(Reading { checks: self.store.checks.take(), arrays: arrays.into_iter(), done: 0, total })
    }
}

/// Tensors on their way into memory.
pub(crate) struct Reading {
    checks: Vec<Check>,
    arrays: std::vec::IntoIter<Array>,
    done: usize,
    total: usize,
}

impl Reading {
    /// Bytes of memory that all of them take.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Brings the next batch into memory; gives the share that is there, and nothing at the end.
    pub(crate) fn next(&mut self) -> Result<Option<f32>> {
        // Batches keep the readers busy and bound what stacking holds twice.
        const BATCH: usize = 64 << 20;
        // Others may have taken memory since the last batch.
        memory::allow(self.total - self.done)?;
        self.checks.drain(..).try_for_each(|check| check())?;
        let (mut batch, mut size) = (Vec::new(), 0);
        while size < BATCH
            && let Some(array) = self.arrays.next()
        {
            size += array.nbytes();
            batch.push(array);
        }
        if batch.is_empty() {
            return Ok(None);
        }
        eval(&batch)?;
        self.done += size;
        Ok(Some(self.done as f32 / self.total.max(1) as f32))
    }
}
