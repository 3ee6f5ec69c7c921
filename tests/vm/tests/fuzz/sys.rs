//! System calls for the fuzzer. The arguments may be invalid, because the fuzzer tests that the
//! kernel refuses invalid arguments.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::Result;
use nix::errno::Errno;
use ummunotify_sys::{self as abi, Register, Register2};

use crate::model::PAGE;
use crate::op::Access;

/// An address that is never mapped.
pub(crate) const NOWHERE: u64 = 8;

fn pointer<T>(address: u64) -> *mut T {
    ptr::with_exposed_provenance_mut(address as usize)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

fn done(result: i32) -> Result<()> {
    Errno::result(result).map(drop)
}

pub(crate) fn open() -> std::io::Result<OwnedFd> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    Ok(options.open("/dev/ummunotify")?.into())
}

pub(crate) fn set_blocking(fd: &OwnedFd, on: bool) -> Result<()> {
    let flags = if on { 0 } else { libc::O_NONBLOCK };
    // SAFETY: the call accesses no memory.
    done(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) })
}

pub(crate) fn exchange(fd: &OwnedFd, mask: &mut u32) -> Result<()> {
    // SAFETY: the mask is a writable `u32`.
    unsafe { abi::exchange_features(fd.as_raw_fd(), mask) }.map_err(errno)
}

pub(crate) fn register(fd: &OwnedFd, region: &Register) -> Result<()> {
    // SAFETY: the structure is readable.
    unsafe { abi::register_region(fd.as_raw_fd(), region) }.map_err(errno)
}

/// Calls REGISTER_REGION with a pointer to a structure that cannot be read.
pub(crate) fn register_nothing(fd: &OwnedFd) -> Result<()> {
    // SAFETY: the kernel checks the pointer, and returns an error if it cannot read the memory.
    unsafe { abi::register_region(fd.as_raw_fd(), pointer(NOWHERE)) }.map_err(errno)
}

/// Calls REGISTER_REGION2 with a structure of `size` bytes. If `tail` is an offset, the byte at
/// this offset is 1 instead of 0.
pub(crate) fn register2(
    fd: &OwnedFd,
    mut region: Register2,
    size: usize,
    tail: Option<usize>,
) -> Result<()> {
    /// A structure that is longer than every `size` that the fuzzer passes.
    #[repr(C)]
    struct Long(Register2, [u8; 2 * PAGE as usize]);
    region.size = size as u32;
    let mut long = Long(region, [0; 2 * PAGE as usize]);
    if let Some(byte) = tail {
        long.1[byte - size_of::<Register2>()] = 1;
    }
    // SAFETY: at least `size` bytes of the structure are readable.
    unsafe { abi::register_region2(fd.as_raw_fd(), (&raw const long).cast()) }.map_err(errno)
}

/// Calls REGISTER_REGION2 with a pointer to a structure that cannot be read.
pub(crate) fn register2_nothing(fd: &OwnedFd) -> Result<()> {
    // SAFETY: the kernel checks the pointer, and returns an error if it cannot read the memory.
    unsafe { abi::register_region2(fd.as_raw_fd(), pointer(NOWHERE)) }.map_err(errno)
}

pub(crate) fn unregister(fd: &OwnedFd, cookie: u64) -> Result<()> {
    // SAFETY: the cookie is a readable `u64`.
    unsafe { abi::unregister_region(fd.as_raw_fd(), &raw const cookie) }.map_err(errno)
}

/// Calls UNREGISTER_REGION with a pointer to a cookie that cannot be read.
pub(crate) fn unregister_nothing(fd: &OwnedFd) -> Result<()> {
    // SAFETY: the kernel checks the pointer, and returns an error if it cannot read the memory.
    unsafe { abi::unregister_region(fd.as_raw_fd(), pointer(NOWHERE)) }.map_err(errno)
}

/// Calls `ioctl` with a request that the driver does not know.
pub(crate) fn unknown_ioctl(fd: &OwnedFd, number: u8) -> Result<()> {
    let request = u64::from(b'V') << 8 | u64::from(number);
    // SAFETY: the driver does not know the request, and nothing is mapped at the address.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), request, NOWHERE) })
}

