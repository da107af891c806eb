//! Facts of the device: which GPUs are supported, and how much memory a program may use.

use crate::{
    error::{Error, Result},
    mlx::ffi,
};
use mlx_rs::memory;

/// The generation of the first GPU that MLX's kernels run on, that of A14 and M1.
const FIRST_GENERATION: u32 = 13;

/// Checks that MLX's kernels run on the device.
///
/// # Errors
/// [`Error::Unavailable`].
pub(crate) fn check_device() -> Result<()> {
    match ffi::architecture().filter(|gpu| is_too_old(gpu)) {
        None => Ok(()),
        Some(gpu) => {
            let reason = format!("the GPU `{gpu}` is too old; MLX needs an A14, an M1 or newer");
            Err(Error::Unavailable(reason))
        }
    }
}

/// Whether a GPU's architecture, such as `applegpu_g12p`, is older than what MLX's kernels need. Names
/// without a generation, such as those of virtual machines, are not.
fn is_too_old(architecture: &str) -> bool {
    let Some(generation) = architecture.strip_prefix("applegpu_g") else { return false };
    let digits = generation.find(|c: char| !c.is_ascii_digit()).unwrap_or(generation.len());
    generation[..digits].parse().is_ok_and(|generation: u32| generation < FIRST_GENERATION)
}

/// The bytes of memory that a program may use here, if that is known: those of the device, and on iOS
/// no more than the system lets this process use.
pub(crate) fn device_memory() -> Option<u64> {
    let device = ffi::device_memory();
    [device, process_limit()].into_iter().flatten().min()
}

/// The bytes that arrays may take before the system ends this process, where it has such a limit.
pub(super) fn process_limit() -> Option<u64> {
    let left = ffi::bytes_before_the_end()?;
    let held = memory::active_memory().ok()? + memory::cache_memory().ok()?;
    Some(left + held as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_before_a14_are_too_old() {
        for (architecture, expected) in [
            ("applegpu_g11p", true),
            ("applegpu_g12p", true),
            ("applegpu_g9p", true),
            ("applegpu_g13p", false),
            ("applegpu_g13g", false),
            ("applegpu_g17s", false),
            ("air64_v27", false),
            ("Apple Paravirtual device", false),
            ("applegpu_g", false),
            ("sm_90", false),
            ("", false),
        ] {
            assert_eq!(is_too_old(architecture), expected, "{architecture}");
        }
    }
}
