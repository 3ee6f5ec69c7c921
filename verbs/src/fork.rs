//! [`fork_init`]: prepares libibverbs for a parent that forks.
//!
//! After `ibv_fork_init`, libibverbs marks registered memory `MADV_DONTFORK` and counts the
//! registrations of each page. The mark comes with the first registration and goes with the last.
//! Setting the mark splits a mapping. The kernel reports the split for the whole huge page (2 MiB)
//! around it, so a watch that was placed before is invalidated. The cache therefore has libibverbs
//! count once more, from before the watch until after the registration.

use std::ffi::{CStr, c_int, c_void};
use std::sync::LazyLock;
use std::{io, mem, ptr};

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

/// `ibv_dontfork_range` or `ibv_dofork_range`. libibverbs exports them for its drivers, with the
/// version IBVERBS_1.1. `infiniband/driver.h` declares them, and the crate `rdma-sys` does not.
type OnRange = unsafe extern "C" fn(base: *mut c_void, size: usize) -> c_int;

/// Marks the range as a registration would, and counts one more registration of it. Does nothing
/// without fork support. Returns true on success.
pub(crate) fn keep_from_children(range: VaRange) -> bool {
    static FUNCTION: LazyLock<Option<OnRange>> = LazyLock::new(|| find(c"ibv_dontfork_range"));
    call(*FUNCTION, range)
}

/// Undoes one call of [`keep_from_children`] that succeeded.
pub(crate) fn stop_keeping_from_children(range: VaRange) {
    static FUNCTION: LazyLock<Option<OnRange>> = LazyLock::new(|| find(c"ibv_dofork_range"));
    // After an error the mark stays, and children do not get the range. No caller could do more.
    let _ = call(*FUNCTION, range);
}

/// Calls the function with the range, and returns true on success.
fn call(function: Option<OnRange>, range: VaRange) -> bool {
    let Some(function) = function else {
        return false;
    };
    let start = ptr::without_provenance_mut(range.start());
    // SAFETY: the call changes no memory of the process. It only hides the range from children or
    // shows it to them, and fails if a part of the range is not mapped.
    unsafe { function(start, range.len()) == 0 }
}

/// Looks up a function of libibverbs when the program runs. A program may be linked with another
/// library's copy of the public interface, which lacks the functions for drivers. The crate
/// `rdma-mummy-sys` has such a copy.
fn find(name: &CStr) -> Option<OnRange> {
    // SAFETY: the name ends with a zero byte.
    let mut found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if found.is_null() {
        // The other library may have loaded libibverbs for itself alone. The handle is kept, so
        // that the function stays.
        //
        // SAFETY: with RTLD_NOLOAD nothing is loaded, so no code runs. dlsym takes any handle that
        // dlopen returned.
        found = unsafe {
            let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD;
            let library = libc::dlopen(c"libibverbs.so.1".as_ptr(), flags);
            if library.is_null() {
                return None;
            }
            libc::dlsym(library, name.as_ptr())
        };
    }
    // SAFETY: both names that this module passes are functions of this type. A null pointer becomes
    // `None`.
    unsafe { mem::transmute::<*mut c_void, Option<OnRange>>(found) }
}
