//! Defines [`Memory`], a range of mapped addresses, and the functions that map and unmap such a
//! range.

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};

use nix::errno::Errno;

/// A range of mapped addresses that a scenario owns and changes.
///
/// Dropping a `Memory` unmaps nothing. Each scenario has a function that frees its memory, because
/// only the scenario knows which mappings are left at these addresses.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
}

impl Memory {
    /// Makes a `Memory` of the `len` bytes at `start`. The caller must have exposed the provenance
    /// of `start`.
    ///
    /// # Errors
    ///
    /// Returns `EINVAL` if the address `start` is 0.
    ///
    /// # Safety
    ///
    /// The caller must own the addresses: no other code uses the memory at these addresses, and no
    /// reference to this memory exists.
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
    /// The memory must stay mapped while the result lives. No other reference to the memory may
    /// exist during that time.
    #[must_use]
    pub unsafe fn bytes<'a>(self) -> &'a mut [u8] {
        // SAFETY: the caller promises that the memory is mapped readable and writable, and that no
        // other reference to it exists.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Returns the part of the memory whose offsets are in `part`.
    ///
    /// # Panics
    ///
    /// Panics if the part does not lie within the memory.
    #[must_use]
    pub fn part(self, part: Range<usize>) -> Self {
        assert!(part.start <= part.end && part.end <= self.len);
        // SAFETY: the offset is within the memory, as checked above.
        let start = unsafe { self.start.add(part.start) };
        Self {
            start,
            len: part.len(),
        }
    }
}

/// Maps `len` readable and writable bytes with these flags. The bytes are mapped at the start of
/// `at`, or at an address that the kernel chooses if `at` is `None`.
///
/// # Errors
///
/// Returns the error of `mmap`.
///
/// # Panics
///
/// Panics if `len` exceeds the length of `at`.
pub fn mmap(at: Option<Memory>, len: usize, flags: i32, fd: i32) -> io::Result<Memory> {
    assert!(at.is_none_or(|at| len <= at.len));
    let start = at.map_or(ptr::null_mut(), Memory::as_ptr);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the call maps over memory that the scenario owns, or at an address that the kernel
    // chooses.
    let start = unsafe { libc::mmap(start.cast(), len, protection, flags, fd, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast())
        .map(|start| Memory { start, len })
        .ok_or(Errno::EINVAL.into())
}

/// Maps `len` bytes of private anonymous memory at an address that the kernel chooses.
///
/// # Errors
///
/// Returns the error of `mmap`.
pub fn map(len: usize) -> io::Result<Memory> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    mmap(None, len, flags, -1)
}

/// Maps private anonymous memory at the addresses of `memory`. The flag `how` is `MAP_FIXED` or
/// `MAP_FIXED_NOREPLACE`.
///
/// # Errors
///
/// Returns the error of `mmap`, or `AddrNotAvailable` if the kernel chose another address.
pub fn map_at(memory: Memory, how: i32) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | how;
    same_address(memory, mmap(Some(memory), memory.len, flags, -1)?)
}

/// Unmaps the memory.
pub fn unmap(memory: Memory) {
    // SAFETY: the memory is the scenario's own, and no reference to it exists.
    let result = unsafe { libc::munmap(memory.as_ptr().cast(), memory.len) };
    debug_assert_eq!(result, 0);
}

/// Checks that `given`, which the kernel has just mapped, starts at the address of `wanted`.
///
/// # Errors
///
/// Returns `AddrNotAvailable` if the addresses differ.
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
