//! An asymmetric fence, built on `membarrier(2)`. The fence costs lookups nothing, and is expensive
//! for `regcache_destroy()`.
//!
//! A lookup and a destroy each store one word, and then load the word that the other side stores,
//! as in Dekker's algorithm:
//!
//! 1. A lookup stores the handle of its cache, and then loads the word that shows whether the cache
//!    is live.
//! 2. A destroy changes that word, and then loads the handles that the threads have stored.
//! 3. At least one of the two must see the store of the other. So both need a full fence between
//!    store and load.
//! 4. Destroy calls [`heavy`], which makes the kernel execute a full fence in every thread of this
//!    process. So [`heavy`] is the fence of both sides. Wherever that fence falls in the program of
//!    a lookup, the lookup's store and load keep their order across it.
//! 5. A lookup calls [`light`], which only prevents the compiler from reordering the store and the
//!    load. If the kernel refuses membarrier, [`light`] is a full fence.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence, fence};

// linux/membarrier.h
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

/// True if the kernel refuses membarrier. It is set before the first cache or pool is in its table,
/// and never cleared.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Prepares this process for [`heavy`]. Call it before a cache or a pool is entered into its table.
pub(crate) fn prepare() {
    if membarrier(REGISTER_PRIVATE_EXPEDITED).is_err() {
        REFUSED.store(true, Ordering::SeqCst);
    }
}

/// Executes the fence of a lookup, between its store and its load.
#[inline]
pub(crate) fn light() {
    if REFUSED.load(Ordering::Relaxed) {
        fence(Ordering::SeqCst);
    } else {
        compiler_fence(Ordering::SeqCst);
    }
}

/// Executes the fence of a destroy, between its store and its loads.
pub(crate) fn heavy() -> io::Result<()> {
    fence(Ordering::SeqCst);
    if REFUSED.load(Ordering::Relaxed) {
        return Ok(());
    }
    membarrier(PRIVATE_EXPEDITED)
}

fn membarrier(command: libc::c_int) -> io::Result<()> {
    // SAFETY: the system call only restricts the order of memory accesses, and has no other effect.
    match unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
