//! Functions that several scenarios use. Some functions make a system call, and others return a
//! part of the memory.

use std::io;
use std::ops::Range;

use nix::errno::Errno;
use regcache_repro::{Memory, PAGE};

/// Returns the offsets of the memory without its first two and its last three pages.
pub(super) fn middle(memory: Memory) -> Range<usize> {
    2 * PAGE..memory.len() - 3 * PAGE
}

/// Returns an empty range of offsets: the changed part of a scenario that changes no page.
pub(super) fn none(_: Memory) -> Range<usize> {
    0..0
}

/// Turns the error of a request that the kernel does not support into `Unsupported`.
pub(super) fn supported(done: io::Result<()>) -> io::Result<()> {
    done.map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL | libc::EPERM | libc::ENOSYS) => io::ErrorKind::Unsupported.into(),
        _ => error,
    })
}

pub(super) fn mremap(from: Memory, to: Memory) -> io::Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the scenario owns the memory at `from` and at `to`, and no reference to either memory
    // exists.
    let moved = unsafe {
        libc::mremap(
            from.as_ptr().cast(),
            from.len(),
            to.len(),
            flags,
            to.as_ptr(),
        )
    };
    if moved == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

pub(super) fn moved(memory: Memory, len: usize, flags: i32, to: *mut u8) -> io::Result<()> {
    let start = memory.as_ptr();
    // SAFETY: the scenario owns the memory, and also the memory at `to`.
    let moved = unsafe { libc::mremap(start.cast(), memory.len(), len, flags, to) };
    if moved == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(super) fn advise(memory: Memory, advice: i32) -> io::Result<()> {
    // SAFETY: the memory is the scenario's own, and no reference to it exists.
    Errno::result(unsafe { libc::madvise(memory.as_ptr().cast(), memory.len(), advice) })?;
    Ok(())
}

pub(super) fn protect(memory: Memory, protection: i32) -> io::Result<()> {
    // SAFETY: the memory is the scenario's own, and no reference to it exists.
    Errno::result(unsafe { libc::mprotect(memory.as_ptr().cast(), memory.len(), protection) })?;
    Ok(())
}
