//! The calls of mlx-c that mlx-rs does not offer, and the only unsafe code of the core: modes of
//! quantization, slices whose start only the device knows, kernels of CUDA, files that MLX reads, and
//! counts of graph nodes.
#![allow(unsafe_code)]

mod file;
mod kernel;
mod quantized;
mod slices;
mod system;

pub(super) use file::{FileReader, load_from};
pub(super) use kernel::{CudaKernel, Launch, Template, apply_cuda_kernel};
pub(super) use quantized::{Packing, Parts, dequantize, gather_qmm, quantize, quantized_matmul};
pub use slices::{bits, shift_left, slice, slice_update, slice_update_at};
pub(super) use system::{architecture, bytes_before_the_end, device_memory};
pub(crate) use system::{raise_priority, release_memory};

use crate::{
    error::{Error, Result},
    mlx::failure,
};
use mlx_rs::{Array, Device, DeviceType, Stream, error::Exception, transforms::compile};
use mlx_sys as sys;
use std::{
    cell::RefCell,
    ffi::{CStr, c_char, c_int, c_void},
    ptr::null_mut,
    sync::Once,
};

thread_local! {
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
}

unsafe extern "C" {
    // Exported by mlx-rs, which reads its own copy of the message.
    fn default_mlx_error_handler(message: *const c_char, data: *mut c_void);
}

extern "C" fn keep_message(message: *const c_char, data: *mut c_void) {
    // SAFETY: mlx-c calls the handler with a valid string, as mlx-rs's handler requires too.
    unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        failure::note(&text);
        MESSAGE.with(|kept| kept.replace(text));
        default_mlx_error_handler(message, data);
    }
}

/// Makes MLX report errors instead of ending the process, and registers `at_exit` to run when the
/// process ends, before the destructors of MLX's globals. Every thread that uses MLX through this
/// module must call it.
pub(crate) fn initialize(at_exit: extern "C" fn()) -> Result<()> {
    if let Some(device) = chosen_device(std::env::var("MYNAH_DEVICE").ok().as_deref())? {
        Device::set_default(&device);
    }
    static HANDLER: Once = Once::new();
    // mlx-rs installs its handler once, on first use; this handler must replace it.
    Array::from_int(0).eval()?;
    HANDLER.call_once(|| {
        // SAFETY: the handler is a function that lives as long as the process.
        unsafe { sys::mlx_set_error_handler(Some(keep_message), null_mut(), None) };
        if cfg!(target_os = "linux") && is_cpu().unwrap_or(false) {
            set_fusing(false);
        }
    });
    // Exit handlers run in reverse order, so the globals that MLX creates on first use must exist
    // already.
    static AT_EXIT: Once = Once::new();
    compile::compile(|inputs: &[Array]| Ok::<_, Exception>(inputs.to_vec()), false)(&[
        Array::from_int(0),
    ])?;
    AT_EXIT.call_once(|| {
        // SAFETY: the handler is a function that lives as long as the process.
        unsafe { libc::atexit(at_exit) };
    });
    Ok(())
}

/// The device of the environment variable `MYNAH_DEVICE`, if it is not MLX's own choice. On a Mac, the CPU
/// tells faults of this library from differences of the GPU.
fn chosen_device(name: Option<&str>) -> Result<Option<Device>> {
    match name {
        None | Some("" | "gpu") => Ok(None),
        Some("cpu") => Ok(Some(Device::cpu())),
        Some(other) => {
            Err(Error::option("MYNAH_DEVICE", format!("is `{other}`; it must be `cpu` or `gpu`")))
        }
    }
}

/// Whether functions that are compiled from now on fuse elementwise operations. On the CPU of Linux they
/// do not: the system's C++ compiler would build each fused kernel at its first use on a machine, which
/// takes seconds. A compiled function still saves building its graph.
pub fn set_fusing(is_on: bool) {
    let mode = if is_on {
        sys::mlx_compile_mode__MLX_COMPILE_MODE_ENABLED
    } else {
        sys::mlx_compile_mode__MLX_COMPILE_MODE_NO_FUSE
    };
    // SAFETY: a plain setter.
    unsafe { sys::mlx_set_compile_mode(mode) };
}

