//! Files of weights: which ones a checkpoint has, whether they are whole, and their tensors, unread.

use crate::{
    checkpoint::{
        file_rules::FileRules,
        files::{EMBEDDED, Files, LFS_POINTER, is_pointer},
        weight_files::INDEX,
    },
    error::{Error, Result},
    mlx,
};
use mlx_rs::Array;
use safetensors::{
    SafeTensors,
    tensor::{Dtype, Metadata, TensorInfo, TensorView},
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    fs::File,
    io::{ErrorKind, Read},
    path::Path,
};

/// All tensors by name. None is read before it is computed.
pub(crate) fn tensors(files: &Files, rules: &FileRules) -> Result<HashMap<String, Array>> {
    let Files::Directory(directory) = files else { return file(files, EMBEDDED) };
    let weights = files.weights(rules)?;
    if weights.index_is_stale {
        tracing::warn!("{INDEX} names no file that exists; it is ignored");
    }
    let (mut tensors, mut shard_of) = (HashMap::new(), HashMap::new());
    for shard in &weights.names {
        for (name, tensor) in load_shard(&directory.join(shard))? {
            if let Some(other) = shard_of.insert(name.clone(), shard) {
                let reason = format!(
                    "tensor `{name}` stands in two shards, {other} too; keep one of them, or an \
                     index that names one"
                );
                return Err(Error::Checkpoint { file: directory.join(shard), reason });
            }
            tensors.insert(name, tensor);
        }
    }
    Ok(tensors)
}

/// The tensors of one file, unread.
pub(crate) fn file(files: &Files, name: &str) -> Result<HashMap<String, Array>> {
    match files {
        Files::Directory(directory) => load_shard(&directory.join(name)),
        Files::Embedded(_) => {
            let damaged = |reason: String| Error::Checkpoint { file: name.into(), reason };
            let bytes = files.read(name)?.ok_or_else(|| damaged("missing".into()))?;
            let whole = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
            let array = |(name, view): (String, TensorView)| match Array::try_from(view) {
                Ok(array) => Ok((name, array)),
                Err(error) => Err(damaged(error.to_string())),
            };
            whole.tensors().into_iter().map(array).collect()
        }
    }
}

/// The headers of all files.
pub(crate) fn headers(files: &Files, rules: &FileRules) -> Result<Vec<Metadata>> {
    match files {
        Files::Directory(directory) => {
            let shards = files.weights(rules)?.names;
            shards.iter().map(|shard| read_header(&directory.join(shard))).collect()
        }
        Files::Embedded(_) => {
            let bytes = files.read(EMBEDDED)?.ok_or_else(|| damaged_embedded("missing"))?;
            Ok(vec![SafeTensors::read_metadata(&bytes).map_err(damaged_embedded)?.1])
        }
    }
}

/// Whether a matrix of these files holds other numbers than floating-point ones.
pub(crate) fn is_quantized(headers: &[Metadata]) -> bool {
    let is_packed = |info: &TensorInfo| {
        let dense = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I64, Dtype::BOOL];
        info.shape.len() > 1 && !dense.contains(&info.dtype)
    };
    headers.iter().any(|header| header.tensors().into_values().any(is_packed))
}

fn damaged_embedded(reason: impl Display) -> Error {
    Error::Checkpoint { file: EMBEDDED.into(), reason: reason.to_string() }
}

/// The header of one file, after it has been checked against the file's size.
pub(crate) fn read_header(path: &Path) -> Result<Metadata> {
    let damaged = |reason: String| Error::Checkpoint { file: path.into(), reason };
    let io = |source| Error::Io { path: path.into(), source };
    let mut file = File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => damaged("this shard is missing".into()),
        _ => io(error),
    })?;
    let size = file.metadata().map_err(io)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| damaged("truncated: no header".into()))?;
    if LFS_POINTER.starts_with(&length) {
        return Err(is_pointer(path));
    }
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
    let tensors: BTreeMap<String, Value> = serde_json::from_slice(header).unwrap_or_default();
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
        use Dtype::*;
        let known = matches!(
            info.dtype,
            F32 | F16
                | BF16
                | U8
                | U16
                | U32
                | U64
                | I8
                | I16
                | I32
                | I64
                | BOOL
                | F8_E4M3
                | F8_E8M0
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
    match mlx::load_for_cuda(path) {
        Some(tensors) => tensors.map_err(|error| damaged(error.to_string())),
        None => Array::load_safetensors(path).map_err(|error| damaged(error.to_string())),
    }
}