/// Reads into the memory at this address. Rust code must not use this memory during the call.
pub(crate) fn read(fd: &OwnedFd, address: u64, bytes: usize) -> Result<usize> {
    // SAFETY: the caller promises that Rust code does not use the memory. The kernel checks the
    // address.
    let n = unsafe { libc::read(fd.as_raw_fd(), pointer(address), bytes) };
    Errno::result(n).map(isize::unsigned_abs)
}

/// Maps anonymous memory at this address, and replaces any mapping at the address.
pub(crate) fn map(address: u64, bytes: u64, access: Access) -> Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let protection = protection(access);
    // SAFETY: the addresses belong to the fuzzer, and no references to the memory exist.
    let at = unsafe { libc::mmap(pointer(address), bytes as usize, protection, flags, -1, 0) };
    Errno::result(at as isize).map(drop)
}

fn protection(access: Access) -> i32 {
    match access {
        Access::Nothing => libc::PROT_NONE,
        Access::Read => libc::PROT_READ,
        Access::Write => libc::PROT_READ | libc::PROT_WRITE,
    }
}

pub(crate) fn unmap(address: u64, bytes: u64) -> Result<()> {
    // SAFETY: the addresses belong to the fuzzer, and no references to the memory exist.
    done(unsafe { libc::munmap(pointer(address), bytes as usize) })
}

pub(crate) fn protect(address: u64, bytes: u64, access: Access) -> Result<()> {
    // SAFETY: the addresses belong to the fuzzer, and no references to the memory exist.
    done(unsafe { libc::mprotect(pointer(address), bytes as usize, protection(access)) })
}

pub(crate) fn advise(address: u64, bytes: u64, advice: i32) -> Result<()> {
    // SAFETY: the addresses belong to the fuzzer, and no references to the memory exist.
    done(unsafe { libc::madvise(pointer(address), bytes as usize, advice) })
}

pub(crate) fn remap(address: u64, bytes: u64, new_bytes: u64, flags: i32, to: u64) -> Result<()> {
    let (from, to) = (pointer(address), pointer::<libc::c_void>(to));
    // SAFETY: the addresses belong to the fuzzer, and no references to the memory exist.
    let at = unsafe { libc::mremap(from, bytes as usize, new_bytes as usize, flags, to) };
    Errno::result(at as isize).map(drop)
}

/// Accesses one byte. The protection must allow the access.
pub(crate) fn touch(address: u64, write: bool) {
    let byte = pointer::<u8>(address);
    // SAFETY: the model allows the access. If the model is wrong, the access kills only this
    // process.
    unsafe {
        if write {
            byte.write_volatile(1);
        } else {
            byte.read_volatile();
        }
    }
}

/// A mapping of a file's counter page.
#[derive(Debug)]
pub(crate) struct Counter(*mut AtomicU64);

// SAFETY: all accesses through the pointer are atomic loads.
unsafe impl Send for Counter {}
// SAFETY: all accesses through the pointer are atomic loads.
unsafe impl Sync for Counter {}

impl Counter {
    pub(crate) fn map(fd: &OwnedFd) -> Result<Self> {
        Self::map_as(fd, PAGE, libc::PROT_READ, libc::MAP_SHARED, 0)
    }

    /// Maps the counter page with these arguments, which may be invalid.
    pub(crate) fn map_as(
        fd: &OwnedFd,
        bytes: u64,
        protection: i32,
        flags: i32,
        offset: u64,
    ) -> Result<Self> {
        let (nowhere, fd) = (ptr::null_mut(), fd.as_raw_fd());
        // SAFETY: the kernel chooses a free address, so the call replaces no mapping.
        let at = unsafe {
            libc::mmap(
                nowhere,
                bytes as usize,
                protection,
                flags,
                fd,
                offset as libc::off_t,
            )
        };
        Errno::result(at as isize)?;
        Ok(Self(at.cast()))
    }

    pub(crate) fn load(&self) -> u64 {
        // SAFETY: the page is mapped until the value is dropped. The kernel writes to the page by
        // whole aligned words, and this process only loads from the page.
        unsafe { &*self.0 }.load(Ordering::Acquire)
    }

    pub(crate) fn address(&self) -> u64 {
        self.0.addr() as u64
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = unmap(self.address(), PAGE);
    }
}