/// Waits until the device has finished all work of the default stream.
pub(super) fn synchronize() -> Result<()> {
    synchronize_stream(&Stream::thread_local_or_default())
}

/// Waits until the device has finished all work of a stream.
pub(super) fn synchronize_stream(stream: &Stream) -> Result<()> {
    // SAFETY: the stream is valid for as long as its owner lives.
    check(unsafe { sys::mlx_synchronize(stream.as_ptr()) })
}

/// Whether MLX was built for CUDA and there is a GPU for it.
pub(crate) fn has_cuda() -> bool {
    let mut is_available = false;
    // SAFETY: a plain getter that writes one value.
    unsafe { sys::mlx_cuda_is_available(&mut is_available) == 0 && is_available }
}

/// Whether the device has computed an array that was queued.
pub(super) fn is_available(array: &Array) -> Result<bool> {
    let mut is_available = false;
    // SAFETY: the array is alive during the call, which writes one boolean.
    check(unsafe { sys::_mlx_array_is_available(&mut is_available, array.as_ptr()) })?;
    Ok(is_available)
}

/// Stands in for a clock that only Apple systems have; mlx-rs calls it to draw a seed.
#[cfg(not(target_vendor = "apple"))]
#[unsafe(no_mangle)]
extern "C" fn mach_approximate_time() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |elapsed| elapsed.as_nanos() as u64)
}

fn check(status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    Err(Exception::custom(MESSAGE.with(RefCell::take)).into())
}

fn call(f: impl FnOnce(*mut sys::mlx_array, sys::mlx_stream) -> c_int) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: a fresh empty array; on success it holds the result, which `Array` then owns, and
    // on failure `Array` frees the empty one.
    unsafe {
        let mut out = sys::mlx_array_new();
        let status = f(&mut out, stream.as_ptr());
        let out = Array::from_ptr(out);
        check(status).map(|()| out)
    }
}

/// Whether this thread computes on the CPU.
pub fn is_cpu() -> Result<bool> {
    Ok(matches!(Device::try_default()?.get_type()?, DeviceType::Cpu))
}

/// The number of operations that MLX would run to compute these arrays: the host cost of a decode
/// step.
///
/// # Errors
/// [`Error::Mlx`]; [`Error::Io`] when no temporary file can be written.
pub fn node_count(outputs: &[Array]) -> Result<usize> {
    let handles: Vec<_> = outputs.iter().map(Array::as_ptr).collect();
    // SAFETY: the stream is written by MLX, rewound, read and closed here; the vector and the
    // namer are made and freed here.
    unsafe {
        let stream = libc::tmpfile();
        if stream.is_null() {
            return Err(Error::Io {
                path: "tmpfile".into(),
                source: std::io::Error::last_os_error(),
            });
        }
        let vector = sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len());
        let namer = sys::mlx_node_namer_new();
        let status = sys::mlx_export_to_dot(stream.cast(), namer, vector);
        sys::mlx_node_namer_free(namer);
        sys::mlx_vector_array_free(vector);
        let mut text = Vec::new();
        libc::rewind(stream);
        let mut buffer = [0u8; 1 << 16];
        loop {
            let read = libc::fread(buffer.as_mut_ptr().cast(), 1, buffer.len(), stream);
            if read == 0 {
                break;
            }
            text.extend_from_slice(&buffer[..read]);
        }
        libc::fclose(stream);
        check(status)?;
        Ok(String::from_utf8_lossy(&text).matches("shape=rectangle").count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_chooses_between_the_cpu_and_the_device_of_mlx() {
        assert!(chosen_device(None).unwrap().is_none());
        assert!(chosen_device(Some("gpu")).unwrap().is_none());
        let cpu = chosen_device(Some("cpu")).unwrap().unwrap();
        assert!(matches!(cpu.get_type(), Ok(DeviceType::Cpu)));
        let error = chosen_device(Some("tpu")).unwrap_err().to_string();
        assert!(error.contains("MYNAH_DEVICE") && error.contains("`tpu`"), "{error}");
    }
}
