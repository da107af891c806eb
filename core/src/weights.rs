//! Strict access to a checkpoint: every read names a shape, and every tensor must be read.
//!
//! Reading is lazy. [`Scope::finish`] brings what was read into memory, in the order in which it
//! was read, each byte once.

use crate::{
    adapter::Adapter,
    checkpoint,
    config::Json,
    error::{Error, Result},
    files::Files,
    memory,
    mlx::{self, Format, Mode, Quantized},
    packed::MODEL_OPT,
    parts::{
        linear::{Embedding, Experts, Linear, Matrix, cut},
        norm::Norm,
    },
    quantization::Quantization,
};
use mlx_rs::{Array, Dtype, ops, transforms::eval};
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

struct Store {
    unread: RefCell<HashMap<String, Array>>,
    read: RefCell<Vec<Array>>,
    /// They wait until tensors are read in earnest: an inspection has names and shapes only.
    checks: RefCell<Vec<Check>>,
    quantization: Quantization,
    adapter: Option<Adapter>,
    /// What all floating-point tensors become, where the file says so.
    precision: Option<Dtype>,
}

/// A place in the checkpoint's tree of names, such as `model.layers.3`.
#[derive(Clone)]
pub struct Scope {
    store: Rc<Store>,
    path: String,
    /// Whether the path is itself a tensor, whose companions are not below but beside it.
    is_parameter: bool,
    /// Whether matrices are stored the other way round.
    is_turned: bool,
}

impl Scope {
    /// Opens the weights of a checkpoint: the shards that its index names, else `model*.safetensors`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a missing shard, a damaged header, a size that does not match, a
    /// tensor that stands in two shards; [`Error::Quantization`] for a scheme that is not supported.
    pub fn open(files: &Files, config: &Json) -> Result<Self> {
        let quantization = Quantization::of_checkpoint(files, config)?;
        Ok(Scope::over(checkpoint::tensors(files)?, quantization))
    }

