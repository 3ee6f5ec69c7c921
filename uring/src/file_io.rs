//! [`FileIo`]: a ring of io_uring that reads and writes files through fixed buffers. A `FileIo` has
//! at most one transfer in flight.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use io_uring::{IoUring, opcode, squeue, types};
use regcache::monitor::Monitor;
use regcache::{Cache, RangeError, VaRange};

use crate::{FixedBuffer, UringRegistrar};

/// The number of slots in the table of fixed buffers.
const SLOTS: u32 = 4096;

/// The maximum number of bytes in one request. `write(2)` has the same limit.
const MAX_TRANSFER: usize = 0x7fff_f000;

/// The reason why a transfer failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The lookup of the buffer failed.
    #[error(transparent)]
    Lookup(#[from] regcache::Error),
    /// The fixed buffer belongs to another ring, or does not cover the memory of the transfer.
    #[error(
        "the buffer {buffer:?} belongs to another ring or does not cover {wanted:?}: use a cache that was built on this ring's registrar"
    )]
    WrongBuffer {
        /// The addresses that the fixed buffer covers.
        buffer: VaRange,
        /// The addresses of the transfer.
        wanted: VaRange,
    },
    /// The file or the ring failed.
    #[error("io_uring could not transfer the bytes")]
    Io(#[from] io::Error),
}

impl From<RangeError> for Error {
    fn from(error: RangeError) -> Self {
        Self::Lookup(error.into())
    }
}

/// A ring for blocking reads and writes.
///
/// Threads share a `FileIo` by reference. A transfer waits until the transfer of another thread is
/// complete.
#[derive(Debug)]
pub struct FileIo {
    ring: Mutex<Ring>,
    registrar: UringRegistrar,
}

struct Ring {
    ring: IoUring,
    /// True if a request could not be submitted and is still in the submission queue. The memory of
    /// that request is no longer borrowed. The next submission would include that request, so the
    /// ring must not be used again.
    is_broken: bool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ring").field(&self.ring.as_raw_fd()).finish()
    }
}

