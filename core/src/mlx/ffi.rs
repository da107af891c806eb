//! The calls of mlx-c that mlx-rs does not offer, and the only unsafe code of the core: modes of
//! quantization, slices whose start only the device knows, kernels of CUDA, files that MLX reads, and
//! counts of graph nodes.
#![allow(unsafe_code)]

use crate::{
    error::{Error, Result},
    mlx::failure,
};
use mlx_rs::{
    Array, Device, DeviceType, Dtype, Stream, error::Exception, memory, transforms::compile,
};
use mlx_sys as sys;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
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

/// Gives everything that is free back to the system.
pub(crate) fn release_memory() -> Result<()> {
    memory::clear_cache()?;
    // After large blocks were freed, glibc serves later ones from its heaps, which it never shrinks
    // below the last block in use. A trim leaves the end of every heap but the main one: that of this
    // thread shrinks when a block of 64 KiB or more is freed, down to a threshold that grows with the
    // blocks that were freed before. It is left where glibc would end with blocks of 32 MiB.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: they have no preconditions.
    unsafe {
        libc::malloc_trim(0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
        libc::free(libc::malloc(96 << 10));
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 20);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
    }
    Ok(())
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

/// Calls `f` with the handle of an optional array; mlx-c uses an empty handle for "none".
fn with_optional<T>(array: Option<&Array>, f: impl FnOnce(sys::mlx_array) -> T) -> T {
    // SAFETY: the empty handle is made and freed here and is valid in between.
    unsafe {
        let empty = sys::mlx_array_new();
        let out = f(array.map_or(empty, Array::as_ptr));
        sys::mlx_array_free(empty);
        out
    }
}

fn some_int(value: i32) -> sys::mlx_optional_int {
    sys::mlx_optional_int { value, has_value: true }
}

/// The bits, group size and mode of a quantized matrix, as mlx-c takes them.
#[derive(Clone, Copy)]
pub(super) struct Packing {
    pub group_size: i32,
    pub bits: i32,
    pub mode: &'static CStr,
}

/// The arrays of a quantized matrix: packed elements, scales, and biases where the mode has them.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub weight: &'a Array,
    pub scales: &'a Array,
    pub biases: Option<&'a Array>,
}

/// Quantizes a matrix. Returns packed elements, scales and, for affine quantization, biases.
pub(super) fn quantize(matrix: &Array, packing: Packing) -> Result<Vec<Array>> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: `parts` is made and freed here; the arrays taken from it own their handles.
    unsafe {
        let mut parts = sys::mlx_vector_array_new();
        let status = with_optional(None, |none| {
            let (group, bits) = (some_int(packing.group_size), some_int(packing.bits));
            let (matrix, mode) = (matrix.as_ptr(), packing.mode.as_ptr());
            sys::mlx_quantize(&mut parts, matrix, group, bits, mode, none, stream.as_ptr())
        });
        let part = |i| call(|out, _| sys::mlx_vector_array_get(out, parts, i));
        let quantized =
            check(status).and_then(|()| (0..sys::mlx_vector_array_size(parts)).map(part).collect());
        sys::mlx_vector_array_free(parts);
        quantized
    }
}

/// The quantized product `x · wᵀ` if `transposed`, else `x · w`.
pub(super) fn quantized_matmul(
    x: &Array,
    w: Parts,
    transposed: bool,
    packing: Packing,
) -> Result<Array> {
    let (group, bits) = (some_int(packing.group_size), some_int(packing.bits));
    let (mode, x) = (packing.mode.as_ptr(), x.as_ptr());
    let (weight, scales) = (w.weight.as_ptr(), w.scales.as_ptr());
    with_optional(w.biases, |biases| {
        // SAFETY: all handles are alive during the call.
        call(|out, stream| unsafe {
            sys::mlx_quantized_matmul(
                out, x, weight, scales, biases, transposed, group, bits, mode, stream,
            )
        })
    })
}

