//! [`Entry`]: one registration in the cache, and who may destroy it.
//!
//! # The state
//!
//! One atomic word holds a flag, [`LIVE`], and a count of references.
//!
//! ```text
//!            publish                 kill                  last release
//!   vacant ───────────▶ LIVE, n ≥ 1 ───────▶ dead, n ≥ 0 ───────────────▶ vacant
//!      │                                         ▲               (content taken out)
//!      └─────────────────────────────────────────┘
//!                   occupy (never in the index)
//! ```
//!
//! While an entry is live the index owns one of its references. [`kill`](Entry::kill) clears the
//! flag and drops that reference in a single step; guards own the others.
//!
//! # The argument
//!
//! 1. *References only grow while the entry is live.* [`acquire`](Entry::acquire) adds one by a
//!    compare-and-swap from a state that has the flag. So once it is cleared the count only falls,
//!    and exactly one [`release`](Entry::release) or `kill` brings it to 0: that caller, and no
//!    other, is told to take the content out.
//! 2. *Whoever holds a reference sees the content it acquired, and it does not change.* The content
//!    is written before the release store in `publish`, and `acquire` reads that store, or a
//!    read-modify-write that follows it in its release sequence, with acquire ordering. It is
//!    overwritten only when vacant, which point 1 puts after the last release; each release has
//!    release ordering, and the one that ends at 0 fences with acquire before the content moves.
//! 3. *A reader may come with a pointer to an entry that has since been recycled.* Entries live in a
//!    slab that is not freed while anybody can look up, so the word it looks at is always a state.
//!    If `acquire` succeeds the reader holds a reference to whatever registration is live there
//!    now, and must check that it is one that serves the request. It may not be the one that it was
//!    sent for; it is never a dead one.

use std::mem::MaybeUninit;

use crate::sync::{AtomicU64, Ordering, UnsafeCell, fence};

const LIVE: u64 = 1;
const ONE: u64 = 2;

/// A place for one registration; see the file's head.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    state: AtomicU64,
    /// Lookups served; kept here because a hit owns this cache line already.
    hits: AtomicU64,
    /// When it was last looked up, in the cache's own time, which moves with each miss.
    last_used: AtomicU64,
    content: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: a `T` moves in and out of an entry by shared reference (hence `Send`), and several threads
