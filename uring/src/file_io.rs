//! [`FileIo`]: reads and writes of files by fixed buffers, one at a time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use io_uring::{IoUring, opcode, squeue, types};
use regcache::monitor::Monitor;
use regcache::{Cache, RangeError, VaRange};

use crate::{FixedBuffer, UringRegistrar};

/// Slots of its table.
const SLOTS: u32 = 4096;

/// Bytes that one request is for at most, as for `write(2)`.
const MAX_TRANSFER: usize = 0x7fff_f000;

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The buffer could not be registered.
    #[error(transparent)]
    Lookup(#[from] regcache::Error),
    /// The registration is not of this ring, or does not cover the bytes.
    #[error("the buffer {buffer:?} is not of this ring, or not one for {wanted:?}")]
    WrongBuffer {
        /// What it was made for.
        buffer: VaRange,
        /// What was to be transferred.
        wanted: VaRange,
    },
    /// The file's, or the ring's.
    #[error("io_uring failed")]
    Io(#[from] io::Error),
}

impl From<RangeError> for Error {
    fn from(error: RangeError) -> Self {
        Self::Lookup(error.into())
    }
}

/// A ring for reads and writes that block.
///
/// Shared between threads by reference; their transfers wait for each other.
#[derive(Debug)]
pub struct FileIo {
    ring: Mutex<Ring>,
    registrar: UringRegistrar,
}

struct Ring {
    ring: IoUring,
    /// A request could not be submitted and is still queued: it must never be, its memory is not borrowed
    /// any more.
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
    /// What the kernel says: `EPERM` where `kernel.io_uring_disabled` forbids it, `ENOSYS` in a sandbox;
    /// and as [`UringRegistrar::new`].
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

    /// The registrar of this ring's buffers: to build the cache on.
    #[must_use]
    pub fn registrar(&self) -> &UringRegistrar {
        &self.registrar
    }

    /// Writes `bytes` to `file` at `offset`, of no meaning for a pipe, and returns how many were written.
    ///
    /// # Errors
    ///
    /// [`Error`]; also if `cache` is one for another ring.
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
        // SAFETY: by the cache's promise the buffer is the memory that is mapped there, which is borrowed.
        unsafe { self.write_registered(file, bytes, guard.registration(), offset) }
    }

    /// Reads from `file` at `offset` into `bytes`, and returns how many were read: fewer than there is room
    /// for at the end of the file.
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
        // SAFETY: as in `write`; borrowed mutably.
        unsafe { self.read_registered(file, bytes, guard.registration(), offset) }
    }

    /// As [`write`](Self::write), by a registration that is at hand.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    ///
    /// # Safety
    ///
    /// The registration is not stale; or nobody minds which bytes are written, and the pages that it
    /// reaches are mapped nowhere.
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

    /// As [`read`](Self::read), by a registration that is at hand.
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

    /// How many bytes to ask for.
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
    /// The memory that it reaches may be accessed until this returns.
    unsafe fn transfer(&self, request: &squeue::Entry) -> Result<usize, Error> {
        let Ring { ring, is_broken } =
            &mut *self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_broken {
            return Err(io::Error::other("the ring failed before").into());
        }
        // SAFETY: the caller's promise; the request does not outlive this call, or is never submitted.
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

/// Whether to try again: a signal, or something that the kernel is short of at the moment.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}