/// The quantized product `x · w[ids]ᵀ`; `sorted` says that the ids never decrease.
pub(super) fn gather_qmm(
    x: &Array,
    w: Parts,
    ids: &Array,
    sorted: bool,
    packing: Packing,
) -> Result<Array> {
    let (group, bits) = (some_int(packing.group_size), some_int(packing.bits));
    let (mode, x, ids) = (packing.mode.as_ptr(), x.as_ptr(), ids.as_ptr());
    let (weight, scales) = (w.weight.as_ptr(), w.scales.as_ptr());
    with_optional(w.biases, |biases| {
        with_optional(None, |none| {
            // SAFETY: all handles are alive during the call.
            call(|out, stream| unsafe {
                sys::mlx_gather_qmm(
                    out, x, weight, scales, biases, none, ids, true, group, bits, mode, sorted,
                    stream,
                )
            })
        })
    })
}

/// Dequantizes a matrix, as `dtype` if given.
pub(super) fn dequantize(w: Parts, dtype: Option<Dtype>, packing: Packing) -> Result<Array> {
    let (group, bits) = (some_int(packing.group_size), some_int(packing.bits));
    let mode = packing.mode.as_ptr();
    let (weight, scales) = (w.weight.as_ptr(), w.scales.as_ptr());
    let dtype = sys::mlx_optional_dtype {
        value: dtype.unwrap_or(Dtype::Float32).into(),
        has_value: dtype.is_some(),
    };
    with_optional(w.biases, |biases| {
        with_optional(None, |none| {
            // SAFETY: all handles are alive during the call.
            call(|out, stream| unsafe {
                sys::mlx_dequantize(
                    out, weight, scales, biases, group, bits, mode, none, dtype, stream,
                )
            })
        })
    })
}

/// Whether this thread computes on the CPU.
pub fn is_cpu() -> Result<bool> {
    Ok(matches!(Device::try_default()?.get_type()?, DeviceType::Cpu))
}

/// `x[…, start..stop, …]` along `axis`.
pub fn slice(x: &Array, axis: usize, start: i32, stop: i32) -> Result<Array> {
    let shape = x.shape();
    let (mut starts, mut stops) = (vec![0; shape.len()], shape.to_vec());
    (starts[axis], stops[axis]) = (start, stop);
    let strides = vec![1; shape.len()];
    // SAFETY: the three slices have as many elements as the lengths say.
    call(|out, stream| unsafe {
        let n = starts.len();
        sys::mlx_slice(
            out,
            x.as_ptr(),
            starts.as_ptr(),
            n,
            stops.as_ptr(),
            n,
            strides.as_ptr(),
            n,
            stream,
        )
    })
}

/// `x` with `update` written at `start` along `axis`; in place if this is the only handle of `x`.
pub fn slice_update(x: &Array, update: &Array, axis: usize, start: i32) -> Result<Array> {
    let shape = x.shape();
    let (mut starts, mut stops) = (vec![0; shape.len()], shape.to_vec());
    (starts[axis], stops[axis]) = (start, start + update.dim(axis as i32));
    let strides = vec![1; shape.len()];
    // SAFETY: the three slices have as many elements as the lengths say.
    call(|out, stream| unsafe {
        let n = starts.len();
        sys::mlx_slice_update(
            out,
            x.as_ptr(),
            update.as_ptr(),
            starts.as_ptr(),
            n,
            stops.as_ptr(),
            n,
            strides.as_ptr(),
            n,
            stream,
        )
    })
}

/// As [`slice_update`], with a start `[1]` on the device.
pub fn slice_update_at(x: &Array, update: &Array, axis: usize, start: &Array) -> Result<Array> {
    let axes = [axis as c_int];
    // SAFETY: `axes` has one element, as the length says.
    call(|out, stream| unsafe {
        sys::mlx_slice_update_dynamic(
            out,
            x.as_ptr(),
            update.as_ptr(),
            start.as_ptr(),
            axes.as_ptr(),
            1,
            stream,
        )
    })
}

