//! [`Table`]: a ring's table of fixed buffers, and which of its slots are free.
//!
//! The table is registered sparse, all slots empty, and filled and cleared one slot at a time by
//! `IORING_REGISTER_BUFFERS_UPDATE`. A slot is free again only after the update that clears it: until
//! then a request that names it would reach the old buffer. Requests under way keep the buffer they
//! began with, whatever becomes of the slot.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

/// `IORING_REGISTER_BUFFERS2`.
const REGISTER_BUFFERS2: u32 = 15;
/// `IORING_REGISTER_BUFFERS_UPDATE`.
const BUFFERS_UPDATE: u32 = 16;
/// `IORING_RSRC_REGISTER_SPARSE`, Linux 5.19.
const SPARSE: u32 = 1;

/// What the kernel allows a ring, and fits into a request's index.
pub(crate) const MAX_SLOTS: u32 = 1 << 14;

/// `struct io_uring_rsrc_register`.
#[repr(C)]
#[derive(Default)]
struct Register {
    nr: u32,
    flags: u32,
    reserved: u64,
    data: u64,
    tags: u64,
}

/// `struct io_uring_rsrc_update2`.
#[repr(C)]
#[derive(Default)]
struct Update {
    offset: u32,
    reserved: u32,
    data: u64,
    tags: u64,
    nr: u32,
    reserved2: u32,
}

const _: () = assert!(size_of::<Register>() == 32 && size_of::<Update>() == 32);

#[derive(Debug)]
pub(crate) struct Table {
    ring: OwnedFd,
    free: Mutex<Vec<u16>>,
}

impl Table {
    /// Registers an empty table of so many slots with a ring that has none.
    pub(crate) fn new(ring: OwnedFd, slots: u32) -> io::Result<Self> {
        if slots == 0 || slots > MAX_SLOTS {
            let why = format!("{slots} slots: a ring can have from 1 to {MAX_SLOTS}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let table = Register {
            nr: slots,
            flags: SPARSE,
            ..Register::default()
        };
        // SAFETY: a structure of the size that is given, which names no memory.
        unsafe {
            register(
                &ring,
                REGISTER_BUFFERS2,
                &raw const table,
                size_of::<Register>(),
            )
        }?;
        // The lowest first. No more than fit, as there are no more than `MAX_SLOTS`.
        let free = (0..slots).rev().map(|slot| slot as u16).collect();
        Ok(Self {
            ring,
            free: Mutex::new(free),
        })
    }

    /// Puts the `len` bytes at `start` into a free slot, pinning their pages.
    pub(crate) fn fill(&self, start: usize, len: usize) -> io::Result<u16> {
        let slot = self.free().pop().ok_or(Errno::ENOSPC)?;
        if let Err(error) = self.update(slot, start, len) {
            self.free().push(slot);
            return Err(error);
        }
        Ok(slot)
    }

    /// Clears a slot. If that fails it is not free.
    pub(crate) fn clear(&self, slot: u16) -> io::Result<()> {
        self.update(slot, 0, 0)?;
        self.free().push(slot);
        Ok(())
    }

    fn update(&self, slot: u16, start: usize, len: usize) -> io::Result<()> {
        let buffer = libc::iovec {
            iov_base: std::ptr::without_provenance_mut(start),
            iov_len: len,
        };
        let update = Update {
            offset: u32::from(slot),
            data: (&raw const buffer).expose_provenance() as u64,
            nr: 1,
            ..Update::default()
        };
        // SAFETY: a structure of the size that is given; it names one iovec, which is read during the
        // call. What that names is only pinned: to reach it takes a request.
        let done = unsafe {
            register(
                &self.ring,
                BUFFERS_UPDATE,
                &raw const update,
                size_of::<Update>(),
            )
        }?;
        if done == 1 {
            Ok(())
        } else {
            Err(Errno::EIO.into())
        }
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<u16>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `io_uring_register(2)`.
///
/// # Safety
///
/// As for the operation.
unsafe fn register<T>(
    ring: &OwnedFd,
    operation: u32,
    argument: *const T,
    size: usize,
) -> io::Result<i64> {
    // SAFETY: passed on.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            operation,
            argument,
            size,
        )
    };
    Ok(Errno::result(done)?)
}
