//! Maps and unmaps private anonymous memory at an address that the caller chooses.

use std::io;
use std::ptr;

use nix::errno::Errno;

/// Maps `len` readable and writable bytes of private anonymous memory at `start`. The flag `how`
/// must be `MAP_FIXED_NOREPLACE`. If the caller owns the memory at `start`, `how` may also be
/// `MAP_FIXED`.
///
/// # Errors
///
/// The error of `mmap`. It is `EEXIST` if `how` is `MAP_FIXED_NOREPLACE` and the addresses are in
/// use.
pub fn map_fixed(start: usize, len: usize, how: i32) -> io::Result<*mut u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | how;
    let start = ptr::with_exposed_provenance_mut(start);
    // SAFETY: with `MAP_FIXED_NOREPLACE`, the call maps only at free addresses. With `MAP_FIXED`,
    // the caller owns the memory at the addresses, and no reference to this memory exists.
    let start = unsafe { libc::mmap(start, len, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(start.cast())
}

/// Unmaps memory that [`map_fixed`] has mapped. The caller must keep no reference to the memory.
///
/// # Errors
///
/// The error of `munmap`.
pub fn unmap(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller owns the memory, and no reference to it exists.
    Errno::result(unsafe { libc::munmap(start.cast(), len) })?;
    Ok(())
}
