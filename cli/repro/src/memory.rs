//! [`Memory`]: a range of mapped addresses, and the calls that map and unmap it.

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};

use nix::errno::Errno;

/// A range of mapped addresses, which a scenario owns and changes.
///
/// Dropping it unmaps nothing: each scenario knows what is mapped there at its end.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
}

impl Memory {
    /// Takes the `len` bytes at `start`, an address whose provenance is exposed.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `start` is 0.
    ///
    /// # Safety
    ///
    /// The caller owns these addresses: nothing else uses or refers to them.
    pub unsafe fn at(start: usize, len: usize) -> io::Result<Self> {
        let start = NonNull::new(ptr::with_exposed_provenance_mut(start)).ok_or(Errno::EINVAL)?;
        Ok(Self { start, len })
    }

    /// Returns the address of the first byte.
    #[must_use]
    pub fn as_ptr(self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Returns the length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(self) -> usize {
        self.len
    }

    /// Borrows the bytes.
    ///
    /// # Safety
    ///
    /// The memory is mapped for as long as the result lives, and there is no other reference to it.
    #[must_use]
    pub unsafe fn bytes<'a>(self) -> &'a mut [u8] {
        // SAFETY: mapped readable and writable, and exclusive, by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Returns the part at these offsets.
    ///
    /// # Panics
    ///
    /// If the offsets exceed the memory.
    #[must_use]
    pub fn part(self, part: Range<usize>) -> Self {
        assert!(part.start <= part.end && part.end <= self.len);
        // SAFETY: within the memory, as checked above.
        let start = unsafe { self.start.add(part.start) };
        Self {
            start,
            len: part.len(),
        }
    }
}

/// Maps `len` readable and writable bytes with these flags, at the addresses of `at` or where the
/// kernel likes.
///
/// # Errors
///
/// The error of `mmap`.
///
/// # Panics
///
/// If `len` exceeds `at`.
pub fn mmap(at: Option<Memory>, len: usize, flags: i32, fd: i32) -> io::Result<Memory> {
    assert!(at.is_none_or(|at| len <= at.len));
    let start = at.map_or(ptr::null_mut(), Memory::as_ptr);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: maps over memory that the scenario owns, or where the kernel likes.
    let start = unsafe { libc::mmap(start.cast(), len, protection, flags, fd, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast())
        .map(|start| Memory { start, len })
        .ok_or(Errno::EINVAL.into())
}

/// Maps `len` bytes of private anonymous memory where the kernel likes.
///
/// # Errors
///
/// The error of `mmap`.
pub fn map(len: usize) -> io::Result<Memory> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    mmap(None, len, flags, -1)
}

/// Maps private anonymous memory at the addresses of `memory`; `how` is the flag that asks for
/// them.
///
/// # Errors
///
/// The error of `mmap`; `AddrNotAvailable` if the kernel chose another address.
pub fn map_at(memory: Memory, how: i32) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | how;
    same_address(memory, mmap(Some(memory), memory.len, flags, -1)?)
}

/// Unmaps the memory.
pub fn unmap(memory: Memory) {
    // SAFETY: the memory is the scenario's own, and there is no reference to it.
    let result = unsafe { libc::munmap(memory.as_ptr().cast(), memory.len) };
    debug_assert_eq!(result, 0);
}

/// Checks that memory that was mapped again is where it was before.
///
/// # Errors
///
/// `AddrNotAvailable` if it is not.
pub fn same_address(wanted: Memory, given: Memory) -> io::Result<()> {
    if given.start == wanted.start {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        format!(
            "the kernel mapped {:p}, not {:p} again",
            given.start, wanted.start
        ),
    ))
}
