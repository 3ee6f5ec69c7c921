//! [`Entry`]: one registration in the cache, and the rule for who may deregister it.
//!
//! # The state
//!
//! One atomic word holds two flags, a count of hits and a count of references. So a lookup takes
//! its reference, checks that the entry is live and counts itself in a single step.
//!
//! ```text
//!   63                          29 28                        2       1       0
//!  ┌──────────────────────────────┬───────────────────────────┬───────────┬──────┐
//!  │ references, 35 bits          │ hits, 27 bits             │ REVOCABLE │ LIVE │
//!  └──────────────────────────────┴───────────────────────────┴───────────┴──────┘
//! ```
//!
//! An entry goes through these states:
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
//! flag and drops that reference in a single step. Guards own the other references. The count of
//! hits goes on from one life of the entry to the next.
//!
//! # The argument
//!
//! 1. *References only grow while the entry is live.* [`acquire`](Entry::acquire) adds one by a
//!    compare-and-swap from a state that has the flag. So once the flag is cleared the count only
//!    falls, and exactly one [`release`](Entry::release) or `kill` brings it to 0. That caller, and
//!    no other, is told to take the content out.
//! 2. *The owner of a reference sees the content that it acquired, and this content does not
//!    change.* The content is written before the release store in `publish`. `acquire` reads that
//!    store, or a read-modify-write that follows it in its release sequence, with acquire ordering.
//!    The content is overwritten only when the entry is vacant, which point 1 puts after the last
//!    release. Each release has release ordering, and the one that ends at 0 loads with acquire
//!    before the content moves.
//! 3. *A reader may come with a pointer to an entry that has since been recycled.* Entries live in
//!    a slab that is not freed while anybody can look up. So the word that the reader loads is
//!    always a state. If `acquire` succeeds the reader holds a reference to the registration that
//!    is live there now. That one is never dead, but it may be another than the reader was sent to.
//!    So the reader must check that the registration serves its request.
//! 4. *No count runs into its neighbour.* Once the word holds 2^26 hits, nothing is granted before
//!    half of them have moved to a counter of their own. They do not move while there are 2^33
//!    references. Each reference comes with a hit, so at most 2^26 more are granted beyond that, of
//!    the 2^35 that fit.

use std::mem::MaybeUninit;

use crate::sys::sync::{AtomicU32, AtomicU64, Ordering, UnsafeCell};

const LIVE: u64 = 1;
/// The registration is not retained: its last guard has to revoke it.
const REVOCABLE: u64 = 1 << 1;
/// One hit.
const HIT: u64 = 1 << 2;
/// Half of the hits that fit.
const MANY_HITS: u64 = 1 << 28;
/// The number of hits moved at a time. Some stay behind, so that one can be taken back at any time.
const MOVED_HITS: u64 = MANY_HITS / 2;
/// One reference. The sum of a reference and a hit is a short operand of one addition.
const ONE: u64 = 1 << 29;
const REFERENCES: u64 = !(ONE - 1);
/// A quarter of the references that fit.
const TOO_MANY: u64 = 1 << 62;

/// The place of one registration; see the head of this file.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Entry<T> {
    state: AtomicU64,
    /// Not 0 if the entry was looked up since [`was_used`](Entry::was_used) was last called: the
    /// reference bit of CLOCK.
    used: AtomicU32,
    /// The number of times that [`MOVED_HITS`] were moved out of the state.
    hit_blocks: AtomicU32,
    content: UnsafeCell<MaybeUninit<T>>,
}

/// The owners that remain after a reference was released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Guards, or an index that retains the registration.
    Others,
    /// Only the index, which must not retain the registration.
    Index,
    /// None. The caller must [`take`](Entry::take) the content.
    Nobody,
}

// SAFETY: a `T` moves in and out of an entry by shared reference (hence `Send`), and several
// threads read it at once (hence `Sync`). Points 1 and 2 above order these accesses.
unsafe impl<T: Send + Sync> Sync for Entry<T> {}
// SAFETY: no part of an entry belongs to a thread.
unsafe impl<T: Send> Send for Entry<T> {}

