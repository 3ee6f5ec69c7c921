//! [`fork_init`]: prepares libibverbs for a parent that forks.

use std::io;

use rdma_sys::ibv_fork_init;

use crate::errno::check;

/// Makes libibverbs keep registered memory out of the children of this process. Call it before
/// anything is registered.
///
/// It does nothing on Linux 5.12 and later, which copies pinned pages for a child. On older kernels
/// libibverbs marks registered memory `MADV_DONTFORK`, and counts registrations by address. That
/// works with a cache, which deregisters each range once, by the address that it registered.
///
/// # Errors
///
/// `EINVAL` if something is registered already, `ENOSYS` if the kernel cannot.
pub fn fork_init() -> io::Result<()> {
    // SAFETY: touches no memory but libibverbs' own.
    check(unsafe { ibv_fork_init() })
}
