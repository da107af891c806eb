//! Reading files of tensors for NVIDIA GPUs: several threads read each tensor, which MLX then moves to the
//! memory of the GPU. MLX's own ways are one thread that reads, or memory that GPU and host share, whose pages
//! move when the GPU first touches them.

use crate::{
    error::{Error, Result},
    mlx::{
        cuda::uses_cuda,
        ffi::{FileReader, load_from},
    },
};
use mlx_rs::Array;
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
};

/// The threads that read a large tensor, and the bytes that are worth one more of them.
const THREADS: usize = 8;
const BYTES_OF_A_THREAD: usize = 1 << 20;

/// The tensors of a file in the safetensors format, if it is for an NVIDIA GPU. None is read before it is
/// computed.
///
/// # Errors
/// [`Error::Mlx`], [`Error::Io`].
pub(crate) fn load_for_cuda(path: &Path) -> Option<Result<HashMap<String, Array>>> {
    uses_cuda().then(|| {
        let failed = |source| Error::Io { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        load_from(Box::new(ParallelReader { file, length, path: path.into() }))
    })
}

struct ParallelReader {
    file: File,
    length: u64,
    path: PathBuf,
}

impl FileReader for ParallelReader {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let count = bytes.len().div_ceil(BYTES_OF_A_THREAD).clamp(1, THREADS);
        let size = bytes.len().div_ceil(count).max(1);
        let mut parts = (offset..).step_by(size).zip(bytes.chunks_mut(size));
        let first = parts.next();
        thread::scope(|scope| {
            let read = |(offset, part): (u64, &mut [u8])| self.file.read_exact_at(part, offset);
            let others: Vec<_> = parts.map(|part| scope.spawn(move || read(part))).collect();
            let first = first.map_or(Ok(()), read);
            others
                .into_iter()
                .try_for_each(|other| other.join().expect("reading does not panic"))?;
            first
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx;

    #[test]
    fn several_threads_read_what_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        // More than two threads read the first tensor, and the last of them fewer bytes.
        let large: Vec<i32> = (0..700_001).collect();
        let tensors = [
            ("large", Array::from_slice(&large, &[700_001])),
            ("small", Array::from_slice(&[1.5f32, -2.0], &[1, 2])),
        ];
        Array::save_safetensors(tensors, None, &path).unwrap();
        let file = File::open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        let read = load_from(Box::new(ParallelReader { file, length, path })).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(mlx::to_vec::<i32>(&read["large"]).unwrap(), large);
        assert_eq!(read["small"].shape(), [1, 2]);
        assert_eq!(mlx::to_vec::<f32>(&read["small"]).unwrap(), [1.5, -2.0]);
    }
}