impl<T> Entry<T> {
    /// Returns a vacant entry. All its bytes are zero, so fresh memory holds vacant entries
    /// (`slab.rs`).
    pub(crate) fn vacant() -> Self {
        Self {
            state: AtomicU64::new(0),
            used: AtomicU32::new(0),
            hit_blocks: AtomicU32::new(0),
            content: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// Fills a vacant entry and makes it live, with a reference for the index and one for the
    /// caller.
    ///
    /// # Safety
    ///
    /// The entry is vacant, and no other thread fills it.
    pub(crate) unsafe fn publish(&self, content: T, revocable: bool) {
        let revocable = if revocable { REVOCABLE } else { 0 };
        // SAFETY: the caller's promise.
        unsafe { self.fill(content, LIVE + ONE + ONE + revocable) }
    }

    /// Fills a vacant entry that will never be live, with a reference for the caller.
    ///
    /// # Safety
    ///
    /// As for [`publish`](Self::publish).
    pub(crate) unsafe fn occupy(&self, content: T) {
        // SAFETY: the caller's promise.
        unsafe { self.fill(content, ONE) }
    }

    unsafe fn fill(&self, content: T, state: u64) {
        // A reader with a stale pointer does not change a state without the flag.
        let hits = self.state.load(Ordering::Relaxed) & (ONE - HIT);
        debug_assert!(
            self.state.load(Ordering::Relaxed) & (LIVE | REFERENCES) == 0,
            "filled an entry in use"
        );
        // SAFETY: the entry is vacant, so there is no reference, and none is granted until the
        // flag is set below. The caller is the only one to fill it.
        self.content.with_mut(|p| unsafe { (*p).write(content) });
        self.used.store(0, Ordering::Relaxed);
        self.state.store(hits | state, Ordering::Release);
    }

    /// Takes a reference and counts a hit, if the entry is live.
    pub(crate) fn acquire(&self) -> bool {
        self.acquire_unless(0)
    }

    /// Does as [`acquire`](Self::acquire), but refuses a revocable registration.
    pub(crate) fn acquire_retained(&self) -> bool {
        self.acquire_unless(REVOCABLE)
    }

    fn acquire_unless(&self, refused: u64) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if state & (LIVE | refused) != LIVE {
                return false;
            }
            let next = if state & MANY_HITS == 0 {
                state + ONE + HIT
            } else if state < TOO_MANY {
                state - MOVED_HITS
            } else {
                return false;
            };
            let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
            let changed = self
                .state
                .compare_exchange_weak(state, next, acquire, relaxed);
            match changed {
                Ok(_) if next > state => return true,
                Ok(_) => {
                    self.hit_blocks.fetch_add(1, relaxed);
                    state = next;
                }
                Err(now) => state = now,
            }
        }
    }

