//! Files that MLX reads through this library.

use super::check;
use crate::error::Result;
use mlx_rs::{Array, Stream};
use mlx_sys as sys;
use std::{
    cell::Cell,
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
};

/// A file that MLX reads through this library, from any thread.
pub(in crate::mlx) trait FileReader: Send + Sync {
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
pub(in crate::mlx) fn load_from(file: Box<dyn FileReader>) -> Result<HashMap<String, Array>> {
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
    // SAFETY: called by MLX alone, which has allocated `count` bytes; they have no other reader or writer, and
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
