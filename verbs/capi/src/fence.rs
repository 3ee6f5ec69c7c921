//! A fence that costs those nothing who meet it often: `membarrier(2)`.
//!
//! A lookup says which cache it uses, and then looks whether that is there; who destroys says that it is not, and then
//! looks who uses it. One of the two must see the other, which takes a fence between saying and looking on both sides.
//! [`everywhere`] is both fences; [`here`] keeps the compiler from exchanging the two, and where the kernel refuses
//! membarrier is a fence itself.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence, fence};

// linux/membarrier.h
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

/// Set before there is a cache that somebody could use, and never cleared.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// To be called before a cache is entered into the table.
pub(crate) fn prepare() {
    if membarrier(REGISTER_PRIVATE_EXPEDITED).is_err() {
        REFUSED.store(true, Ordering::SeqCst);
    }
}

/// The side of those who look up.
#[inline]
pub(crate) fn here() {
    if REFUSED.load(Ordering::Relaxed) {
        fence(Ordering::SeqCst);
    } else {
        compiler_fence(Ordering::SeqCst);
    }
}

/// The side of those who destroy.
pub(crate) fn everywhere() -> io::Result<()> {
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
