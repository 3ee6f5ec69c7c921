//! Knowing that this process is not the one that built the cache.
//!
//! A child by fork has a copy of the cache, and of nothing that it stands for: the pages it finds
//! at the same addresses are its own, the adapter's registrations are its parent's. `getpid` would
//! tell the two apart at the price of a system call, `pthread_atfork` not when somebody calls
//! `clone` directly. So the kernel is asked to leave a mark: a page under `MADV_WIPEONFORK` reads as
//! zeros in any process that has got a copy of the address space. Threads, vfork and `CLONE_VM`
//! children share the memory, the registrations and the mark.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::MmapMut;
use nix::sys::mman::{MmapAdvise, madvise};

/// Reads as set in the process that made it, as clear in its children.
#[derive(Debug)]
pub(crate) struct ForkMark(MmapMut);

impl ForkMark {
    pub(crate) fn new() -> io::Result<Self> {
        let mut mark = Self(MmapMut::map_anon(size_of::<AtomicU32>())?);
        let len = mark.0.len();
        let start = NonNull::from(&mut mark.0[..]).cast();
        // SAFETY: this mapping's own page, which nothing has been written to yet.
        unsafe { madvise(start, len, MmapAdvise::MADV_WIPEONFORK) }?;
        mark.word().store(1, Ordering::Relaxed);
        Ok(mark)
    }

    #[inline]
    pub(crate) fn in_child(&self) -> bool {
        self.word().load(Ordering::Relaxed) == 0
    }

    #[inline]
    fn word(&self) -> &AtomicU32 {
        // SAFETY: a mapping is page-aligned, at least a page long, lives as long as `self`, and is
        // only accessed here, as an atomic.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr().cast_mut().cast()) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_sees_the_mark_wiped_and_a_thread_does_not() {
        let mark = ForkMark::new().unwrap();
        assert!(!mark.in_child());
        std::thread::scope(|s| s.spawn(|| assert!(!mark.in_child())).join()).unwrap();
        // SAFETY: the child calls nothing but _exit.
        match unsafe { libc::fork() } {
            0 => {
                let status = i32::from(!mark.in_child());
                // SAFETY: ends the child.
                unsafe { libc::_exit(status) }
            }
            child => {
                let mut status = 0;
                // SAFETY: waits for the child made above.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                assert_eq!(status, 0, "the child saw the parent's mark");
            }
        }
        assert!(!mark.in_child());
    }
}
