//! [`FileId`]: tells whether a descriptor still names the same file.

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
        Errno::result(unsafe { libc::fstat(descriptor, stat.as_mut_ptr()) })?;
        // SAFETY: `fstat` has not failed.
        let stat = unsafe { stat.assume_init() };
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}
