//! [`UringRegistrar`]: the registrar whose registrations are fixed buffers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::IoUring;
use regcache::{Registrar, VaRange};

use crate::table::Table;

/// The size of the largest buffer that the kernel registers, in bytes.
const MAX_BUFFER: usize = 1 << 30;

/// A fixed buffer: a range of memory that is registered in a ring's table of fixed buffers.
///
/// After `munmap`, the buffer still names the old pages, even if other memory is mapped at the same
/// addresses. So a program should get its fixed buffers from a cache.
#[derive(Debug)]
pub struct FixedBuffer {
    index: u16,
    range: VaRange,
    table: Arc<Table>,
}

impl FixedBuffer {
    /// Returns the index of the buffer, for the `buf_index` field of `READ_FIXED` and
    /// `WRITE_FIXED`.
    #[inline]
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Returns the addresses that the buffer covers. The addresses of a request must lie within
    /// this range.
    #[inline]
    #[must_use]
    pub fn range(&self) -> VaRange {
        self.range
    }
}

/// A registrar that makes and destroys [`FixedBuffer`]s in the table of one ring.
#[derive(Clone, Debug)]
pub struct UringRegistrar {
    table: Arc<Table>,
}

impl UringRegistrar {
    /// Makes a registrar for `ring`, and registers a table of `slots` slots with the ring. `slots`
    /// is 1 to 16 384. The ring must have no registered buffers. If no slot is free, a cache evicts
    /// idle entries.
    ///
    /// Any thread that makes a lookup may register a buffer. So the ring must not be set up for a
    /// single issuer (`setup_single_issuer`).
    ///
    /// # Errors
    ///
    /// Returns the kernel's error, for example `EBUSY` if the ring has registered buffers, or
    /// `EINVAL` before Linux 5.19. Returns [`io::ErrorKind::InvalidInput`] if `slots` is out of
    /// bounds.
    pub fn new(ring: &IoUring, slots: u32) -> io::Result<Self> {
        // SAFETY: the ring keeps the file descriptor open as long as `ring` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        Ok(Self {
            table: Arc::new(Table::new(fd.try_clone_to_owned()?, slots)?),
        })
    }

    /// Returns true if `buffer` belongs to the ring of this registrar.
    #[must_use]
    pub fn owns(&self, buffer: &FixedBuffer) -> bool {
        Arc::ptr_eq(&self.table, &buffer.table)
    }
}

// SAFETY:
// - The system call that fills a slot either fails, or pins all pages of the range for long-term
//   writing before it returns. The pages stay pinned until the slot is cleared.
// - After the system call that clears the slot has returned, requests that name the slot fail. No
//   request with this buffer is in flight at that time, because the guard of each request must live
//   until the request completes.
unsafe impl Registrar for UringRegistrar {
    type Access = ();
    type Registration = FixedBuffer;

    fn register(&self, range: VaRange, (): ()) -> io::Result<FixedBuffer> {
        if range.len() > MAX_BUFFER {
            // For such a range the kernel would return EFAULT, and the cache would report that the
            // memory is not mapped. So the registrar returns an error that names the limit.
            let why = format!(
                "{} bytes are too many: a fixed buffer has at most 1 GiB",
                range.len()
            );
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
