//! An asymmetric fence, built on `membarrier(2)`: free for lookups, expensive for
//! `regcache_destroy()`.
//!
//! A lookup and a destroy each store one word and then load the other's, as in Dekker's algorithm:
//!
//! 1. A lookup stores the cache that it uses, and then loads whether that cache is live.
//! 2. A destroy stores that the cache is not live, and then loads who uses it.
//! 3. At least one of them has to see the other's store. For that, both need a full fence between
//!    store and load.
//! 4. [`heavy`], on the side of destroy, makes the kernel run a full fence in every thread of this
//!    process, and so is the fence of both sides. Each lookup's store and load keep their order
//!    across it, wherever between them it falls.
//! 5. [`light`], on the side of lookups, only keeps the compiler from exchanging the store and the
//!    load. Where the kernel refuses membarrier, it is a full fence.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence, fence};

// linux/membarrier.h
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

/// True if the kernel refuses membarrier. Set before there is a cache to use, and never cleared.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Prepares this process for [`heavy`]. To be called before a cache is entered into the table.
pub(crate) fn prepare() {
    if membarrier(REGISTER_PRIVATE_EXPEDITED).is_err() {
        REFUSED.store(true, Ordering::SeqCst);
    }
}

/// The fence of a lookup, between its store and its load.
#[inline]
pub(crate) fn light() {
    if REFUSED.load(Ordering::Relaxed) {
        fence(Ordering::SeqCst);
    } else {
        compiler_fence(Ordering::SeqCst);
    }
}

/// The fence of a destroy, between its store and its loads.
pub(crate) fn heavy() -> io::Result<()> {
    fence(Ordering::SeqCst);
    if REFUSED.load(Ordering::Relaxed) {
        return Ok(());
    }
    membarrier(PRIVATE_EXPEDITED)
}

fn membarrier(command: libc::c_int) -> io::Result<()> {
    // SAFETY: it has no effect but on the order of memory accesses, which it only restricts.
    match unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