    /// Does as [`acquire`](Self::acquire), but fails if the first attempt does.
    #[inline]
    pub(crate) fn try_acquire(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        let next = state + ONE + HIT;
        state & (LIVE | MANY_HITS | REVOCABLE) == LIVE
            && self
                .state
                .compare_exchange_weak(state, next, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }

    /// Releases a reference, and returns the owners that remain.
    ///
    /// # Safety
    ///
    /// The caller owns the reference, and does not use it afterwards.
    #[inline]
    #[must_use]
    pub(crate) unsafe fn release(&self) -> Left {
        // SAFETY: the caller's promise.
        unsafe { self.give_back(ONE) }
    }

    /// Releases a reference that [`acquire`](Self::acquire) has just granted, and takes back its
    /// hit.
    ///
    /// # Safety
    ///
    /// As for [`release`](Self::release).
    #[must_use]
    pub(crate) unsafe fn decline(&self) -> Left {
        // SAFETY: the caller's promise.
        unsafe { self.give_back(ONE + HIT) }
    }

    #[inline]
    unsafe fn give_back(&self, what: u64) -> Left {
        let before = self.state.fetch_sub(what, Ordering::Release);
        debug_assert!(
            before & REFERENCES != 0,
            "released a reference that did not exist"
        );
        if before & (LIVE | REVOCABLE) == LIVE {
            return Left::Others;
        }
        self.left_of(before)
    }

    #[cold]
    #[inline(never)]
    fn left_of(&self, before: u64) -> Left {
        let references = before & REFERENCES;
        if before & LIVE != 0 {
            return if references == ONE + ONE {
                Left::Index
            } else {
                Left::Others
            };
        }
        if references != ONE {
            return Left::Others;
        }
        // This reads this thread's own write, which ends the other threads' release sequences.
        self.state.load(Ordering::Acquire);
        Left::Nobody
    }

    /// Makes a live entry dead and drops the index's reference. Returns true if that was the last
    /// reference: then the caller must [`take`](Self::take) the content.
    ///
    /// # Safety
    ///
    /// The entry is live, and the caller is the only one to kill it: the index has dropped it.
    #[must_use]
    pub(crate) unsafe fn kill(&self) -> bool {
        let before = self.state.fetch_sub(LIVE + ONE, Ordering::Release);
        debug_assert!(before & LIVE != 0, "killed an entry that was not live");
        self.left_of(before - LIVE) == Left::Nobody
    }

    #[cfg(all(test, not(loom)))]
    /// Adds as many references and hits as no lookup is granted beyond.
    pub(crate) fn saturate(&self) {
        self.state
            .fetch_add(TOO_MANY - 2 * ONE + MANY_HITS, Ordering::Relaxed);
    }

    /// Returns the content.
    ///
    /// # Safety
    ///
    /// The caller owns a reference for as long as it uses the result.
    #[inline]
    pub(crate) unsafe fn content(&self) -> &T {
        // SAFETY: the caller owns a reference. So the entry was filled, and is not emptied before
        // that reference is released (point 2).
        self.content.with(|p| unsafe { (*p).assume_init_ref() })
    }

    /// Moves the content out, which leaves the entry vacant.
    ///
    /// # Safety
    ///
    /// [`release`](Self::release) or [`kill`](Self::kill) has told this caller to, and it does so
    /// once.
    pub(crate) unsafe fn take(&self) -> T {
        // SAFETY: the count is 0 and the flag is clear, so this caller is alone (point 1). The
        // content was written by `fill` and has not been taken since.
        self.content
            .with_mut(|p| unsafe { (*p).assume_init_read() })
    }

    /// Returns true if the entry is live and has a reference besides the index's. The answer may
    /// be outdated at once.
    pub(crate) fn is_in_use(&self) -> bool {
        self.state.load(Ordering::Relaxed) & REFERENCES > ONE
    }

    /// Returns true if the last guard has to revoke the registration. The caller owns a reference.
    #[inline]
    pub(crate) fn is_revocable(&self) -> bool {
        self.state.load(Ordering::Relaxed) & REVOCABLE != 0
    }

    /// Sets the reference bit: the entry was looked up.
    #[inline]
    pub(crate) fn touch(&self) {
        self.used.store(1, Ordering::Relaxed);
    }

    /// Clears the reference bit, and returns true if it was set.
    pub(crate) fn was_used(&self) -> bool {
        let used = self.used.load(Ordering::Relaxed) != 0;
        self.used.store(0, Ordering::Relaxed);
        used
    }

    /// Returns the number of lookups served, over all lives of this entry.
    pub(crate) fn hits(&self) -> u64 {
        let here = (self.state.load(Ordering::Relaxed) & (ONE - HIT)) / HIT;
        u64::from(self.hit_blocks.load(Ordering::Relaxed)) * (MOVED_HITS / HIT) + here
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
            entry.publish("registration", false);
            assert!(entry.acquire());
            assert_eq!(entry.release(), Left::Others);
            assert!(!entry.kill(), "the publisher still has a reference");
            assert!(!entry.acquire(), "dead");
            assert_eq!(*entry.content(), "registration");
            assert_eq!(entry.release(), Left::Nobody);
            assert_eq!(entry.take(), "registration");
            entry.occupy("other");
            assert!(!entry.acquire(), "never live");
            assert_eq!(entry.release(), Left::Nobody);
            assert_eq!(entry.take(), "other");
        }
    }