/// `x >> shift & mask`, element by element.
pub fn bits(x: &Array, shift: &Array, mask: &Array) -> Result<Array> {
    // SAFETY: the handles are alive during the call.
    let shifted = call(|out, stream| unsafe {
        sys::mlx_right_shift(out, x.as_ptr(), shift.as_ptr(), stream)
    })?;
    // SAFETY: the handles are alive during the call.
    call(|out, stream| unsafe {
        sys::mlx_bitwise_and(out, shifted.as_ptr(), mask.as_ptr(), stream)
    })
}

/// `x << shift`, element by element.
pub fn shift_left(x: &Array, shift: &Array) -> Result<Array> {
    // SAFETY: the handles are alive during the call.
    call(|out, stream| unsafe { sys::mlx_left_shift(out, x.as_ptr(), shift.as_ptr(), stream) })
}

/// A file that MLX reads through this library, from any thread.
pub(super) trait FileReader: Send + Sync {
    /// Its name for messages.
    fn name(&self) -> String;

    /// Its size in bytes.
    fn length(&self) -> u64;

    /// Fills `bytes` from a place on.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()>;
}

/// What MLX gets to read: a file, the place of the next read, and the name.
struct Opened {
    file: Box<dyn FileReader>,
    place: Cell<u64>,
    name: CString,
}

/// The tensors of a file in the safetensors format, which the default device reads when they are computed.
pub(super) fn load_from(file: Box<dyn FileReader>) -> Result<HashMap<String, Array>> {
    let name = CString::new(file.name()).unwrap_or_default();
    let opened = Box::into_raw(Box::new(Opened { file, place: Cell::new(0), name }));
    let table = sys::mlx_io_vtable {
        is_open: Some(is_open),
        good: Some(is_open),
        tell: Some(place),
        seek: Some(seek),
        read: Some(read),
        read_at_offset: Some(read_at),
        write: None,
        label: Some(label),
        free: Some(close),
    };
    let stream = Stream::thread_local_or_default();
    // SAFETY: MLX calls the functions of the table with `opened`, and `close` once at the end. It moves the place
    // of the next read on this thread alone, for the header; tensors are read at places of their own. All other
    // handles are made and freed here.
    unsafe {
        let reader = sys::mlx_io_reader_new(opened.cast(), table);
        let mut arrays = sys::mlx_map_string_to_array_new();
        let mut facts = sys::mlx_map_string_to_string_new();
        let status =
            sys::mlx_load_safetensors_reader(&mut arrays, &mut facts, reader, stream.as_ptr());
        let mut tensors = HashMap::new();
        if status == 0 {
            let iterator = sys::mlx_map_string_to_array_iterator_new(arrays);
            loop {
                let (mut key, mut value) = (std::ptr::null(), sys::mlx_array_new());
                if sys::mlx_map_string_to_array_iterator_next(&mut key, &mut value, iterator) != 0 {
                    sys::mlx_array_free(value);
                    break;
                }
                let key = CStr::from_ptr(key).to_string_lossy().into_owned();
                tensors.insert(key, Array::from_ptr(value));
            }
            sys::mlx_map_string_to_array_iterator_free(iterator);
        }
        sys::mlx_map_string_to_string_free(facts);
        sys::mlx_map_string_to_array_free(arrays);
        sys::mlx_io_reader_free(reader);
        check(status).map(|()| tensors)
    }
}

/// # Safety
/// MLX passes what [`load_from`] gave it, before `close`.
unsafe fn opened<'a>(opened: *mut c_void) -> &'a Opened {
    // SAFETY: as the caller promises.
    unsafe { &*opened.cast() }
}

unsafe extern "C" fn is_open(_: *mut c_void) -> bool {
    true
}

unsafe extern "C" fn place(file: *mut c_void) -> usize {
    // SAFETY: called by MLX alone.
    unsafe { opened(file) }.place.get() as usize
}

unsafe extern "C" fn seek(file: *mut c_void, offset: i64, whence: c_int) -> c_int {
    // SAFETY: called by MLX alone.
    let file = unsafe { opened(file) };
    let from = match whence {
        libc::SEEK_SET => Some(0),
        libc::SEEK_CUR => Some(file.place.get()),
        libc::SEEK_END => Some(file.file.length()),
        _ => None,
    };
    let Some(new) = from.and_then(|from| from.checked_add_signed(offset)) else { return -1 };
    file.place.set(new);
    0
}

