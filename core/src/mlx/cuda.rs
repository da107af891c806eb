//! What is particular to NVIDIA GPUs: kernels that MLX compiles when they are first used, and small arrays
//! that MLX leaves in the host's memory.

use crate::{
    error::Result,
    mlx::ffi::{has_cuda, is_cpu, slice},
};
use mlx_rs::{Array, ops};
use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// Says in the log that the first answers on this machine wait for kernels to be compiled.
pub(crate) fn announce_kernels() {
    if !has_cuda() {
        return;
    }
    let named = env::var_os("MLX_PTX_CACHE_DIR").map(PathBuf::from);
    // MLX names a folder after its version, and keeps the kernels in a folder of that one.
    let folder = named.unwrap_or_else(|| env::temp_dir().join("mlx"));
    if is_without_kernels(&folder) {
        tracing::warn!(
            "the GPU's kernels are compiled when they are first used, which takes a minute or more; they \
             are kept in {}, or where MLX_PTX_CACHE_DIR says",
            folder.display()
        );
    }
}

/// Whether this thread computes on an NVIDIA GPU.
pub(crate) fn uses_cuda() -> bool {
    has_cuda() && !is_cpu().unwrap_or(true)
}

/// The same integers `[count]` in the memory of the GPU. MLX keeps arrays of up to 8 bytes in the host's
/// memory, so that every thread of a kernel that reads one waits for the bus.
pub(crate) fn in_device_memory(integers: &Array) -> Result<Array> {
    if !uses_cuda() {
        return Ok(integers.clone());
    }
    // A view of the first of four equal rows, which together are large enough.
    let rows = ops::zeros::<i32>(&[4, 1])?.add(integers.reshape(&[1, -1])?)?;
    Ok(slice(&rows, 0, 0, 1)?.reshape(&[-1])?)
}

/// Whether a folder and those inside it have no file.
fn is_without_kernels(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths.all(|path| path.is_dir() && is_without_kernels(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_in_the_folder_of_a_version() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_without_kernels(&folder.path().join("mlx")));
        let version = folder.path().join("0.32/ptx");
        fs::create_dir_all(&version).unwrap();
        assert!(is_without_kernels(folder.path()));
        fs::write(version.join("kernel.ptx"), "").unwrap();
        assert!(!is_without_kernels(folder.path()));
    }
}