    /// As [`Scope::open`], with an adapter, if there is one.
    pub(crate) fn open_with(files: &Files, adapter: Option<&Files>, config: &Json) -> Result<Self> {
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
    pub fn new(tensors: HashMap<String, Array>, config: &Json) -> Result<Self> {
        Ok(Scope::over(tensors, Quantization::read(config)?))
    }

    fn over(tensors: HashMap<String, Array>, quantization: Quantization) -> Self {
        let precision = quantization.precision(&tensors);
        let (unread, read) = (RefCell::new(tensors), RefCell::default());
        let (checks, adapter) = (RefCell::default(), None);
        let store = Rc::new(Store { unread, read, checks, quantization, adapter, precision });
        Scope { store, path: String::new(), is_parameter: false, is_turned: false }
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
    pub fn turned(&self) -> Scope {
        Scope { is_turned: true, ..self.clone() }
    }

    fn name(&self, name: impl Display) -> String {
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
        if !is_floating(&tensor) {
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

    fn integers(&self, name: &str, tensor: &Array) -> Error {
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

    /// Reads a projection, dense or quantized as the checkpoint has it, with its bias if there is one.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::Quantization`].
    pub fn linear(&self, name: &str, input: i32, output: i32) -> Result<Linear> {
        let w = self.at(name);
        let weight = w.keep_matrix(w.matrix(&[output, input])?);
        let added = w.added(&weight, [output, input])?;
        Ok(Linear::new(weight, w.optional("bias", &[output])?).adapted(added))
    }

    /// As [`Scope::linear`], for a projection that cannot do without its bias.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn linear_with_bias(&self, name: &str, input: i32, output: i32) -> Result<Linear> {
        self.at(name).require("bias")?;
        self.linear(name, input, output)
    }

    /// Reads projections of one input that the checkpoint stores as one matrix, in this order.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn fused<const N: usize>(
        &self,
        name: &str,
        input: i32,
        outputs: [i32; N],
    ) -> Result<[Linear; N]> {
        self.fused_by_group(name, input, 1, outputs)
    }

    /// As [`Scope::fused`], where that order repeats for each of `groups` parts of the outputs.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn fused_by_group<const N: usize>(
        &self,
        name: &str,
        input: i32,
        groups: i32,
        outputs: [i32; N],
    ) -> Result<[Linear; N]> {
        let w = self.at(name);
        let total = groups * outputs.iter().sum::<i32>();
        let weight = w.matrix(&[total, input])?;
        let bias = w.has("bias").then(|| w.take("bias", &[total])).transpose()?;
        let added = w.added_to_parts(&weight, input, groups, outputs)?;
        let mut start = 0;
        let parts = outputs.into_iter().zip(added).map(|(output, added)| -> Result<Linear> {
            let (from, to) = (start, start + output);
            start = to;
            let bias = bias.as_ref().map(|bias| cut(bias, 0, groups, from, to)).transpose()?;
            let weight = w.keep_matrix(weight.rows(groups, from, to)?);
            Ok(Linear::new(weight, bias.map(|bias| w.keep(bias))).adapted(added))
        });
        let parts: Vec<Linear> = parts.collect::<Result<_>>()?;
        parts.try_into().map_err(|_| Error::Internal("as many parts as outputs".into()))
    }

    /// Reads a table of token embeddings.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn embedding(&self, name: &str, vocabulary: i32, width: i32) -> Result<Embedding> {
        let w = self.at(name);
        let table = w.keep_matrix(w.matrix(&[vocabulary, width])?);
        let added = w.added_to_table(&table, [vocabulary, width])?;
        Ok(Embedding::new(table).adapted(added))
    }

    /// Reads the matrices of `count` experts: `{stacked}.{name}` in one tensor, or
    /// `experts.{i}.{name}` in one tensor each.
    ///
    /// # Errors
    /// As [`Scope::linear`]; [`Error::Quantization`] when experts differ in their format.
    pub fn experts(
        &self,
        stacked: &str,
        name: &str,
        count: i32,
        input: i32,
        output: i32,
    ) -> Result<Experts> {
        self.experts_named([stacked, "experts"], name, [count, input, output])
    }

    /// As [`Scope::experts`], where the tensors of expert `i` are below `{split}.{i}`.
    ///
    /// # Errors
    /// As [`Scope::experts`].
    pub fn experts_named(
        &self,
        [stacked, split]: [&str; 2],
        name: &str,
        [count, input, output]: [i32; 3],
    ) -> Result<Experts> {
        let (w, split) = (self.at(stacked).at(name), self.at(split));
        let is_split = ["0", "1"].iter().any(|expert| split.has_below(expert));
        let expert = |i| split.at(i).at(name);
        let added = w.added_to_experts(expert, [count, input, output])?;
        if !is_split || self.at(stacked).has_below(name) {
            let weight = w.keep_matrix(w.matrix(&[count, output, input])?.for_experts()?);
            let bias = w.optional("bias", &[count, output])?;
            return Ok(Experts::new(weight, bias).adapted(added));
        }
        let weights =
            (0..count).map(|i| expert(i).matrix(&[output, input])).collect::<Result<_>>()?;
        let weight = self.keep_matrix(self.stack(weights)?.for_experts()?);
        let bias = if expert(0).has("bias") {
            let biases = (0..count).map(|i| expert(i).take("bias", &[output]));
            Some(self.keep(ops::stack(&biases.collect::<Result<Vec<_>>>()?, 0)?))
        } else {
            None
        };
        Ok(Experts::new(weight, bias).adapted(added))
    }

    fn stack(&self, matrices: Vec<Matrix>) -> Result<Matrix> {
        let mixed = || Error::Quantization {
            path: self.name("experts"),
            reason: "experts of one layer have different formats".into(),
        };
        let stack = |arrays: Vec<Array>| ops::stack(&arrays, 0);
        let (mut dense, mut quantized) = (Vec::new(), Vec::new());
        for matrix in matrices {
            match matrix {
                Matrix::Dense(weight) => dense.push(weight),
                Matrix::Quantized(matrix) => quantized.push(matrix),
            }
        }
        let Some(format) = quantized.first().map(|matrix| matrix.format) else {
            return Ok(Matrix::Dense(stack(dense)?));
        };
        if !dense.is_empty() || quantized.iter().any(|matrix| matrix.format != format) {
            return Err(mixed());
        }
        let biases: Option<Vec<_>> = quantized.iter().map(|matrix| matrix.biases.clone()).collect();
        let scales = quantized.iter().map(|matrix| matrix.scales.clone()).collect();
        let factors: Vec<_> =
            quantized.iter().filter_map(|matrix| matrix.global_scale.clone()).collect();
        if !factors.is_empty() && factors.len() < quantized.len() {
            return Err(mixed());
        }
        let global_scale = (!factors.is_empty()).then(|| stack(factors)).transpose()?;
        Ok(Matrix::Quantized(Quantized {
            weight: stack(quantized.iter().map(|matrix| matrix.weight.clone()).collect())?,
            scales: stack(scales)?,
            biases: biases.map(stack).transpose()?,
            global_scale,
            format,
        }))
    }

    /// The matrix `weight` here, `[…, output, input]`, dense or quantized; the family
    /// [`Scope::keep_matrix`]s what it makes of it.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn matrix(&self, shape: &[i32]) -> Result<Matrix> {
        if self.is_turned {
            return Scope { is_turned: false, ..self.clone() }.turned_matrix(shape);
        }
        match self.packed(shape)? {
            Some(matrix) => Ok(matrix),
            None => self.own_matrix(shape),
        }
    }

