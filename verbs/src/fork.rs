//! [`fork_init`]: prepares libibverbs for a parent that forks.

use std::io;

use rdma_sys::ibv_fork_init;

use crate::errno::check;

/// Makes libibverbs hide registered memory from the children of this process. Call this function
/// before anything is registered.
///
/// On Linux 5.12 and later this function does nothing, because the kernel copies pinned pages for a
/// child. On older kernels libibverbs marks registered memory `MADV_DONTFORK`, and counts
/// registrations by address. That works with a cache, because a cache deregisters each range once,
/// with the address that it registered.
///
/// # Errors
///
/// `EINVAL` if a registration already exists. `ENOSYS` if the kernel lacks `MADV_DONTFORK`.
pub fn fork_init() -> io::Result<()> {
    // SAFETY: the call accesses no memory except libibverbs's own.
    check(unsafe { ibv_fork_init() })
}
