//! [`fork_init`]: what libibverbs does for parents that fork.

use std::io;

use rdma_sys::ibv_fork_init;

use crate::errno::check;

/// Has libibverbs keep registered memory out of the children of this process, where the kernel does
/// not say that it gives them pages of their own of what is pinned (Linux 5.12 and later gives them).
/// To be called before anything is registered.
///
/// Where it does something it marks registered memory `MADV_DONTFORK`, and keeps count of it by
/// address. A cache goes well with that: it deregisters what has been unmapped by its old address,
/// once.
///
/// # Errors
///
/// `EINVAL` if something is registered already, `ENOSYS` if the kernel cannot.
pub fn fork_init() -> io::Result<()> {
    // SAFETY: touches no memory but libibverbs' own.
    check(unsafe { ibv_fork_init() })
}