    /// As [`Scope::matrix`], for rows of which the first half and the second are matrices of their
    /// own, such as gates and values.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn halves(&self, shape: &[i32]) -> Result<[Matrix; 2]> {
        let (stack, rows) = (&shape[..shape.len() - 2], shape[shape.len() - 2]);
        let each = [stack, &[2]].concat();
        let column = |factors: &Array, i| -> Result<Array> {
            Ok(mlx::slice(factors, stack.len(), i, i + 1)?.reshape(stack)?)
        };
        let mut factors = None;
        if self.shape(MODEL_OPT).is_some_and(|shape| shape == each) {
            let own = self.factor(MODEL_OPT, &each)?;
            // One stands for both until the rows are told apart.
            let (name, first) = (self.name(MODEL_OPT), column(&own, 0)?);
            self.store.unread.borrow_mut().insert(name, first);
            factors = Some(own);
        }
        let both = self.matrix(shape)?;
        let half = |i: i32| -> Result<Matrix> {
            let mut half = both.rows(1, i * (rows / 2), (i + 1) * (rows / 2))?;
            if let (Some(factors), Matrix::Quantized(half)) = (&factors, &mut half) {
                half.global_scale = Some(column(factors, i)?);
            }
            Ok(half)
        };
        Ok([half(0)?, half(1)?])
    }

    /// As MLX writes it: quantized if there are `scales`.
    fn own_matrix(&self, shape: &[i32]) -> Result<Matrix> {
        let named = self.store.quantization.of(&self.path);
        if !self.has("scales") {
            if let Some(Some(_)) = named {
                return Err(Error::MissingTensor(self.name("scales")));
            }
            return Ok(Matrix::Dense(self.take("weight", shape)?));
        }
        let contradiction =
            |reason: String| Error::Quantization { path: self.path.clone(), reason };
        let (rows, input) = shape.split_at(shape.len() - 1);
        let packed = |columns: i32| [rows, &[columns]].concat();
        let (weight, scales) = (self.take_any("weight")?, self.take_any("scales")?);
        let (columns, groups) = (weight.dim(-1), scales.dim(-1));
        if weight.dtype() != Dtype::Uint32 {
            let reason = format!("the weight holds {:?}, but there are scales", weight.dtype());
            return Err(contradiction(reason));
        }
        if weight.shape() != packed(columns) {
            return Err(self.misshaped("weight", &weight, shape));
        }
        if scales.shape() != packed(groups) || groups == 0 {
            return Err(self.misshaped("scales", &scales, &packed(groups)));
        }
        let format = Format {
            mode: Mode::Affine,
            bits: (i64::from(columns) * 32 / i64::from(input[0])) as i32,
            group: input[0] / groups,
        };
        let exact = i64::from(format.bits) * i64::from(input[0]) == i64::from(columns) * 32
            && format.group * groups == input[0];
        let is_float = scales.dtype() == Dtype::Uint8;
        if !is_float && !is_floating(&scales) {
            return Err(self.integers("scales", &scales));
        }
        let mode = match (is_float, format.bits, format.group) {
            (false, 2 | 3 | 4 | 5 | 6 | 8, 32 | 64 | 128) => Some(Mode::Affine),
            (true, 4, 32) => Some(Mode::Mxfp4),
            (true, 8, 32) => Some(Mode::Mxfp8),
            (true, 4, 16) => Some(Mode::Nvfp4),
            _ => None,
        };
        let Some(mode) = mode.filter(|_| exact) else {
            let reason = format!(
                "weight {:?} with {} scales {:?} is no format of MLX for {} inputs",
                weight.shape(),
                if is_float { "8-bit" } else { "wide" },
                scales.shape(),
                input[0]
            );
            return Err(contradiction(reason));
        };
        let format = Format { mode, ..format };
        match named {
            Some(None) => {
                return Err(contradiction("the config says false, but there are scales".into()));
            }
            Some(Some(said)) if said != format => {
                return Err(contradiction(format!(
                    "the config says {said:?}, the tensors {format:?}"
                )));
            }
            _ => {}
        }
        let global_scale = match self.has("global_scale") {
            false => None,
            true if mode == Mode::Nvfp4 => {
                // It is the largest weight; the largest scale times the largest element is 2688.
                let largest = self.factor("global_scale", &rows[..rows.len() - 1])?;
                Some(largest.divide(Array::from_f32(448.0 * 6.0))?)
            }
            true => return Err(contradiction("only nvfp4 has a global scale".into())),
        };
        let biases = match mode {
            Mode::Affine => Some(self.take("biases", &packed(groups))?),
            _ => None,
        };
        Ok(Matrix::Quantized(Quantized { weight, scales, biases, global_scale, format }))
    }

    /// As [`Scope::keep`], for the arrays of a matrix.
    pub fn keep_matrix(&self, matrix: Matrix) -> Matrix {
        match &matrix {
            Matrix::Dense(weight) => drop(self.keep(weight.clone())),
            Matrix::Quantized(Quantized { weight, scales, biases, global_scale, .. }) => {
                let parts = [Some(weight), Some(scales), biases.as_ref(), global_scale.as_ref()];
                for part in parts.into_iter().flatten() {
                    self.keep(part.clone());
                }
            }
        }
        matrix
    }

    /// Reads the kernel of a causal depthwise convolution as `[channels, taps, 1]`; Hugging Face
    /// files hold `[channels, 1, taps]`.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn depthwise(&self, name: &str, channels: i32, taps: i32) -> Result<Array> {
        let w = self.at(name);
        let torch = [channels, 1, taps];
        if w.shape("weight").is_some_and(|shape| shape == torch) {
            return Ok(self.keep(w.take("weight", &torch)?.reshape(&[channels, taps, 1])?));
        }
        w.tensor("weight", &[channels, taps, 1])
    }

    /// Reads an RMS norm.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn rms_norm(&self, name: &str, width: i32, eps: f32) -> Result<Norm> {
        Ok(Norm::Rms { weight: Some(self.at(name).tensor("weight", &[width])?), eps })
    }

    /// Reads a layer norm, with its bias if there is one.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn layer_norm(&self, name: &str, width: i32, eps: f32) -> Result<Norm> {
        let w = self.at(name);
        let weight = Some(w.tensor("weight", &[width])?);
        Ok(Norm::Layer { weight, bias: w.optional("bias", &[width])?, eps })
    }

    /// As [`Scope::layer_norm`], for a norm that cannot do without its bias.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn layer_norm_with_bias(&self, name: &str, width: i32, eps: f32) -> Result<Norm> {
        self.at(name).require("bias")?;
        self.layer_norm(name, width, eps)
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

pub(crate) fn is_floating(tensor: &Array) -> bool {
    matches!(tensor.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16)
}