// read it at once (hence `Sync`); points 1 and 2 above order these accesses.
unsafe impl<T: Send + Sync> Sync for Entry<T> {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl<T: Send> Send for Entry<T> {}

impl<T> Entry<T> {
    pub(crate) fn vacant() -> Self {
        Self {
            state: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
            content: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// Fills a vacant entry and makes it live, with a reference for the index and one for the
    /// caller.
    ///
    /// # Safety
    ///
    /// The entry is vacant and the caller alone is filling it.
    pub(crate) unsafe fn publish(&self, content: T) {
        // SAFETY: passed on.
        unsafe { self.fill(content, LIVE + ONE + ONE) }
    }

    /// Fills a vacant entry that will never be live, with a reference for the caller.
    ///
    /// # Safety
    ///
    /// As for [`publish`](Self::publish).
    pub(crate) unsafe fn occupy(&self, content: T) {
        // SAFETY: passed on.
        unsafe { self.fill(content, ONE) }
    }

    unsafe fn fill(&self, content: T, state: u64) {
        debug_assert_eq!(
            self.state.load(Ordering::Relaxed),
            0,
            "filled an entry in use"
        );
        self.hits.store(0, Ordering::Relaxed);
        // SAFETY: vacant, so nobody holds a reference, and nobody can get one until the flag is
        // set below; the caller is the only one to fill.
        self.content.with_mut(|p| unsafe { (*p).write(content) });
        self.state.store(state, Ordering::Release);
    }

    /// Takes a reference, if the entry is live.
    #[inline]
    pub(crate) fn acquire(&self) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        while state & LIVE != 0 {
            match self.state.compare_exchange_weak(
                state,
                state + ONE,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    /// Gives a reference back. True if it was the last one of a dead entry: the caller must then
    /// [`take`](Self::take) the content.
    ///
    /// # Safety
    ///
    /// The caller owns the reference, and uses it no more.
    #[inline]
    #[must_use]
    pub(crate) unsafe fn release(&self) -> bool {
        let before = self.state.fetch_sub(ONE, Ordering::Release);
        debug_assert!(before >= ONE, "released a reference that nobody had");
        if before != ONE {
            return false;
        }
        fence(Ordering::Acquire);
        true
    }

    /// Makes a live entry dead and drops the index's reference. True as for
    /// [`release`](Self::release).
    ///
    /// # Safety
    ///
    /// The entry is live, and the caller is the only one to kill it: the index has forgotten it.
    #[must_use]
    pub(crate) unsafe fn kill(&self) -> bool {
        let before = self.state.fetch_sub(LIVE + ONE, Ordering::Release);
        debug_assert!(before & LIVE != 0, "killed an entry that was not live");
        if before != LIVE + ONE {
            return false;
        }
        fence(Ordering::Acquire);
        true
    }

    /// The content.
    ///
    /// # Safety
    ///
    /// The caller owns a reference for as long as it uses the result.
    #[inline]
    pub(crate) unsafe fn content(&self) -> &T {
        // SAFETY: a reference is out, so the entry has been filled, and is not emptied before that
        // reference is released (point 2).
        self.content.with(|p| unsafe { (*p).assume_init_ref() })
    }

    /// Moves the content out; the entry is vacant.
    ///
    /// # Safety
    ///
    /// [`release`](Self::release) or [`kill`](Self::kill) has told the caller to, once.
    pub(crate) unsafe fn take(&self) -> T {
        // SAFETY: the count is 0 and the flag clear, so that this caller is alone (point 1), and
        // the content was written by `fill` and not taken since.
        self.content
            .with_mut(|p| unsafe { (*p).assume_init_read() })
    }

    /// True if somebody besides the index has a reference. A hint: it may change at once.
    pub(crate) fn is_in_use(&self) -> bool {
        self.state.load(Ordering::Relaxed) > LIVE + ONE
    }

    /// Notes a hit at `now`.
    #[inline]
    pub(crate) fn touch(&self, now: u64) {
        self.hits.fetch_add(1, Ordering::Relaxed);
        self.last_used.store(now, Ordering::Relaxed);
    }

    pub(crate) fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    pub(crate) fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_guards_and_index_takes_the_content() {
        let entry = Entry::vacant();
        assert!(!entry.acquire(), "a vacant entry gives no reference");
        // SAFETY: one thread, references counted by hand.
        unsafe {
            entry.publish("registration");
            assert!(entry.acquire());
            assert!(!entry.release());
            assert!(!entry.kill(), "the publisher still has a reference");
            assert!(!entry.acquire(), "dead");
            assert_eq!(*entry.content(), "registration");
            assert!(entry.release());
            assert_eq!(entry.take(), "registration");
            entry.occupy("other");
            assert!(!entry.acquire(), "never live");
            assert!(entry.release());
            assert_eq!(entry.take(), "other");
        }
    }

    #[test]
    fn an_idle_entry_is_the_killers_to_take() {
        let entry = Entry::vacant();
        // SAFETY: one thread, references counted by hand.
        unsafe {
            entry.publish(7);
            assert!(entry.is_in_use());
            assert!(!entry.release());
            assert!(!entry.is_in_use());
            assert!(entry.kill());
            assert_eq!(entry.take(), 7);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// Readers come and go while the entry is killed and recycled: the content is taken exactly
    /// once each time, and no reader sees one that was taken.
    #[test]
    fn loom_content_is_taken_once_and_never_seen_after() {
        loom::model(|| {
            let entry = Arc::new(Entry::vacant());
            let first = Arc::new(());
            // SAFETY: vacant and not shared yet.
            unsafe { entry.publish(Arc::clone(&first)) };

            let readers: Vec<_> = (0..2)
                .map(|_| {
                    let entry = Arc::clone(&entry);
                    thread::spawn(move || {
                        if !entry.acquire() {
                            return 0;
                        }
                        // SAFETY: acquired above.
                        drop(Arc::clone(unsafe { entry.content() }));
                        // SAFETY: acquired above, not used after.
                        if unsafe { entry.release() } {
                            // SAFETY: told to.
                            drop(unsafe { entry.take() });
                            return 1;
                        }
                        0
                    })
                })
                .collect();

            // SAFETY: live, and only killed here.
            let mut taken = u32::from(unsafe { entry.kill() });
            if taken == 1 {
                // SAFETY: told to.
                drop(unsafe { entry.take() });
            }
            // SAFETY: publish gave this thread a reference.
            if unsafe { entry.release() } {
                taken += 1;
                // SAFETY: told to.
                drop(unsafe { entry.take() });
            }
            for reader in readers {
                taken += reader.join().unwrap();
            }
            assert_eq!(taken, 1);
            // loom's Arc reports a leak or a double drop of `first`
        });
    }
}
