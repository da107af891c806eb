//! Strict access to a checkpoint: every read names a shape, and every tensor must be read.
//!
//! Reading is lazy. [`Scope::finish`] brings what was read into memory, in the order in which it
//! was read, each byte once.

use crate::{
    config::Json,
    error::{Error, Result},
    files::Files,
    memory,
    mlx::{Format, Mode, Quantized},
    parts::{
        linear::{Embedding, Experts, Linear, Matrix, cut},
        norm::Norm,
    },
};
use mlx_rs::{Array, Dtype, ops, transforms::eval};
use safetensors::{
    SafeTensors,
    tensor::{Metadata, TensorInfo},
};
use serde::Deserialize;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Display,
    fs::{self, File},
    io::Read,
    path::Path,
    rc::Rc,
};

/// Tensors that some files carry and no model needs.
const NEVER_NEEDED: &[&str] = &[
    // Precomputed rotary frequencies of old exporters; they follow from the config.
    "rotary_emb.inv_freq",
];

struct Store {
    unread: RefCell<HashMap<String, Array>>,
    read: RefCell<Vec<Array>>,
    quantization: Quantization,
}

/// A place in the checkpoint's tree of names, such as `model.layers.3`.
#[derive(Clone)]
pub struct Scope {
    store: Rc<Store>,
    path: String,
}

impl Scope {
    /// Opens the weights of a checkpoint: the shards that its index names, else `model*.safetensors`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a missing shard, a damaged header, a size that does not match, a
    /// tensor that stands in two shards; [`Error::Quantization`] for a scheme that is not supported.
    pub fn open(files: &Files, config: &Json) -> Result<Self> {
        let tensors = match files {
            Files::Directory(directory) => {
                let mut tensors = HashMap::new();
                for shard in shards(directory, files)? {
                    for (name, tensor) in load_shard(&directory.join(shard))? {
                        if tensors.insert(name.clone(), tensor).is_some() {
                            let reason = format!("tensor `{name}` stands in two shards");
                            return Err(Error::Checkpoint { file: directory.clone(), reason });
                        }
                    }
                }
                tensors
            }
            Files::Embedded(_) => {
                let file = "model.safetensors";
                let damaged = |reason: String| Error::Checkpoint { file: file.into(), reason };
                let bytes = files.read(file)?.ok_or_else(|| damaged("missing".into()))?;
                let tensors =
                    SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
                let array = |(name, view)| match Array::try_from(view) {
                    Ok(array) => Ok((name, array)),
                    Err(error) => Err(damaged(format!("{error}"))),
                };
                tensors.tensors().into_iter().map(array).collect::<Result<_>>()?
            }
        };
        Scope::new(tensors, config)
    }

    /// A scope over tensors that are already at hand.
    ///
    /// # Errors
    /// [`Error::Quantization`] for a scheme that is not supported.
    pub fn new(tensors: HashMap<String, Array>, config: &Json) -> Result<Self> {
        let store = Store {
            unread: RefCell::new(tensors),
            read: RefCell::default(),
            quantization: Quantization::read(config)?,
        };
        Ok(Scope { store: Rc::new(store), path: String::new() })
    }

    /// The place `name` below this one.
    pub fn at(&self, name: impl Display) -> Scope {
        Scope { store: self.store.clone(), path: self.name(name) }
    }

