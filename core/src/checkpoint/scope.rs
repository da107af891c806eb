//! Strict access to a checkpoint: every read names a shape, and every tensor must be read. The reader
//! records what it made of each tensor, for inspections.
//!
//! Reading is lazy. [`Scope::finish`] loads the arrays into memory, in the order in which they were
//! read, each byte once.

use crate::{
    checkpoint::{
        adapter::Adapter, config::Json, file_rules::FileRules, files::Files,
        quantization::Quantization, shards,
    },
    error::{Error, Result},
    mlx::{
        self,
        matrix::Matrix,
        memory,
        parameter::{Entry, Parameter, Parameters},
        quantized::Format,
    },
};
use mlx_rs::{Array, Dtype, transforms::eval};
use serde_json::Value;
use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    fmt::Display,
    rc::Rc,
};

/// Tensors that some files hold and no model needs.
const NEVER_NEEDED: &[&str] = &[
    // Precomputed rotary frequencies of old exporters; they follow from the config.
    "rotary_emb.inv_freq",
];

/// A check of the values of a tensor.
type Check = Box<dyn FnOnce() -> Result<()>>;

pub(super) struct Store {
    unread: RefCell<HashMap<String, Array>>,
    /// The names in the files of tensors that a family has renamed.
    renamed: RefCell<HashMap<String, String>>,
    /// Where names were replaced, and the pairs of which each name has the first that fits.
    replaced: RefCell<Vec<(String, Vec<[String; 2]>)>>,
    record: RefCell<Vec<ReadMatrix>>,
    /// The arrays that the model uses, in the order in which they were read.
    kept: RefCell<Vec<Array>>,
    parameters: RefCell<Vec<Entry>>,
    /// They wait until the values are read: an inspection has names and shapes only.
    checks: RefCell<Vec<Check>>,
    pub quantization: Quantization,
    adapter: Option<Adapter>,
    /// The config, which remembers which of its fields were read.
    config: Json,
    /// The precision to which all floating-point tensors are converted, where the file implies one.
    precision: Option<Dtype>,
}

/// The record of one read: a matrix, or a tensor that is none.
#[derive(Clone, Debug)]
pub(crate) struct ReadMatrix {
    /// The tensor with the elements, by its full name.
    pub name: String,
    /// The tensors that were read with it: scales, biases, zero points and the like.
    pub companions: Vec<String>,
    /// The quantization format that the reader made of them; `None` for floating point.
    pub format: Option<Format>,
    /// How many elements it has. A quantized element counts as one.
    pub elements: u64,
}

/// A place in the checkpoint's tree of names, such as `model.layers.3`.
#[derive(Clone)]
pub struct Scope {
    pub(super) store: Rc<Store>,
    pub(super) path: String,
    /// Whether the path is itself the name of a tensor: scales are `{path}_scale`, not `{path}.scale`.
    pub(super) is_parameter: bool,
    /// Whether matrices are stored as `[…, input, output]`.
    pub(super) is_transposed: bool,
}

impl Scope {
    /// Opens the weights of a checkpoint: the shards that its index names, else `model*.safetensors`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a missing shard, a damaged header, a size that does not match, a
    /// tensor that stands in two shards; [`Error::Quantization`] for a scheme that is not supported.
    pub fn open(files: &Files, config: &Value) -> Result<Self> {
        Scope::open_with(files, &FileRules::USUAL, None, config)
    }

    /// As [`Scope::open`], with the files of a family, and with an adapter, if there is one.
    pub(crate) fn open_with(
        files: &Files,
        rules: &FileRules,
        adapter: Option<&Files>,
        config: &Value,
    ) -> Result<Self> {
        let config = Json::from(config);
        let quantization = Quantization::of_checkpoint(files, &config)?;
        let scope = Scope::over(shards::tensors(files, rules)?, config, quantization)?;
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
        Scope::over(tensors, config, quantization)
    }

    fn over(
        tensors: HashMap<String, Array>,
        config: Json,
        quantization: Quantization,
    ) -> Result<Self> {
        quantization.check(&tensors)?;
        let precision = quantization.precision(&tensors);
        let store = Rc::new(Store {
            unread: RefCell::new(tensors),
            record: RefCell::default(),
            renamed: RefCell::default(),
            replaced: RefCell::default(),
            kept: RefCell::default(),
            parameters: RefCell::default(),
            checks: RefCell::default(),
            quantization,
            adapter: None,
            config,
            precision,
        });
        Ok(Scope { store, path: String::new(), is_parameter: false, is_transposed: false })
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
        if adapter.lora.is_some() {
            let parameter = Parameter::new(Array::from_f32(adapter.scale()));
            let name = "adapter scale".into();
            store.parameters.get_mut().push(Entry { name, parameter, is_trainable: false });
        }
        store.adapter = Some(adapter);
        Ok(self)
    }

    /// The place `name` below this one.
    pub fn at(&self, name: impl Display) -> Scope {
        Scope { path: self.name(name), is_parameter: false, ..self.clone() }
    }