unsafe extern "C" fn read(file: *mut c_void, data: *mut c_char, count: usize) -> usize {
    // SAFETY: called by MLX alone.
    unsafe {
        let place = &opened(file).place;
        let done = read_at(file, data, count, place.get() as usize);
        place.set(place.get() + done as u64);
        done
    }
}

/// Returns how many bytes were read: all or none.
unsafe extern "C" fn read_at(
    file: *mut c_void,
    data: *mut c_char,
    count: usize,
    offset: usize,
) -> usize {
    // SAFETY: called by MLX alone, which has allocated so many bytes; they have no other reader or writer, and
    // are only written here.
    let (file, bytes) =
        unsafe { (opened(file), std::slice::from_raw_parts_mut(data.cast::<u8>(), count)) };
    file.file.read_at(bytes, offset as u64).map_or(0, |()| count)
}

unsafe extern "C" fn label(file: *mut c_void) -> *const c_char {
    // SAFETY: called by MLX alone.
    unsafe { opened(file) }.name.as_ptr()
}

unsafe extern "C" fn close(file: *mut c_void) {
    // SAFETY: the pointer came from a box, and MLX uses it no more.
    drop(unsafe { Box::from_raw(file.cast::<Opened>()) });
}

/// A kernel in CUDA's C++, which MLX compiles when it is first used. Its output is named `out`.
pub(super) struct CudaKernel {
    pub name: &'static str,
    pub inputs: &'static [&'static str],
    pub source: &'static str,
    pub header: &'static str,
}

