//! Kernels of CUDA.

use super::{call, check};
use crate::error::Result;
use mlx_rs::{Array, Dtype, Stream};
use mlx_sys as sys;
use std::ffi::CString;

/// A kernel in CUDA's C++, which MLX compiles when it is first used. Its output is named `out`.
pub(in crate::mlx) struct CudaKernel {
    pub name: &'static str,
    pub inputs: &'static [&'static str],
    pub source: &'static str,
    pub header: &'static str,
}

/// A constant of a kernel.
#[derive(Clone, Copy)]
pub(in crate::mlx) enum Template {
    Type(&'static str, Dtype),
    Integer(&'static str, i32),
    Boolean(&'static str, bool),
}

/// What a kernel gives, and on which grid it runs.
pub(in crate::mlx) struct Launch<'a> {
    pub shape: &'a [i32],
    pub dtype: Dtype,
    /// The threads along each axis.
    pub grid: [i32; 3],
    /// The threads of a block, along the first axis.
    pub threads: i32,
}

/// Runs a kernel with one output.
pub(in crate::mlx) fn apply_cuda_kernel(
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