    /// The place of a matrix whose tensor is `{name}` and not `{name}.weight`, as stacked experts of
    /// Hugging Face files are; its scales are `{name}_weight_scale`, `{name}_scale` and so on.
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

    /// Whether the checkpoint has a tensor of this name that has not been read yet.
    pub fn has(&self, name: &str) -> bool {
        self.store.unread.borrow().contains_key(&self.name(name))
    }

    /// An error unless the checkpoint has a tensor of this name that has not been read yet.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn require(&self, name: &str) -> Result<()> {
        if self.has(name) {
            Ok(())
        } else {
            Err(Error::MissingTensor(self.stored_name(self.name(name))))
        }
    }

    /// Whether there are unread tensors below `name`.
    pub fn has_below(&self, name: &str) -> bool {
        let prefix = self.name(name) + ".";
        self.store.unread.borrow().keys().any(|tensor| tensor.starts_with(&prefix))
    }

    /// Whether the place here is an unread tensor or has some below it.
    pub fn exists(&self) -> bool {
        let prefix = self.path.clone() + ".";
        let unread = self.store.unread.borrow();
        unread.contains_key(&self.path) || unread.keys().any(|tensor| tensor.starts_with(&prefix))
    }

    /// The shape of a tensor that has not been read yet.
    pub fn shape(&self, name: &str) -> Option<Vec<i32>> {
        self.store.unread.borrow().get(&self.name(name)).map(|tensor| tensor.shape().to_vec())
    }

    /// The type of a tensor that has not been read yet.
    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.store.unread.borrow().get(&self.name(name)).map(Array::dtype)
    }

    /// The full name of a tensor here.
    pub(crate) fn full_name(&self, name: &str) -> String {
        self.name(name)
    }

    /// The name that a tensor has or would have in the files, for errors.
    fn stored_name(&self, name: String) -> String {
        if let Some(original) = self.store.renamed.borrow().get(&name) {
            return original.clone();
        }
        let replaced = self.store.replaced.borrow();
        replaced.iter().rev().fold(name, |name, (place, pairs)| {
            let fits = |[_, to]: &&[String; 2]| name.contains(to);
            match pairs.iter().find(fits).filter(|_| name.starts_with(place)) {
                Some([from, to]) => name.replacen(to, from, 1),
                None => name,
            }
        })
    }

    /// The adapter, if there is one.
    pub(crate) fn adapter(&self) -> Option<&Adapter> {
        self.store.adapter.as_ref()
    }

    /// The config of the checkpoint, which remembers which of its fields were read.
    pub fn config(&self) -> &Json {
        &self.store.config
    }

    /// The statements of the config about quantized tensors.
    pub(crate) fn quantization(&self) -> &Quantization {
        &self.store.quantization
    }

    /// The size of the blocks of inputs that the matrix here expects rotated, where the config says
    /// that it does.
    pub(crate) fn rotated_block(&self) -> Option<i64> {
        self.store.quantization.rotated_block(&self.path)
    }

    /// Leaves the tensors below `name` unread, where the family knows why the model needs none of them.
    pub fn ignore(&self, name: &str) {
        let (exact, prefix) = (self.name(name), self.name(name) + ".");
        let keep = |tensor: &String| *tensor != exact && !tensor.starts_with(&prefix);
        self.store.unread.borrow_mut().retain(|tensor, _| keep(tensor));
    }

    /// As [`Scope::ignore`], for all names here that begin with `start`.
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

    /// Puts all tensors that are unread below a name, for a checkpoint that lacks it.
    pub(crate) fn nest(&self, name: &str) {
        let mut unread = self.store.unread.borrow_mut();
        *unread = unread.drain().map(|(own, tensor)| (format!("{name}.{own}"), tensor)).collect();
    }

    /// Adds the tensors of a further file below a name.
    pub(crate) fn adopt(&self, name: &str, tensors: HashMap<String, Array>) {
        let below = |(own, tensor)| (self.name(format!("{name}.{own}")), tensor);
        self.store.unread.borrow_mut().extend(tensors.into_iter().map(below));
    }

    /// Gives tensors here that are unread other names, for a family whose checkpoints name the parts of a
    /// shared layer in another way. The first pattern that a name contains is replaced.
    pub fn rename(&self, names: &[(&str, &str)]) {
        let mut unread = self.store.unread.borrow_mut();
        let mut originals = self.store.renamed.borrow_mut();
        let mut renamed = |name: String| match names.iter().find(|(from, _)| name.contains(from)) {
            Some((from, to)) if name.starts_with(&self.path) => {
                let new = name.replacen(from, to, 1);
                let original = originals.remove(&name).unwrap_or(name);
                originals.insert(new.clone(), original);
                new
            }
            _ => name,
        };
        *unread = unread.drain().map(|(name, tensor)| (renamed(name), tensor)).collect();
        if !originals.is_empty() {
            let pairs = names.iter().map(|(from, to)| [(*from).into(), (*to).into()]).collect();
            self.store.replaced.borrow_mut().push((self.path.clone(), pairs));
        }
    }

    /// Takes a tensor of any shape and type.
    pub(super) fn take_any(&self, name: &str) -> Result<Array> {
        let name = self.name(name);
        let Some(tensor) = self.store.unread.borrow_mut().remove(&name) else {
            return Err(Error::MissingTensor(self.stored_name(name)));
        };
        if tensor.shape().contains(&0) {
            let shape = tensor.shape();
            let reason =
                format!("its sizes leave tensor `{name}` with shape {shape:?} no elements");
            return Err(Error::config("", reason));
        }
        let elements = tensor.shape().iter().map(|size| *size as u64).product();
        let name = self.store.renamed.borrow().get(&name).cloned().unwrap_or(name);
        let record = ReadMatrix { name, companions: Vec::new(), format: None, elements };
        self.store.record.borrow_mut().push(record);
        Ok(tensor)
    }

    /// Reads a matrix of `elements` elements, and records its tensors as one.
    pub(super) fn recorded(
        &self,
        elements: u64,
        read: impl FnOnce() -> Result<Matrix>,
    ) -> Result<Matrix> {
        let start = self.store.record.borrow().len();
        let matrix = read()?;
        let format = match &matrix {
            Matrix::Dense(_) => None,
            Matrix::Quantized(matrix) => Some(matrix.format),
        };
        let mut record = self.store.record.borrow_mut();
        let mut parts = record.split_off(start);
        // Scales, biases and zero points have fewer elements than the matrix, packed or not.
        parts.sort_by_key(|part| Reverse(part.elements));
        let mut names =
            parts.into_iter().flat_map(|part| [vec![part.name], part.companions].concat());
        let name = names.next().ok_or_else(|| Error::Internal("a matrix has a tensor".into()))?;
        record.push(ReadMatrix { name, companions: names.collect(), format, elements });
        Ok(matrix)
    }

    /// The matrices and tensors that have been read so far, in order.
    pub(crate) fn record(&self) -> Vec<ReadMatrix> {
        self.store.record.borrow().clone()
    }

    /// Reads a tensor that the family converts for the model; it [`Scope::keep`]s the result.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`]; [`Error::Quantization`] when it holds
    /// integers.
    pub fn take(&self, name: &str, shape: &[i32]) -> Result<Array> {
        let tensor = self.take_any(name)?;
        // Weights packed into bytes have another shape too; the type is the better message.
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
        Error::TensorShape { name: self.stored_name(self.name(name)), found, expected }
    }

    /// Notes an array that the model will use, so that [`Scope::finish`] computes it.
    pub fn keep(&self, array: Array) -> Array {
        self.store.kept.borrow_mut().push(array.clone());
        array
    }

    /// As [`Scope::keep`], for an array that can be replaced later. `name` is the tensor here that it
    /// was made of.
    pub(crate) fn keep_parameter(&self, name: &str, array: Array) -> Parameter {
        let (name, parameter) = (self.name(name), Parameter::new(self.keep(array)));
        let entry = Entry { name, parameter: parameter.clone(), is_trainable: true };
        self.store.parameters.borrow_mut().push(entry);
        parameter
    }

    /// The scale of the adapter `[]`, one parameter for all its deltas.
    pub(crate) fn adapter_scale(&self) -> Parameter {
        let parameters = self.store.parameters.borrow();
        let one = || Parameter::new(Array::from_f32(1.0));
        parameters.first().map_or_else(one, |entry| entry.parameter.clone())
    }

    /// The parameters of the model, once it has been built.
    pub fn parameters(&self) -> Parameters {
        Parameters::new(self.store.parameters.borrow().clone())
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`].
    pub fn tensor(&self, name: &str, shape: &[i32]) -> Result<Array> {
        Ok(self.keep(self.take(name, shape)?))
    }

    /// Reads one tensor if the checkpoint has it.
    ///
    /// # Errors
    /// [`Error::TensorShape`].
    pub fn optional(&self, name: &str, shape: &[i32]) -> Result<Option<Array>> {
        self.has(name).then(|| self.tensor(name, shape)).transpose()
    }

    /// Adds a check that runs when the values are read.
    pub(crate) fn check_later(&self, check: impl FnOnce() -> Result<()> + 'static) {
        self.store.checks.borrow_mut().push(Box::new(check));
    }

    /// Checks that no tensor is left unread, and loads the kept arrays into memory; `progress` gets
    /// the loaded share, from 0 to 1.
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

    /// As [`Scope::finish`], in batches that the caller asks for.
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
        let arrays = self.store.kept.take();
        let total = arrays.iter().map(Array::nbytes).sum();
        Ok(Reading { checks: self.store.checks.take(), arrays: arrays.into_iter(), done: 0, total })
    }
}

/// The loading of kept arrays into memory.
pub(crate) struct Reading {
    checks: Vec<Check>,
    arrays: std::vec::IntoIter<Array>,
    done: usize,
    total: usize,
}

impl Reading {
    /// Bytes of memory that all arrays take.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Loads the next batch, and gives the loaded share; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<f32>> {
        // Large enough to keep the readers busy; small enough to bound the memory of tensors that are
        // stacked, which exist twice meanwhile.
        const BATCH: usize = 64 << 20;
        // Other models may have taken memory since the last batch.
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
