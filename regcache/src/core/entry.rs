//! [`Entry`]: one registration in the cache, and who may destroy it.
//!
//! # The state
//!
//! One atomic word holds a flag, [`LIVE`], a count of references and a count of hits, so that a
//! lookup takes its reference, checks that the entry is live and counts itself in a single step.
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
//! flag and drops that reference in a single step; guards own the others. Hits are counted from one
//! life of the entry to the next.
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
//!    release ordering, and the one that ends at 0 loads with acquire before the content moves.
//! 3. *A reader may come with a pointer to an entry that has since been recycled.* Entries live in a
//!    slab that is not freed while anybody can look up, so the word it looks at is always a state.
//!    If `acquire` succeeds the reader holds a reference to whatever registration is live there
//!    now, and must check that it is one that serves the request. It may not be the one that it was
//!    sent for; it is never a dead one.
//! 4. *No count runs into its neighbour.* When there are 2^26 hits in the word nothing is granted
//!    before half of them were moved to a counter of their own, and that is not done while there are
//!    2^33 references. As each comes with a hit, there is never room for more than 2^26 beyond that,
//!    of the 2^35 that fit.

use std::mem::MaybeUninit;

use crate::sys::sync::{AtomicU32, AtomicU64, Ordering, UnsafeCell};

const LIVE: u64 = 1;
/// The registration is not to be kept once only the index has a reference.
const FLEETING: u64 = 1 << 1;
/// A hit.
const HIT: u64 = 1 << 2;
/// Half of the hits that there is room for.
const MANY_HITS: u64 = 1 << 28;
/// What hits are moved by: fewer than are there, so that one more can be taken back at any time.
const MOVED_HITS: u64 = MANY_HITS / 2;
/// A reference. That and a hit are one short operand of an addition.
const ONE: u64 = 1 << 29;
const REFERENCES: u64 = !(ONE - 1);
/// A quarter of the references that there is room for.
const TOO_MANY: u64 = 1 << 62;

/// A place for one registration; see the file's head.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Entry<T> {
    state: AtomicU64,
    /// Not 0 if it was looked up since that was last asked.
    used: AtomicU32,
    /// How often [`MOVED_HITS`] were taken off the state, which has no more room for them.
    moves: AtomicU32,
    content: UnsafeCell<MaybeUninit<T>>,
}

/// Who is left when a reference is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Guards, or an index that keeps the registration.
    Others,
    /// The index alone, which is not to keep it.
    Index,
    /// Nobody: the caller must [`take`](Entry::take) the content.
    Nobody,
}

// SAFETY: a `T` moves in and out of an entry by shared reference (hence `Send`), and several threads
// read it at once (hence `Sync`); points 1 and 2 above order these accesses.
unsafe impl<T: Send + Sync> Sync for Entry<T> {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl<T: Send> Send for Entry<T> {}

impl<T> Entry<T> {
    /// All of it zero: fresh memory is vacant entries, see `slab.rs`.
    pub(crate) fn vacant() -> Self {
        Self {
            state: AtomicU64::new(0),
            used: AtomicU32::new(0),
            moves: AtomicU32::new(0),
            content: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// Fills a vacant entry and makes it live, with a reference for the index and one for the
    /// caller.
    ///
    /// # Safety
    ///
    /// The entry is vacant and the caller alone is filling it.
    pub(crate) unsafe fn publish(&self, content: T, fleeting: bool) {
        let fleeting = if fleeting { FLEETING } else { 0 };
        // SAFETY: passed on.
        unsafe { self.fill(content, LIVE + ONE + ONE + fleeting) }
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
        // A reader that comes by mistake changes nothing of a state without the flag.
        let hits = self.state.load(Ordering::Relaxed) & (ONE - HIT);
        debug_assert!(
            self.state.load(Ordering::Relaxed) & (LIVE | REFERENCES) == 0,
            "filled an entry in use"
        );
        // SAFETY: vacant, so nobody holds a reference, and nobody can get one until the flag is
        // set below; the caller is the only one to fill.
        self.content.with_mut(|p| unsafe { (*p).write(content) });
        self.used.store(0, Ordering::Relaxed);
        self.state.store(hits | state, Ordering::Release);
    }

    /// Takes a reference, if the entry is live, and counts a hit.
    pub(crate) fn acquire(&self) -> bool {
        self.acquire_unless(0)
    }

    /// As [`acquire`](Self::acquire), but not of a fleeting registration: its last guard has to be told.
    pub(crate) fn acquire_kept(&self) -> bool {
        self.acquire_unless(FLEETING)
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
                    self.moves.fetch_add(1, relaxed);
                    state = next;
                }
                Err(now) => state = now,
            }
        }
    }

