//! What the system and the device say of themselves: memory, architecture, priorities.

use crate::error::Result;
use mlx_rs::{Device, memory};
use mlx_sys as sys;
use std::ffi::CStr;

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

/// The bytes of memory that the default device lets a program use, if MLX knows.
pub(in crate::mlx) fn device_memory() -> Option<u64> {
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
pub(in crate::mlx) fn architecture() -> Option<String> {
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
pub(in crate::mlx) fn bytes_before_the_end() -> Option<u64> {
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
            fn pthread_set_qos_class_self_np(class: u32, relative_priority: i32) -> i32;
        }
        // SAFETY: it only changes the calling thread, and an unknown class is refused.
        unsafe { pthread_set_qos_class_self_np(USER_INITIATED, 0) };
    }
}
