//! Private anonymous memory at an address that the caller chooses.

use std::io;
use std::ptr;

use nix::errno::Errno;

/// Maps `len` readable and writable bytes at `start`, with this flag beside `MAP_PRIVATE` and
/// `MAP_ANONYMOUS`: `MAP_FIXED_NOREPLACE`, or `MAP_FIXED` over memory of the caller's own.
///
/// # Errors
///
/// The error of `mmap`; `EEXIST` if something is mapped there that `how` does not replace.
pub fn map_fixed(start: usize, len: usize, how: i32) -> io::Result<*mut u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | how;
    let start = ptr::with_exposed_provenance_mut(start);
    // SAFETY: where nothing is, or over memory of the caller's to which there is no reference.
    let start = unsafe { libc::mmap(start, len, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(start.cast())
}

/// Unmaps memory of [`map_fixed`], to which no reference is left.
///
/// # Errors
///
/// The error of `munmap`.
pub fn unmap(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's own memory, and there is no reference to it.
    Errno::result(unsafe { libc::munmap(start.cast(), len) })?;
    Ok(())
}