    fn name(&self, name: impl Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
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

    /// Leaves the tensors below `name` unread, where the family knows why nobody needs them.
    pub fn ignore(&self, name: &str) {
        let (exact, prefix) = (self.name(name), self.name(name) + ".");
        let keep = |tensor: &String| *tensor != exact && !tensor.starts_with(&prefix);
        self.store.unread.borrow_mut().retain(|tensor, _| keep(tensor));
    }

    /// Leaves all tensors here unread whose name ends in one of these components.
    pub fn ignore_named(&self, components: &[&str]) {
        let ignored = |tensor: &String| {
            tensor.starts_with(&self.path)
                && tensor.rsplit('.').next().is_some_and(|last| components.contains(&last))
        };
        self.store.unread.borrow_mut().retain(|tensor, _| !ignored(tensor));
    }

    fn take_any(&self, name: &str) -> Result<Array> {
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
        Ok(tensor)
    }

    /// As [`Scope::take`], for a tensor of bytes.
    ///
    /// # Errors
    /// As [`Scope::take`].
    pub fn take_bytes(&self, name: &str, shape: &[i32]) -> Result<Array> {
        let tensor = self.take_any(name)?;
        if tensor.shape() != shape {
            return Err(self.misshaped(name, &tensor, shape));
        }
        if tensor.dtype() != Dtype::Uint8 {
            let reason = format!("holds {:?}, not bytes", tensor.dtype());
            return Err(Error::Quantization { path: self.name(name), reason });
        }
        Ok(tensor)
    }

    fn integers(&self, name: &str, tensor: &Array) -> Error {
        let reason = format!("holds {:?}, and no format that is supported", tensor.dtype());
        Error::Quantization { path: self.name(name), reason }
    }

    fn misshaped(&self, name: &str, tensor: &Array, expected: &[i32]) -> Error {
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
        let weight = w.matrix(&[output, input])?;
        Ok(Linear::new(w.keep_matrix(weight), w.optional("bias", &[output])?))
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
        let mut start = 0;
        let parts = outputs.map(|output| -> Result<Linear> {
            let (from, to) = (start, start + output);
            start = to;
            let bias = bias.as_ref().map(|bias| cut(bias, 0, groups, from, to)).transpose()?;
            let weight = w.keep_matrix(weight.rows(groups, from, to)?);
            Ok(Linear::new(weight, bias.map(|bias| w.keep(bias))))
        });
        let parts: Vec<Linear> = parts.into_iter().collect::<Result<_>>()?;
        parts.try_into().map_err(|_| Error::Internal("as many parts as outputs".into()))
    }

    /// Reads a table of token embeddings.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn embedding(&self, name: &str, vocabulary: i32, width: i32) -> Result<Embedding> {
        let w = self.at(name);
        let table = w.matrix(&[vocabulary, width])?;
        Ok(Embedding::new(w.keep_matrix(table)))
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
        if w.has("weight") || !["0", "1"].iter().any(|expert| split.has_below(expert)) {
            let weight = w.matrix(&[count, output, input])?.for_experts()?;
            return Ok(Experts::new(w.keep_matrix(weight), w.optional("bias", &[count, output])?));
        }
        let expert = |i| split.at(i).at(name);
        let weights =
            (0..count).map(|i| expert(i).matrix(&[output, input])).collect::<Result<_>>()?;
        let weight = self.keep_matrix(self.stack(weights)?.for_experts()?);
        let bias = if expert(0).has("bias") {
            let biases = (0..count).map(|i| expert(i).take("bias", &[output]));
            Some(self.keep(ops::stack(&biases.collect::<Result<Vec<_>>>()?, 0)?))
        } else {
            None
        };
        Ok(Experts::new(weight, bias))
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
        Ok(Matrix::Quantized(Quantized {
            weight: stack(quantized.iter().map(|matrix| matrix.weight.clone()).collect())?,
            scales: stack(scales)?,
            biases: biases.map(stack).transpose()?,
            format,
        }))
    }

    /// The matrix `weight` here, `[…, output, input]`; quantized if there are `scales`.
    pub(crate) fn matrix(&self, shape: &[i32]) -> Result<Matrix> {
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
        if self.has("global_scale") {
            return Err(contradiction("a global scale is not supported yet".into()));
        }
        let biases = match mode {
            Mode::Affine => Some(self.take("biases", &packed(groups))?),
            _ => None,
        };
        Ok(Matrix::Quantized(Quantized { weight, scales, biases, format }))
    }