/// A constant of a kernel.
#[derive(Clone, Copy)]
pub(super) enum Template {
    Type(&'static str, Dtype),
    Integer(&'static str, i32),
    Boolean(&'static str, bool),
}

/// What a kernel gives, and on which grid it runs.
pub(super) struct Launch<'a> {
    pub shape: &'a [i32],
    pub dtype: Dtype,
    /// The threads along each axis.
    pub grid: [i32; 3],
    /// The threads of a block, along the first axis.
    pub threads: i32,
}

/// Runs a kernel with one output.
pub(super) fn apply_cuda_kernel(
    kernel: &CudaKernel,
    inputs: &[&Array],
    templates: &[Template],
    launch: &Launch,
) -> Result<Array> {
    let Launch { shape, dtype, grid, threads } = *launch;
    let string = |text: &str| CString::new(text).expect("sources and names have no zero byte");
    let (name, source, header) =
        (string(kernel.name), string(kernel.source), string(kernel.header));
    let names: Vec<CString> = kernel.inputs.iter().map(|name| string(name)).collect();
    let pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let handles: Vec<_> = inputs.iter().map(|input| input.as_ptr()).collect();
    let out = c"out";
    // SAFETY: every handle is made and freed here or alive during the call, and MLX copies all strings; the
    // lengths are those of the slices.
    unsafe {
        let names = sys::mlx_vector_string_new_data(pointers.as_ptr().cast_mut(), pointers.len());
        let outs = sys::mlx_vector_string_new_data([out.as_ptr()].as_ptr().cast_mut(), 1);
        let (source, header) = (source.as_ptr(), header.as_ptr());
        let made =
            sys::mlx_fast_cuda_kernel_new(name.as_ptr(), names, outs, source, header, true, 0);
        let config = sys::mlx_fast_cuda_kernel_config_new();
        sys::mlx_fast_cuda_kernel_config_add_output_arg(
            config,
            shape.as_ptr(),
            shape.len(),
            dtype.into(),
        );
        sys::mlx_fast_cuda_kernel_config_set_grid(config, grid[0], grid[1], grid[2]);
        sys::mlx_fast_cuda_kernel_config_set_thread_group(config, threads, 1, 1);
        for template in templates {
            match *template {
                Template::Type(name, dtype) => {
                    let name = string(name);
                    let (name, dtype) = (name.as_ptr(), dtype.into());
                    sys::mlx_fast_cuda_kernel_config_add_template_arg_dtype(config, name, dtype)
                }
                Template::Integer(name, value) => {
                    let name = string(name);
                    sys::mlx_fast_cuda_kernel_config_add_template_arg_int(
                        config,
                        name.as_ptr(),
                        value,
                    )
                }
                Template::Boolean(name, value) => {
                    let name = string(name);
                    sys::mlx_fast_cuda_kernel_config_add_template_arg_bool(
                        config,
                        name.as_ptr(),
                        value,
                    )
                }
            };
        }
        let inputs = sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len());
        let mut outputs = sys::mlx_vector_array_new();
        let stream = Stream::thread_local_or_default();
        let status =
            sys::mlx_fast_cuda_kernel_apply(&mut outputs, made, inputs, config, stream.as_ptr());
        let output =
            check(status).and_then(|()| call(|out, _| sys::mlx_vector_array_get(out, outputs, 0)));
        sys::mlx_vector_array_free(outputs);
        sys::mlx_vector_array_free(inputs);
        sys::mlx_fast_cuda_kernel_config_free(config);
        sys::mlx_fast_cuda_kernel_free(made);
        sys::mlx_vector_string_free(outs);
        sys::mlx_vector_string_free(names);
        output
    }
}

/// The bytes of memory that the default device lets a program use, if MLX knows.
pub(super) fn device_memory() -> Option<u64> {
    device_information(|information| {
        let size = |key: &CStr| {
            let mut size = 0;
            // SAFETY: the information is alive during the call; a key that is missing leaves the number.
            let status =
                unsafe { sys::mlx_device_info_get_size(&mut size, information, key.as_ptr()) };
            (status == 0 && size > 0).then_some(size as u64)
        };
        [c"max_recommended_working_set_size", c"memory_size", c"total_memory"]
            .into_iter()
            .find_map(size)
    })
}

/// The name of the default device's architecture, such as `applegpu_g13g`.
pub(super) fn architecture() -> Option<String> {
    device_information(|information| {
        let mut name = std::ptr::null();
        // SAFETY: the information is alive during the call, and owns the string.
        unsafe {
            let key = c"architecture".as_ptr();
            let status = sys::mlx_device_info_get_string(&mut name, information, key);
            (status == 0 && !name.is_null())
                .then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
        }
    })
}

/// What `read` finds in the information about the default device.
fn device_information<T>(read: impl FnOnce(sys::mlx_device_info) -> Option<T>) -> Option<T> {
    let device = Device::try_default().ok()?;
    let (kind, index) = (device.get_type().ok()?, device.get_index().ok()?);
    // SAFETY: the information and the device are made and freed here.
    unsafe {
        let device = sys::mlx_device_new_type(kind.into(), index);
        let mut information = sys::mlx_device_info_new();
        let is_known = sys::mlx_device_info_get(&mut information, device) == 0;
        let found = if is_known { read(information) } else { None };
        sys::mlx_device_info_free(information);
        sys::mlx_device_free(device);
        found
    }
}

/// The bytes that this process may still use before the system ends it, where the system has such a
/// limit.
pub(super) fn bytes_before_the_end() -> Option<u64> {
    #[cfg(target_os = "ios")]
    {
        unsafe extern "C" {
            fn os_proc_available_memory() -> usize;
        }
        // SAFETY: it has no preconditions.
        let bytes = unsafe { os_proc_available_memory() } as u64;
        // The simulator has no limit.
        (bytes > 0).then_some(bytes)
    }
    #[cfg(not(target_os = "ios"))]
    None
}

/// Tells the system that the user waits for what this thread computes.
pub(crate) fn raise_priority() {
    #[cfg(target_vendor = "apple")]
    {
        const USER_INITIATED: u32 = 0x19;
        unsafe extern "C" {
            fn pthread_set_qos_class_self_np(class: u32, relative_priority: c_int) -> c_int;
        }
        // SAFETY: it only changes the calling thread, and an unknown class is refused.
        unsafe { pthread_set_qos_class_self_np(USER_INITIATED, 0) };
    }
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
