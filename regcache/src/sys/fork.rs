//! [`ForkMark`]: a word that shows whether this process is a forked child of the process that built
//! the cache. [`before_each`]: a function that libc calls before each fork.
//!
//! A forked child has a copy of the cache, but the registrations belong to its parent. The child
//! has its own pages at the same addresses, and the adapter does not reach the child's pages. So
//! the child must notice that it cannot use the cache.
//!
//! `getpid` would cost a system call at each lookup. `pthread_atfork` would miss a child made by
//! `clone`. So the mark is in a page under `MADV_WIPEONFORK`. In a process that got a copy of the
//! address space, this page contains zeros. Threads, vfork children and `CLONE_VM` children share
//! the memory, the registrations and the mark. So they can use the cache.
//!
//! In the process that made the mark, the mark is a number other than 0. The cache stores `drained`
//! in it (`design.rs`). So one load on the hit path tests two conditions: all reports were drained,
//! and the process is not a forked child.

use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(not(loom))]
pub use mapped::ForkMark;

/// Has libc call the function before each `fork` of this process and of its children, in the thread
/// that forks. Only the first call has an effect. The function must never be unloaded. A child made
/// by `vfork`, `posix_spawn` or `system` shares its parent's memory, and libc does not call the
/// function for it.
pub fn before_each(prepare: extern "C" fn()) {
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.swap(true, Ordering::Relaxed) {
        let prepare = prepare as unsafe extern "C" fn();
        // If there is no memory for the entry, nothing is done before a fork.
        // SAFETY: the function has no parameters. The caller never unloads it.
        unsafe { libc::pthread_atfork(Some(prepare), None, None) };
    }
}

#[cfg(not(loom))]
mod mapped {
    use std::io;
    use std::ptr::NonNull;
    use std::sync::atomic::{AtomicU64, Ordering};

    use memmap2::MmapMut;
    use nix::sys::mman::{MmapAdvise, madvise};

    /// A number that is never 0 in the process that made it, and always 0 in forked children of
    /// that process.
    #[derive(Debug)]
    pub struct ForkMark(MmapMut);

    impl ForkMark {
        /// Makes a mark with this value, which must not be 0.
        ///
        /// # Errors
        ///
        /// Returns an error if no page can be mapped, or if the kernel has no `MADV_WIPEONFORK`.
        pub fn new(value: u64) -> io::Result<Self> {
            let mut mark = Self(MmapMut::map_anon(size_of::<AtomicU64>())?);
            let len = mark.0.len();
            let start = NonNull::from(&mut mark.0[..]).cast();
            // SAFETY: the page belongs to this mapping alone, and nothing has been written to the
            // page yet.
            unsafe { madvise(start, len, MmapAdvise::MADV_WIPEONFORK) }?;
            mark.store(value, Ordering::Relaxed);
            Ok(mark)
        }

        /// Returns true in a forked child of the process that made the mark.
        #[inline]
        pub fn in_child(&self) -> bool {
            self.load(Ordering::Relaxed) == 0
        }

        /// Loads the mark, which is 0 in a forked child.
        #[inline]
        pub fn load(&self, ordering: Ordering) -> u64 {
            self.word().load(ordering)
        }

        /// Stores a number other than 0. A forked child must not call this method, because its mark
        /// must stay 0.
        pub fn store(&self, value: u64, ordering: Ordering) {
            debug_assert_ne!(value, 0);
            self.word().store(value, ordering);
        }

        #[inline]
        fn word(&self) -> &AtomicU64 {
            // SAFETY: a mapping is page-aligned, at least a page long and lives as long as `self`.
            // All accesses go through this atomic.
            unsafe { AtomicU64::from_ptr(self.0.as_ptr().cast_mut().cast()) }
        }
    }
}

/// The mark under loom, which is one of loom's atomics. No process is forked under loom, so the
/// mark is never wiped.
#[cfg(loom)]
#[derive(Debug)]
pub struct ForkMark(loom::sync::atomic::AtomicU64);

#[cfg(loom)]
impl ForkMark {
    pub fn new(value: u64) -> std::io::Result<Self> {
        Ok(Self(loom::sync::atomic::AtomicU64::new(value)))
    }

    pub fn in_child(&self) -> bool {
        false
    }

    pub fn load(&self, ordering: loom::sync::atomic::Ordering) -> u64 {
        self.0.load(ordering)
    }

    pub fn store(&self, value: u64, ordering: loom::sync::atomic::Ordering) {
        self.0.store(value, ordering);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_sees_the_mark_wiped_and_a_thread_does_not() {
        let mark = ForkMark::new(7).unwrap();
        assert!(!mark.in_child());
        std::thread::scope(|s| s.spawn(|| assert!(!mark.in_child())).join()).unwrap();
        // SAFETY: the child calls nothing but _exit.
        match unsafe { libc::fork() } {
            0 => {
                let status = i32::from(!mark.in_child());
                // SAFETY: the call only ends the child.
                unsafe { libc::_exit(status) }
            }
            child => {
                let mut status = 0;
                // SAFETY: the call only waits for the child made above, and writes its status.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                assert_eq!(status, 0, "the child saw the parent's mark");
            }
        }
        assert_eq!(mark.load(std::sync::atomic::Ordering::Relaxed), 7);
    }
}