impl FileIo {
    /// Makes a ring with a table of 4096 fixed buffers.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error, for example `EPERM` if `kernel.io_uring_disabled` forbids rings,
    /// or `ENOSYS` if a sandbox forbids them. Also returns the errors of [`UringRegistrar::new`].
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::new(2)?;
        Ok(Self {
            registrar: UringRegistrar::new(&ring, SLOTS)?,
            ring: Mutex::new(Ring {
                ring,
                is_broken: false,
            }),
        })
    }

    /// Returns the registrar of this ring. Build the cache for [`read`](Self::read) and
    /// [`write`](Self::write) with a clone of this registrar.
    #[must_use]
    pub fn registrar(&self) -> &UringRegistrar {
        &self.registrar
    }

    /// Writes `bytes` to `file` at `offset`, and returns the number of bytes written. If `file` is
    /// a pipe, the offset has no effect.
    ///
    /// # Errors
    ///
    /// Returns [`Error`]. The error is [`Error::WrongBuffer`] if `cache` was built for another
    /// ring.
    pub fn write<M: Monitor>(
        &self,
        cache: &Cache<UringRegistrar, M>,
        file: BorrowedFd<'_>,
        bytes: &[u8],
        offset: u64,
    ) -> Result<usize, Error> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let guard = cache.get(bytes.as_ptr(), bytes.len(), ())?;
        // SAFETY: the cache guarantees that the fixed buffer names the memory that is mapped at the
        // addresses of `bytes`. `bytes` borrows that memory until the transfer is complete.
        unsafe { self.write_registered(file, bytes, guard.registration(), offset) }
    }

    /// Reads from `file` at `offset` into `bytes`, and returns the number of bytes read. If the
    /// file ends before `bytes` is full, this number is smaller than the length of `bytes`.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`write`](Self::write).
    pub fn read<M: Monitor>(
        &self,
        cache: &Cache<UringRegistrar, M>,
        file: BorrowedFd<'_>,
        bytes: &mut [u8],
        offset: u64,
    ) -> Result<usize, Error> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let guard = cache.get(bytes.as_ptr(), bytes.len(), ())?;
        // SAFETY: the fixed buffer names the memory of `bytes`, as in `write`. The borrow of
        // `bytes` is mutable, so the kernel may write to that memory.
        unsafe { self.read_registered(file, bytes, guard.registration(), offset) }
    }

    /// Writes as [`write`](Self::write) does, but through the registration `buffer` instead of a
    /// lookup.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`write`](Self::write).
    ///
    /// # Safety
    ///
    /// The registration must not be stale. As an exception, it may be stale if its pages are mapped
    /// nowhere and the file may receive any bytes.
    pub unsafe fn write_registered(
        &self,
        file: BorrowedFd<'_>,
        bytes: &[u8],
        buffer: &FixedBuffer,
        offset: u64,
    ) -> Result<usize, Error> {
        let len = self.check(bytes, buffer)?;
        let fd = types::Fd(file.as_raw_fd());
        let request = opcode::WriteFixed::new(fd, bytes.as_ptr(), len, buffer.index());
        // SAFETY: the caller keeps the conditions above. `bytes` borrows the memory until this
        // function returns, and the request is complete by then.
        unsafe { self.transfer(&request.offset(offset).build()) }
    }

    /// Reads as [`read`](Self::read) does, but through the registration `buffer` instead of a
    /// lookup.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`write`](Self::write).
    ///
    /// # Safety
    ///
    /// The registration must not be stale. As an exception, it may be stale if its pages are mapped
    /// nowhere.
    pub unsafe fn read_registered(
        &self,
        file: BorrowedFd<'_>,
        bytes: &mut [u8],
        buffer: &FixedBuffer,
        offset: u64,
    ) -> Result<usize, Error> {
        let len = self.check(bytes, buffer)?;
        let fd = types::Fd(file.as_raw_fd());
        let request = opcode::ReadFixed::new(fd, bytes.as_mut_ptr(), len, buffer.index());
        // SAFETY: the caller keeps the conditions above. `bytes` borrows the memory until this
        // function returns, and the request is complete by then.
        unsafe { self.transfer(&request.offset(offset).build()) }
    }

    /// Returns the number of bytes to request. Returns an error if the buffer belongs to another
    /// ring or does not cover `bytes`.
    fn check(&self, bytes: &[u8], buffer: &FixedBuffer) -> Result<u32, Error> {
        let wanted = VaRange::new(bytes.as_ptr(), bytes.len())?;
        if !(self.registrar.owns(buffer) && buffer.range().contains(&wanted)) {
            let buffer = buffer.range();
            return Err(Error::WrongBuffer { buffer, wanted });
        }
        Ok(bytes.len().min(MAX_TRANSFER) as u32)
    }

    /// Submits one request, waits until it completes, and returns the number of bytes moved.
    ///
    /// # Safety
    ///
    /// The kernel accesses the memory that the request names. The caller must allow these accesses
    /// until this function returns.
    unsafe fn transfer(&self, request: &squeue::Entry) -> Result<usize, Error> {
        let Ring { ring, is_broken } =
            &mut *self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_broken {
            return Err(io::Error::other("the ring has failed before: make a new FileIo").into());
        }
        // SAFETY: the caller allows the accesses of the kernel until this function returns. By then
        // the request is complete, or it is never submitted because `is_broken` is set.
        let pushed = unsafe { ring.submission().push(request) };
        pushed.map_err(io::Error::other)?;
        loop {
            match ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    *is_broken = true;
                    return Err(error.into());
                }
            }
            if let Some(completion) = ring.completion().next() {
                let result = completion.result();
                return match usize::try_from(result) {
                    Ok(moved) => Ok(moved),
                    Err(_) => Err(io::Error::from_raw_os_error(-result).into()),
                };
            }
        }
    }
}

/// Returns true if the submission must be repeated: a signal interrupted it, or the kernel lacks a
/// resource for the moment.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}
