//! [`FileIo`]: reads and writes files by fixed buffers, one transfer at a time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use io_uring::{IoUring, opcode, squeue, types};
use regcache::monitor::Monitor;
use regcache::{Cache, RangeError, VaRange};

use crate::{FixedBuffer, UringRegistrar};

/// The slots of its table.
const SLOTS: u32 = 4096;

/// The most bytes of one request, which is also the limit of `write(2)`.
const MAX_TRANSFER: usize = 0x7fff_f000;

/// The reason why a transfer failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The lookup of the buffer failed.
    #[error(transparent)]
    Lookup(#[from] regcache::Error),
    /// The buffer belongs to another ring, or does not cover the bytes.
    #[error(
        "the buffer {buffer:?} belongs to another ring or does not cover {wanted:?}: use a cache that was built on this ring's registrar"
    )]
    WrongBuffer {
        /// The addresses that the buffer was made for.
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

/// A ring for reads and writes that block.
///
/// Threads share it by reference. Their transfers wait for each other.
#[derive(Debug)]
pub struct FileIo {
    ring: Mutex<Ring>,
    registrar: UringRegistrar,
}

struct Ring {
    ring: IoUring,
    /// A request could not be submitted and is still queued. It must never be submitted, because
    /// its memory is no longer borrowed.
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
    /// The errors of the kernel: `EPERM` where `kernel.io_uring_disabled` forbids it, `ENOSYS` in a
    /// sandbox; and those of [`UringRegistrar::new`].
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

    /// Returns the registrar of this ring, on which the cache is to be built.
    #[must_use]
    pub fn registrar(&self) -> &UringRegistrar {
        &self.registrar
    }

    /// Writes `bytes` to `file` at `offset`, and returns how many bytes were written. A pipe
    /// ignores the offset.
    ///
    /// # Errors
    ///
    /// [`Error`]; [`Error::WrongBuffer`] if `cache` was built for another ring.
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
        // SAFETY: the cache guarantees that the buffer is the memory that is mapped there, and
        // `bytes` borrows that.
        unsafe { self.write_registered(file, bytes, guard.registration(), offset) }
    }

    /// Reads from `file` at `offset` into `bytes`, and returns how many bytes were read. At the end
    /// of the file these are fewer than `bytes` has.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
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
        // SAFETY: as in `write`; `bytes` borrows the memory mutably.
        unsafe { self.read_registered(file, bytes, guard.registration(), offset) }
    }

    /// Writes as [`write`](Self::write) does, by a registration of the caller.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    ///
    /// # Safety
    ///
    /// The registration is not stale; or any bytes may be written, and the pages that it reaches
    /// are mapped nowhere.
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
        // SAFETY: the caller's promise.
        unsafe { self.transfer(&request.offset(offset).build()) }
    }

    /// Reads as [`read`](Self::read) does, by a registration of the caller.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    ///
    /// # Safety
    ///
    /// The registration is not stale, or the pages that it reaches are mapped nowhere.
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
        // SAFETY: the caller's promise.
        unsafe { self.transfer(&request.offset(offset).build()) }
    }

    /// Checks the buffer, and returns how many bytes to ask for.
    fn check(&self, bytes: &[u8], buffer: &FixedBuffer) -> Result<u32, Error> {
        let wanted = VaRange::new(bytes.as_ptr(), bytes.len())?;
        if !(self.registrar.owns(buffer) && buffer.range().contains(&wanted)) {
            let buffer = buffer.range();
            return Err(Error::WrongBuffer { buffer, wanted });
        }
        Ok(bytes.len().min(MAX_TRANSFER) as u32)
    }

    /// Submits one request and waits for it.
    ///
    /// # Safety
    ///
    /// The kernel may access the memory of the request until this returns.
    unsafe fn transfer(&self, request: &squeue::Entry) -> Result<usize, Error> {
        let Ring { ring, is_broken } =
            &mut *self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_broken {
            return Err(io::Error::other("the ring has failed before: make a new FileIo").into());
        }
        // SAFETY: the caller's promise. The request ends in this call or is never submitted.
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

/// Whether to try again: after a signal, or while the kernel lacks some resource.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}