    #[test]
    fn an_idle_entry_is_the_killers_to_take() {
        let entry = Entry::vacant();
        // SAFETY: one thread, references counted by hand.
        unsafe {
            entry.publish(7, false);
            assert!(entry.is_in_use());
            assert_eq!(entry.release(), Left::Others);
            assert!(!entry.is_in_use());
            assert!(entry.kill());
            assert_eq!(entry.take(), 7);
        }
    }

    #[test]
    fn the_last_guard_of_a_revocable_registration_is_told() {
        let entry = Entry::vacant();
        // SAFETY: one thread, references counted by hand.
        unsafe {
            entry.publish(7, true);
            assert!(entry.is_revocable());
            assert!(entry.acquire());
            assert_eq!(entry.release(), Left::Others);
            assert_eq!(entry.release(), Left::Index);
            assert!(entry.acquire(), "live until it is killed");
            assert!(!entry.kill());
            assert_eq!(entry.release(), Left::Nobody);
            entry.take();
            entry.publish(8, false);
            assert!(!entry.is_revocable());
        }
    }

    #[test]
    fn hits_are_counted_past_the_room_for_them_and_from_life_to_life() {
        let entry = Entry::vacant();
        // SAFETY: one thread, references counted by hand.
        unsafe {
            entry.publish(7, false);
            let many = MANY_HITS / HIT - 1;
            entry.state.fetch_add(many * HIT, Ordering::Relaxed);
            for _ in 0..3 {
                assert!(entry.acquire());
                assert_eq!(entry.release(), Left::Others);
            }
            assert_eq!(entry.hits(), many + 3);
            assert!(entry.acquire());
            assert_eq!(entry.decline(), Left::Others);
            assert_eq!(entry.hits(), many + 3, "declined");
            assert_eq!(entry.release(), Left::Others);
            assert!(entry.kill());
            assert_eq!(entry.take(), 7);
            entry.publish(8, false);
            assert_eq!(entry.hits(), many + 3);
        }
    }

    #[test]
    fn with_too_many_references_there_are_no_more_of_them() {
        let entry = Entry::vacant();
        // SAFETY: one thread, references counted by hand; the content needs no drop.
        unsafe { entry.publish(7, false) };
        let many = TOO_MANY - 2 * ONE + MANY_HITS;
        entry.state.fetch_add(many, Ordering::Relaxed);
        assert!(!entry.try_acquire());
        assert!(!entry.acquire());
        // SAFETY: one of those above.
        assert_eq!(unsafe { entry.release() }, Left::Others);
        assert!(entry.acquire());
        // On some CPUs a compare-and-swap may fail spuriously.
        let mut tries = 0..1000;
        assert!(tries.any(|_| entry.try_acquire()), "hits fit again");
        let hits = (MANY_HITS / HIT) + 2;
        assert_eq!(entry.hits(), hits);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// Readers come and go while the entry is killed and recycled. The content is taken exactly
    /// once each time, and no reader sees content that was taken.
    #[test]
    fn loom_content_is_taken_once_and_never_seen_after() {
        loom::model(|| {
            let entry = Arc::new(Entry::vacant());
            let first = Arc::new(());
            // SAFETY: the entry is vacant and not shared yet.
            unsafe { entry.publish(Arc::clone(&first), false) };

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
                        if unsafe { entry.release() } == Left::Nobody {
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
            if unsafe { entry.release() } == Left::Nobody {
                taken += 1;
                // SAFETY: told to.
                drop(unsafe { entry.take() });
            }
            for reader in readers {
                taken += reader.join().unwrap();
            }
            assert_eq!(taken, 1);
            // loom's Arc reports a leak or a double drop of `first`.
        });
    }
}
