//! [`fork_init`]: prepares libibverbs for a parent that forks.
//!
//! After `ibv_fork_init`, libibverbs marks registered memory `MADV_DONTFORK` and counts the
//! registrations of each page. The mark comes with the first registration and goes with the last.
//! Setting the mark splits a mapping. The kernel reports the split for the whole huge page (2 MiB)
//! around it, so a watch that was placed before is invalidated. The cache therefore has libibverbs
//! count once more, from before the watch until after the registration.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;

use rdma_sys::ibv_fork_init;
use regcache::VaRange;

use crate::errno::check;

/// Makes libibverbs hide registered memory from the children of this process. Call this function
/// before anything is registered.
///
/// libibverbs then marks registered memory `MADV_DONTFORK`, and counts registrations by address.
/// That works with a cache, because a cache deregisters each range once, with the address that it
/// registered. But a child does not get the memory of registrations that are idle in the cache. So
/// call [`Cache::flush`](regcache::Cache::flush) before the process forks.
///
/// On Linux 5.12 and later the kernel copies pinned pages for a child. There this function does
/// nothing with rdma-core 51 and later. Earlier versions mark the memory all the same, although
/// `ibv_is_fork_initialized` says that it is unneeded.
///
/// # Errors
///
/// `EINVAL` if a registration already exists. `ENOSYS` if the kernel lacks `MADV_DONTFORK`.
pub fn fork_init() -> io::Result<()> {
    // SAFETY: the call accesses no memory except libibverbs's own.
    check(unsafe { ibv_fork_init() })
}

unsafe extern "C" {
    // The functions are declared in `infiniband/driver.h`, which the crate `rdma-sys` does not
    // bind. libibverbs exports them for its drivers, with the version IBVERBS_1.1.
    fn ibv_dontfork_range(base: *mut c_void, size: usize) -> c_int;
    fn ibv_dofork_range(base: *mut c_void, size: usize) -> c_int;
}

/// Marks the range as a registration would, and counts one more registration of it. Does nothing
/// without fork support. Returns true on success.
pub(crate) fn keep_from_children(range: VaRange) -> bool {
    let start = ptr::without_provenance_mut(range.start());
    // SAFETY: the call changes no memory of the process. It only hides the range from children, and
    // fails if a part of the range is not mapped.
    unsafe { ibv_dontfork_range(start, range.len()) == 0 }
}

/// Undoes one call of [`keep_from_children`] that succeeded.
pub(crate) fn stop_keeping_from_children(range: VaRange) {
    let start = ptr::without_provenance_mut(range.start());
    // After an error the mark stays, and children do not get the range. No caller could do more.
    //
    // SAFETY: the call changes no memory of the process.
    let _ = unsafe { ibv_dofork_range(start, range.len()) };
}