    /// As [`acquire`](Self::acquire), if that can be done at the first attempt.
    #[inline]
    pub(crate) fn try_acquire(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        let next = state + ONE + HIT;
        state & (LIVE | MANY_HITS | FLEETING) == LIVE
            && self
                .state
                .compare_exchange_weak(state, next, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }

    /// Gives a reference back, and says who is left.
    ///
    /// # Safety
    ///
    /// The caller owns the reference, and uses it no more.
    #[inline]
    #[must_use]
    pub(crate) unsafe fn release(&self) -> Left {
        // SAFETY: passed on.
        unsafe { self.give_back(ONE) }
    }

    /// Gives back a reference that [`acquire`](Self::acquire) has just given, and takes its hit off the
    /// count.
    ///
    /// # Safety
    ///
    /// As for [`release`](Self::release).
    #[must_use]
    pub(crate) unsafe fn decline(&self) -> Left {
        // SAFETY: passed on.
        unsafe { self.give_back(ONE + HIT) }
    }

    #[inline]
    unsafe fn give_back(&self, what: u64) -> Left {
        let before = self.state.fetch_sub(what, Ordering::Release);
        debug_assert!(
            before & REFERENCES != 0,
            "released a reference that nobody had"
        );
        if before & (LIVE | FLEETING) == LIVE {
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
        // Reads what this thread has just written, at the end of the others' release sequences.
        self.state.load(Ordering::Acquire);
        Left::Nobody
    }

    /// Makes a live entry dead and drops the index's reference. True if nobody has another: the
    /// caller must then [`take`](Self::take) the content.
    ///
    /// # Safety
    ///
    /// The entry is live, and the caller is the only one to kill it: the index has forgotten it.
    #[must_use]
    pub(crate) unsafe fn kill(&self) -> bool {
        let before = self.state.fetch_sub(LIVE + ONE, Ordering::Release);
        debug_assert!(before & LIVE != 0, "killed an entry that was not live");
        self.left_of(before - LIVE) == Left::Nobody
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn saturate(&self) {
        self.state
            .fetch_add(TOO_MANY - 2 * ONE + MANY_HITS, Ordering::Relaxed);
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

    /// True if the entry is live and somebody besides the index has a reference. A hint: it may
    /// change at once.
    pub(crate) fn is_in_use(&self) -> bool {
        self.state.load(Ordering::Relaxed) & REFERENCES > ONE
    }

    /// True if the registration is not to be kept once only the index has a reference. For those who
    /// have one.
    #[inline]
    pub(crate) fn is_fleeting(&self) -> bool {
        self.state.load(Ordering::Relaxed) & FLEETING != 0
    }

    /// Notes that it was looked up.
    #[inline]
    pub(crate) fn touch(&self) {
        self.used.store(1, Ordering::Relaxed);
    }

    /// True if it was looked up since this was last asked.
    pub(crate) fn was_used(&self) -> bool {
        let used = self.used.load(Ordering::Relaxed) != 0;
        self.used.store(0, Ordering::Relaxed);
        used
    }

    /// Lookups served, in all the lives of this entry.
    pub(crate) fn hits(&self) -> u64 {
        let here = (self.state.load(Ordering::Relaxed) & (ONE - HIT)) / HIT;
        u64::from(self.moves.load(Ordering::Relaxed)) * (MOVED_HITS / HIT) + here
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
    fn the_last_guard_of_a_fleeting_registration_is_told() {
        let entry = Entry::vacant();
        // SAFETY: one thread, references counted by hand.
        unsafe {
            entry.publish(7, true);
            assert!(entry.is_fleeting());
            assert!(entry.acquire());
            assert_eq!(entry.release(), Left::Others);
            assert_eq!(entry.release(), Left::Index);
            assert!(entry.acquire(), "live until it is killed");
            assert!(!entry.kill());
            assert_eq!(entry.release(), Left::Nobody);
            entry.take();
            entry.publish(8, false);
            assert!(!entry.is_fleeting());
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
        // On some processors an exchange may fail for nothing.
        let mut tries = 0..1000;
        assert!(
            tries.any(|_| entry.try_acquire()),
            "as there is room for hits again"
        );
        let hits = (MANY_HITS / HIT) + 2;
        assert_eq!(entry.hits(), hits);
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
            // loom's Arc reports a leak or a double drop of `first`
        });
    }
}
