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
//!
//! The first cache or pool decides between the two. So both sides always use the same kind of
//! fence.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering, compiler_fence, fence};

// linux/membarrier.h
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

const UNKNOWN: u8 = 0;
const ALLOWED: u8 = 1;
const REFUSED: u8 = 2;

/// The kernel's answer to the first request. It is set before the first cache or pool is in its
/// table, and does not change afterwards.
static SAID: AtomicU8 = AtomicU8::new(UNKNOWN);

/// Prepares this process for [`heavy`]. Call it before a cache or a pool is entered into its table.
/// Returns true if [`light`] executes no instruction.
pub(crate) fn prepare() -> bool {
    let said = match membarrier(REGISTER_PRIVATE_EXPEDITED) {
        Ok(()) => ALLOWED,
        Err(_) => REFUSED,
    };
    let order = Ordering::SeqCst;
    let first = SAID.compare_exchange(UNKNOWN, said, order, order);
    first.map_or_else(|before| before == ALLOWED, |_| said == ALLOWED)
}

/// Executes the fence of a lookup, between its store and its load.
#[inline]
pub(crate) fn light() {
    if SAID.load(Ordering::Relaxed) == REFUSED {
        fence(Ordering::SeqCst);
    } else {
        compiler_fence(Ordering::SeqCst);
    }
}

/// Executes the fence of a destroy, between its store and its loads.
pub(crate) fn heavy() -> io::Result<()> {
    fence(Ordering::SeqCst);
    if SAID.load(Ordering::Relaxed) == REFUSED {
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