    /// As [`Scope::keep`], for the arrays of a matrix.
    pub fn keep_matrix(&self, matrix: Matrix) -> Matrix {
        match &matrix {
            Matrix::Dense(weight) => drop(self.keep(weight.clone())),
            Matrix::Quantized(Quantized { weight, scales, biases, .. }) => {
                for part in [Some(weight), Some(scales), biases.as_ref()].into_iter().flatten() {
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

    /// Checks that nothing is left unread and brings all that was read into memory; `progress`
    /// gets the share that is there, from 0 to 1.
    ///
    /// # Errors
    /// [`Error::UnusedTensors`]; [`Error::MemoryLimit`]; [`Error::Mlx`] when a file cannot be read.
    pub fn finish(&self, mut progress: impl FnMut(f32)) -> Result<()> {
        let unread = self.store.unread.take();
        let needed = |name: &&String| !NEVER_NEEDED.iter().any(|suffix| name.ends_with(suffix));
        let unused: BTreeSet<_> = unread.keys().filter(needed).cloned().collect();
        if !unused.is_empty() {
            return Err(Error::UnusedTensors(unused.into_iter().collect()));
        }
        drop(unread);
        // Batches keep the readers busy and bound what stacking holds twice.
        const BATCH: usize = 64 << 20;
        let read = self.store.read.take();
        let total = read.iter().map(Array::nbytes).sum::<usize>().max(1);
        memory::allow(total)?;
        let (mut batch, mut batched, mut done) = (Vec::new(), 0, 0);
        for array in read {
            batched += array.nbytes();
            batch.push(array);
            if batched >= BATCH {
                eval(&batch)?;
                batch.clear();
                done += std::mem::take(&mut batched);
                progress(done as f32 / total as f32);
            }
        }
        eval(&batch)?;
        progress(1.0);
        Ok(())
    }
}

fn is_floating(tensor: &Array) -> bool {
    matches!(tensor.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16)
}

/// What `config.json` says about quantized tensors.
#[derive(Default)]
pub(crate) struct Quantization {
    /// Formats of single paths; `None` where the config says `false`.
    paths: BTreeMap<String, Option<Format>>,
}

impl Quantization {
    pub(crate) fn read(config: &Json) -> Result<Self> {
        let (field, map) = match (config.get("quantization"), config.get("quantization_config")) {
            (Some(Json::Object(map)), _) => ("quantization", map),
            (_, Some(Json::Object(map))) => ("quantization_config", map),
            _ => return Ok(Self::default()),
        };
        if let Some(method) = map.get("quant_method").and_then(Json::as_str)
            && !["mxfp4", "mxfp8", "bitnet"].contains(&method)
        {
            return Err(Error::Quantization {
                path: format!("{field}.quant_method"),
                reason: format!("`{method}` is not supported yet"),
            });
        }
        let mut paths = BTreeMap::new();
        for (path, value) in map {
            match value {
                Json::Bool(false) => drop(paths.insert(path.clone(), None)),
                Json::Object(fields) => {
                    let format = Format::read(&format!("{field}.{path}"), fields)?;
                    paths.insert(path.clone(), Some(format));
                }
                _ => {}
            }
        }
        Ok(Quantization { paths })
    }

    /// What the config says about one path; the outer `None` when it does not name it.
    pub(crate) fn of(&self, path: &str) -> Option<Option<Format>> {
        self.paths.get(path).copied()
    }
}

impl Format {
    fn read(path: &str, fields: &serde_json::Map<String, Json>) -> Result<Self> {
        let wrong = |reason: &str| Error::Quantization { path: path.into(), reason: reason.into() };
        let mode = match fields.get("mode").map(|mode| mode.as_str()) {
            None | Some(Some("affine")) => Mode::Affine,
            Some(Some("mxfp4")) => Mode::Mxfp4,
            Some(Some("mxfp8")) => Mode::Mxfp8,
            Some(Some("nvfp4")) => Mode::Nvfp4,
            Some(_) => return Err(wrong("the mode is not affine, mxfp4, mxfp8 or nvfp4")),
        };
        let (bits, group) = match mode {
            Mode::Affine => (4, 64),
            Mode::Mxfp4 => (4, 32),
            Mode::Mxfp8 => (8, 32),
            Mode::Nvfp4 => (4, 16),
        };
        let number = |name: &str, default: i32| match fields.get(name) {
            None => Ok(default),
            Some(value) => value
                .as_i64()
                .and_then(|n| i32::try_from(n).ok())
                .ok_or_else(|| wrong(&format!("{name} is not a number"))),
        };
        Ok(Format { mode, bits: number("bits", bits)?, group: number("group_size", group)? })
    }
}

/// The files of weights, from the index if there is one.
pub(crate) fn shards(directory: &Path, files: &Files) -> Result<BTreeSet<String>> {
    const INDEX: &str = "model.safetensors.index.json";
    let broken = |reason: String| Error::Checkpoint { file: directory.join(INDEX), reason };
    if let Some(index) = files.json(INDEX)? {
        let map = index.get("weight_map").and_then(Json::as_object);
        let map = map.ok_or_else(|| broken("has no weight_map".into()))?;
        let mut shards = BTreeSet::new();
        for (tensor, shard) in map {
            // A shard outside of the directory is not part of this checkpoint.
            match shard.as_str() {
                Some(name) if !name.contains(['/', '\\']) && name.ends_with(".safetensors") => {
                    shards.insert(name.to_string())
                }
                _ => {
                    return Err(broken(format!("`{tensor}` is mapped to {shard}, not to a shard")));
                }
            };
        }
        if shards.is_empty() {
            return Err(broken("maps no tensor".into()));
        }
        return Ok(shards);
    }
    let io = |source| Error::Io { path: directory.into(), source };
    let mut shards = BTreeSet::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            shards.insert(name);
        }
    }
    let Some(first) = shards.first() else {
        let reason = "has no model*.safetensors".into();
        return Err(Error::Checkpoint { file: directory.into(), reason });
    };
    // model-00001-of-00003.safetensors says how many there must be.
    let count = first.rsplit_once("-of-").and_then(|(_, rest)| rest.strip_suffix(".safetensors"));
    if let Some(count) = count.and_then(|count| count.parse::<usize>().ok())
        && count != shards.len()
    {
        let reason = format!("holds {} of {count} shards", shards.len());
        return Err(Error::Checkpoint { file: directory.into(), reason });
    }
    Ok(shards)
}

/// The header of one file, after it has been checked against the file's size.
pub(crate) fn read_header(path: &Path) -> Result<Metadata> {
    let damaged = |reason: String| Error::Checkpoint { file: path.into(), reason };
    let io = |source| Error::Io { path: path.into(), source };
    let mut file = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => damaged("this shard is missing".into()),
        _ => io(error),
    })?;
    let size = file.metadata().map_err(io)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| damaged("truncated: no header".into()))?;
    let length = u64::from_le_bytes(length);
    if length > size.saturating_sub(8) {
        return Err(damaged(format!("truncated: a header of {length} bytes in a file of {size}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(io)?;
    let header: Metadata =
        serde_json::from_slice(&header).map_err(|error| damaged(blame(&header, &error)))?;
    let expected = 8 + length + header.data_len() as u64;
    if expected != size {
        return Err(damaged(format!("has {size} bytes, its header says {expected}")));
    }
    Ok(header)
}

/// What is wrong with a header, with the tensor at fault if it can be told.
fn blame(header: &[u8], error: &serde_json::Error) -> String {
    let tensors: BTreeMap<String, Json> = serde_json::from_slice(header).unwrap_or_default();
    for (name, entry) in tensors.iter().filter(|(name, _)| *name != "__metadata__") {
        let TensorInfo { dtype, shape, data_offsets: (start, end) } =
            match TensorInfo::deserialize(entry) {
                Ok(info) => info,
                Err(error) => return format!("bad header: tensor `{name}`: {error}"),
            };
        let bits = shape.iter().try_fold(dtype.bitsize(), |n, &size| n.checked_mul(size));
        if bits.is_none_or(|bits| end.checked_sub(start) != Some(bits / 8)) {
            return format!(
                "bad header: tensor `{name}` of shape {shape:?} does not fill bytes {start} to {end}"
            );
        }
    }
    format!("bad header: {error}")
}

/// The tensors of one file, unread.
pub(crate) fn load_shard(path: &Path) -> Result<HashMap<String, Array>> {
    let damaged = |reason: String| Error::Checkpoint { file: path.into(), reason };
    for (name, info) in read_header(path)?.tensors() {
        use safetensors::Dtype::*;
        let known = matches!(
            info.dtype,
            F32 | F16 | BF16 | U8 | U16 | U32 | U64 | I8 | I16 | I32 | I64 | BOOL | F8_E4M3
        );
        if !known {
            return Err(damaged(format!(
                "tensor `{name}` has the unsupported type {:?}",
                info.dtype
            )));
        }
        if info.shape.iter().any(|&dimension| i32::try_from(dimension).is_err()) {
            return Err(damaged(format!("tensor `{name}` is too large: {:?}", info.shape)));
        }
    }
    Array::load_safetensors(path).map_err(|error| damaged(error.to_string()))
}
