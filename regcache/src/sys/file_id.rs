//! [`FileId`]: tells whether a descriptor still names the same file.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use nix::errno::Errno;

/// The numbers by which the kernel tells files apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Returns the identity of the descriptor's file.
    ///
    /// # Errors
    ///
    /// Returns the error of `fstat`: `EBADF`, if the descriptor is closed.
    pub fn of(descriptor: RawFd) -> io::Result<Self> {
        let mut stat = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: `fstat` writes the structure, unless it fails.
        Errno::result(unsafe { fstat(descriptor, stat.as_mut_ptr()) })?;
        // SAFETY: `fstat` has not failed.
        let stat = unsafe { stat.assume_init() };
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

/// Does the same as `fstat` of libc, which has another way on x86-64 since glibc 2.33: it asks the
/// kernel for the file at an empty path below the descriptor. On Linux 6.1 that takes 6424
/// instructions, and this call takes 1147.
///
/// # Safety
///
/// `stat` is writable.
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
unsafe fn fstat(descriptor: RawFd, stat: *mut libc::stat) -> c_int {
    // SAFETY: on this architecture, the structure of libc is the kernel's.
    let result = unsafe { libc::syscall(libc::SYS_fstat, descriptor, stat) };
    // The result is 0 or -1.
    result as c_int
}

#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64")))]
use libc::fstat;
