//! [`UringRegistrar`], what a cache of fixed buffers caches for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::IoUring;
use regcache::{Registrar, VaRange};

use crate::table::Table;

/// The largest buffer that the kernel registers.
const MAX_BUFFER: usize = 1 << 30;

/// A buffer in a ring's table.
///
/// Says which addresses it was made for, not what is mapped there now: after `munmap` it still is the
/// old pages. That is what the cache is for.
#[derive(Debug)]
pub struct FixedBuffer {
    index: u16,
    range: VaRange,
    table: Arc<Table>,
}

impl FixedBuffer {
    /// What a request names it by: the `buf_index` of `READ_FIXED` and `WRITE_FIXED`.
    #[inline]
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The addresses it was made for. A request's must lie within.
    #[inline]
    #[must_use]
    pub fn range(&self) -> VaRange {
        self.range
    }
}

/// Makes and destroys [`FixedBuffer`]s in the table of one ring.
#[derive(Clone, Debug)]
pub struct UringRegistrar {
    table: Arc<Table>,
}

impl UringRegistrar {
    /// A registrar for `ring`, which must have no buffers registered, with a table of so many slots: from 1
    /// to 16 384. When all are in use the cache gives up registrations that are not.
    ///
    /// The ring must not be one for a single issuer (`setup_single_issuer`): buffers are registered by
    /// whichever thread looks up.
    ///
    /// # Errors
    ///
    /// What the kernel says: `EBUSY` if the ring has buffers, `EINVAL` before Linux 5.19.
    /// [`io::ErrorKind::InvalidInput`] for a number of slots that is out of bounds.
    pub fn new(ring: &IoUring, slots: u32) -> io::Result<Self> {
        // SAFETY: the ring has it open as long as it is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        Ok(Self {
            table: Arc::new(Table::new(fd.try_clone_to_owned()?, slots)?),
        })
    }

    /// True if `buffer` is in this registrar's ring.
    #[must_use]
    pub fn owns(&self, buffer: &FixedBuffer) -> bool {
        Arc::ptr_eq(&self.table, &buffer.table)
    }
}

// SAFETY:
// - The update pins all the pages of the range, for writing and for long, between call and return, or
//   fails; they stay pinned until the slot is cleared.
// - When the update that clears the slot has returned, requests that name it fail. Those under way are
//   covered by guards.
unsafe impl Registrar for UringRegistrar {
    type Access = ();
    type Registration = FixedBuffer;

    fn register(&self, range: VaRange, (): ()) -> io::Result<FixedBuffer> {
        if range.len() > MAX_BUFFER {
            // The kernel's EFAULT would read as if part of it were not mapped.
            let why = format!("{} bytes: a fixed buffer has 1 GiB at most", range.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let index = self.table.fill(range.start(), range.len())?;
        Ok(FixedBuffer {
            index,
            range,
            table: Arc::clone(&self.table),
        })
    }

    fn deregister(&self, buffer: FixedBuffer) -> io::Result<()> {
        buffer.table.clear(buffer.index)
    }
}
