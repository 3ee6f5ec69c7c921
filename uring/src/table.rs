//! [`Table`]: the table of fixed buffers of a ring, and the list of the table's free slots.
//!
//! The table is registered sparse: all slots are empty at first. An
//! `IORING_REGISTER_BUFFERS_UPDATE` fills or clears one slot. Until the update that clears a slot
//! has returned, a request that names the slot may use the old buffer. So the slot becomes free
//! only after this update has returned. A request in flight keeps its buffer even if the slot is
//! cleared meanwhile.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

/// `IORING_REGISTER_BUFFERS2`.
const REGISTER_BUFFERS2: u32 = 15;
/// `IORING_REGISTER_BUFFERS_UPDATE`.
const BUFFERS_UPDATE: u32 = 16;
/// `IORING_RSRC_REGISTER_SPARSE`, since Linux 5.19.
const SPARSE: u32 = 1;

/// The maximum number of slots that the kernel allows. The index of a slot is smaller, so it fits
/// into the 16-bit field of a request.
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
    /// Registers an empty table of `slots` slots with `ring`. The kernel returns `EBUSY` if the
    /// ring already has a table.
    pub(crate) fn new(ring: OwnedFd, slots: u32) -> io::Result<Self> {
        if slots == 0 || slots > MAX_SLOTS {
            let why = format!("a ring cannot have {slots} slots: choose 1 to {MAX_SLOTS}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let table = Register {
            nr: slots,
            flags: SPARSE,
            ..Register::default()
        };
        // SAFETY: the argument is a structure of the given size. Its pointers are null.
        unsafe {
            register(
                &ring,
                REGISTER_BUFFERS2,
                &raw const table,
                size_of::<Register>(),
            )
        }?;
        // The order is descending, so that `pop` returns the lowest slot first. The cast loses no
        // bits, because a slot is lower than `MAX_SLOTS`.
        let free = (0..slots).rev().map(|slot| slot as u16).collect();
        Ok(Self {
            ring,
            free: Mutex::new(free),
        })
    }

    /// Registers the `len` bytes at `start` in a free slot, which pins their pages. Returns the
    /// slot.
    pub(crate) fn fill(&self, start: usize, len: usize) -> io::Result<u16> {
        let slot = self.free().pop().ok_or(Errno::ENOSPC)?;
        if let Err(error) = self.update(slot, start, len) {
            self.free().push(slot);
            return Err(error);
        }
        Ok(slot)
    }

    /// Clears a slot and adds it to the free slots. If the kernel fails to clear the slot, the slot
    /// is never used again.
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
        // SAFETY: the argument is a structure of the given size. The structure points to one iovec,
        // which the kernel reads during the call. The call only pins the memory that the iovec
        // names. The kernel accesses that memory only when a request names the slot.
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

/// Calls `io_uring_register(2)`.
///
/// # Safety
///
/// The argument must satisfy the conditions of the operation.
unsafe fn register<T>(
    ring: &OwnedFd,
    operation: u32,
    argument: *const T,
    size: usize,
) -> io::Result<i64> {
    // SAFETY: the caller promises that the argument satisfies the conditions of the operation. The
    // call needs nothing else.
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
