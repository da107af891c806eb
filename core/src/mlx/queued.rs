//! Results that the host reads while the device goes on with later work.

use crate::{
    error::{Error, Result},
    mlx::{failure, ffi},
};
use mlx_rs::{Array, Device, Stream, transforms::async_eval, with_stream};

thread_local! {
    /// The stream that takes over results, and failures with them.
    static READER: Stream = Stream::new_with_device(&Device::cpu());
}

/// Queued results. Waiting for them waits for nothing that is queued later, and none is read that a
/// failed computation has left.
///
/// MLX checks an array for a failure only if it has to wait for it. So the results are copied on a
/// stream of their own, which waits for the device and takes over its failure, and which can be
/// checked alone. CUDA needs none of this, since its failures stay.
pub(crate) struct Queued {
    copies: Vec<Array>,
}

impl Queued {
    /// Queues the computation of `results`, which are at least one, and of `states`, which later work
    /// goes on with.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub(crate) fn new<'a>(
        results: &[&'a Array],
        states: impl Iterator<Item = &'a Array>,
    ) -> Result<Self> {
        async_eval(results.iter().copied().chain(states))?;
        if !has_reader()? {
            return Ok(Queued { copies: results.iter().map(|array| (*array).clone()).collect() });
        }
        let copy = |array: &&Array| Ok(array.contiguous()?);
        let copies = on_reader(|| results.iter().map(copy).collect::<Result<Vec<_>>>())?;
        async_eval(&copies)?;
        // The copies wait for results that are still being computed, and for no others. Nothing is
        // queued behind those that are there already.
        if ffi::is_available(results[0])? {
            ffi::synchronize()?;
        }
        Ok(Queued { copies })
    }

    /// Waits for the results and passes them to `read`.
    ///
    /// # Errors
    /// [`Error::Mlx`], also for a failure of earlier work.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&[Array]) -> Result<T>) -> Result<T> {
        if !has_reader()? {
            return read(&self.copies);
        }
        READER.with(ffi::synchronize_stream)?;
        if failure::has_failed() {
            return Err(Error::Mlx("earlier work of the device has failed".into()));
        }
        on_reader(|| read(&self.copies))
    }
}

/// Waits until the device has finished all queued work.
///
/// # Errors
/// [`Error::Mlx`], also for a failure of the work.
pub(crate) fn synchronize() -> Result<()> {
    let reader = if has_reader()? { READER.with(ffi::synchronize_stream) } else { Ok(()) };
    ffi::synchronize().and(reader)
}

fn on_reader<T>(f: impl FnOnce() -> T) -> T {
    READER.with(|reader| with_stream(reader, f))
}

fn has_reader() -> Result<bool> {
    Ok(cfg!(target_vendor = "apple") || ffi::is_cpu()?)
}
