//! What users and other programs touch: sessions, sampling, the hub, the cache on disk, the command,
//! the packages for Apple.

mod audio_command;
mod command;
mod embed_command;
mod hub;
mod packaging;
mod readme;
mod sampling;
mod session;
mod store;
mod structured;
mod templates;
mod terminal;

#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
