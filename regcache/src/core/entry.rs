//! [`Entry`]: one registration in the cache, and the rule for who may deregister it.
//!
//! # The state
//!
//! One atomic word holds three flags, a count of hits and a count of references. So a lookup checks
//! that the entry is live, takes a reference and counts a hit in a single step.
//!
//! ```text
//!   63                       29 28                     3     2        1         0
//!  ┌───────────────────────────┬────────────────────────┬────────┬───────────┬──────┐
//!  │ references, 35 bits       │ hits, 26 bits          │ PARKED │ REVOCABLE │ LIVE │
//!  └───────────────────────────┴────────────────────────┴────────┴───────────┴──────┘
//! ```
//!
//! The *content* of an entry is its registration, with the range, the access and other data
//! (`Content` in `mod.rs`). A thread *takes the content out* to deregister the registration. An
//! entry goes through these states:
//!
//! ```text
//!            publish                 kill                  last release
//!   vacant ───────────▶ LIVE, n ≥ 1 ───────▶ dead, n ≥ 0 ───────────────▶ vacant
//!      │                                         ▲               (content taken out)
//!      └─────────────────────────────────────────┘
//!                   occupy (never in the index)
//! ```
//!
//! While an entry is live, the index owns one of its references. [`kill`](Entry::kill) clears
//! `LIVE` and drops that reference in a single step. Guards own the other references. When the
//! entry is reused for another registration, the count of hits is kept.
//!
//! # The argument
//!
//! 1. *References only grow while the entry is live.* [`acquire`](Entry::acquire) adds one
//!    reference by a compare-and-swap, which succeeds only if `LIVE` is set. So once `LIVE` is
//!    cleared, the count of references only falls. Exactly one call of [`release`](Entry::release)
//!    or `kill` brings the count to 0. The result of that call requires its caller to take the
//!    content out. No other caller takes the content out.
//! 2. *The owner of a reference sees the content that it acquired, and this content does not
//!    change.* The content is written before the release store in `publish`. `acquire` reads the
//!    value of that store, or of a read-modify-write in the store's release sequence. This read has
//!    acquire ordering, so the owner sees the content.
//!
//!    The content is overwritten only when the entry is vacant. By point 1, an entry becomes vacant
//!    only after the last release. Each release has release ordering. The release that brings the
//!    count to 0 loads the state with acquire ordering before the content is moved out. So no owner
//!    still reads the content when it is moved or overwritten.
//! 3. *A reader may have a pointer to an entry that was recycled after the reader got the pointer.*
//!    Entries are in a slab that is not freed while any thread can look up. So the word that the
//!    reader loads is always the state of an entry. If `acquire` succeeds, the reader holds a
//!    reference to the registration that is live in the entry at that moment. This registration is
//!    never dead, but it may not be the one that the reader looked for. So the reader must check
//!    that the registration serves its request.
//! 4. *No count runs into its neighbour.* If the word holds 2^25 hits, half of them must move to a
//!    separate counter before another reference is granted. While there are 2^33 references or
//!    more, hits do not move. Each reference granted adds a hit, so at most 2^25 references are
//!    granted beyond 2^33. The count of references has 35 bits, so it does not overflow.
//!
//! # Parked entries
//!
//! A search for an entry to evict *parks* the entries that guards hold (`eviction.rs`). The drop of
//! the last guard of a parked entry makes the entry a candidate again. So such a guard must learn
//! from its release that the entry is parked, but after the release it may not access the entry any
//! more. So the guard looks at the flag before the release. If the entry is parked between the two,
//! the guard does not tell the table. The search finds such an entry later (`Table::victim`). The
//! flag has no effect on the argument above.

use std::mem::MaybeUninit;

use crate::sys::sync::{AtomicU32, AtomicU64, Ordering, UnsafeCell};

const LIVE: u64 = 1;
/// The flag of a registration that is not retained. The drop of its last guard revokes it.
const REVOCABLE: u64 = 1 << 1;
/// The flag of an entry that a search for a victim has found in use.
const PARKED: u64 = 1 << 2;
/// The flags that the drop of a guard must act on.
const TOLD: u64 = REVOCABLE | PARKED;
/// The unit of the count of hits.
const HIT: u64 = 1 << 3;
/// The value of the hits' bits at which hits move to a separate counter: half of the maximum.
const MANY_HITS: u64 = 1 << 28;
/// The hits that move to the separate counter in one step. The remaining hits stay in the word, so
/// that `decline` can always subtract one.
const MOVED_HITS: u64 = MANY_HITS / 2;
/// The unit of the count of references. At bit 29, the sum of a reference and a hit fits in the
/// operand of one addition instruction.
const ONE: u64 = 1 << 29;
const REFERENCES: u64 = !(ONE - 1);
/// The value of the references' bits from which hits do not move: a quarter of the maximum.
const TOO_MANY: u64 = 1 << 62;

/// The storage for one registration and its state; see the head of this file.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Entry<T> {
    state: AtomicU64,
    /// The reference bit of CLOCK. The bit is not 0 if a lookup found the entry since the last call
    /// of [`was_used`](Entry::was_used).
    used: AtomicU32,
    /// The number of times that [`MOVED_HITS`] were moved out of the state.
    hit_blocks: AtomicU32,
    content: UnsafeCell<MaybeUninit<T>>,
}

/// The kind of owners that remain after a reference was released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Guards, or the index if it retains the registration.
    Others,
    /// Only the index. The registration must not be retained, or the entry is parked.
    Index,
    /// No owner. The caller must [`take`](Entry::take) the content.
    Nobody,
}

// SAFETY: a `T` moves in and out of an entry by shared reference, so `T` must be `Send`. Several
// threads read the content at once, so `T` must be `Sync`. Points 1 and 2 above order these
// accesses.
unsafe impl<T: Send + Sync> Sync for Entry<T> {}
// SAFETY: no part of an entry is bound to one thread.
unsafe impl<T: Send> Send for Entry<T> {}

impl<T> Entry<T> {
    /// Returns a vacant entry. All bytes of a vacant entry are zero. So the slab need not
    /// initialise the zeroed memory that it gets from the kernel (`slab.rs`).
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
        // SAFETY: the caller meets the conditions above, and this call needs no others.
        unsafe { self.fill(content, LIVE + ONE + ONE + revocable) }
    }

    /// Fills a vacant entry that will never be live, with a reference for the caller.
    ///
    /// # Safety
    ///
    /// The conditions are those of [`publish`](Self::publish).
    pub(crate) unsafe fn occupy(&self, content: T) {
        // SAFETY: the caller meets the conditions above, and this call needs no others.
        unsafe { self.fill(content, ONE) }
    }

    unsafe fn fill(&self, content: T, state: u64) {
        // This store comes first. If the page was never touched, a load would make the kernel map
        // the zero page, and the next store would fault again.
        self.used.store(0, Ordering::Relaxed);
        // `LIVE` is clear now, and a reader changes the state only if `LIVE` is set. So no thread
        // changes the state between this load and the store below.
        let hits = self.state.load(Ordering::Relaxed) & (ONE - HIT);
        debug_assert!(
            self.state.load(Ordering::Relaxed) & (LIVE | REFERENCES) == 0,
            "filled an entry in use"
        );
        // SAFETY: the entry is vacant, so there is no reference. No reference is granted until
        // `LIVE` is set below. No other thread fills the entry.
        self.content.with_mut(|p| unsafe { (*p).write(content) });
        self.state.store(hits | state, Ordering::Release);
    }

    /// Takes a reference and counts a hit, if the entry is live. Returns true if the reference was
    /// taken.
    pub(crate) fn acquire(&self) -> bool {
        self.acquire_unless(0)
    }

    /// Does the same as [`acquire`](Self::acquire), but refuses a revocable registration.
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

    /// Does the same as [`acquire`](Self::acquire), but makes only one attempt.
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

    /// Releases a reference. Returns the kind of owners that remain.
    ///
    /// # Safety
    ///
    /// The caller owns the reference, and does not use it afterwards.
    #[inline]
    #[must_use]
    pub(crate) unsafe fn release(&self) -> Left {
        // SAFETY: the caller meets the conditions above, and this call needs no others.
        unsafe { self.give_back(ONE) }
    }

    /// Releases a reference that [`acquire`](Self::acquire) has just granted, and subtracts the hit
    /// that `acquire` counted.
    ///
    /// # Safety
    ///
    /// The conditions are those of [`release`](Self::release).
    #[must_use]
    pub(crate) unsafe fn decline(&self) -> Left {
        // SAFETY: the caller meets the conditions above, and this call needs no others.
        unsafe { self.give_back(ONE + HIT) }
    }

    #[inline]
    unsafe fn give_back(&self, what: u64) -> Left {
        let before = self.state.fetch_sub(what, Ordering::Release);
        debug_assert!(
            before & REFERENCES != 0,
            "released a reference that did not exist"
        );
        if before & (LIVE | TOLD) == LIVE {
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
        // The load reads the value that this thread has just written. That write belongs to the
        // release sequences of the other threads' releases. So all reads of the content by other
        // threads happen before this load.
        self.state.load(Ordering::Acquire);
        Left::Nobody
    }

    /// Makes a live entry dead and drops the index's reference. Returns true if the index's
    /// reference was the last one. In that case the caller must [`take`](Self::take) the content.
    ///
    /// # Safety
    ///
    /// The entry is live and no longer in the index. No other thread kills it.
    #[must_use]
    pub(crate) unsafe fn kill(&self) -> bool {
        let before = self.state.fetch_sub(LIVE + ONE, Ordering::Release);
        debug_assert!(before & LIVE != 0, "killed an entry that was not live");
        self.left_of(before - LIVE) == Left::Nobody
    }

    #[cfg(all(test, not(loom)))]
    /// Adds references and hits until the entry grants no further reference. A test uses this to
    /// reach the limit.
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
        // SAFETY: the caller owns a reference. So the entry was filled, and its content stays until
        // that reference is released (point 2).
        self.content.with(|p| unsafe { (*p).assume_init_ref() })
    }

    /// Moves the content out of the entry, and returns the content. The entry is vacant afterwards.
    ///
    /// # Safety
    ///
    /// The caller has called [`release`](Self::release) or [`kill`](Self::kill), and the result
    /// required it to take the content. The caller takes the content once.
    pub(crate) unsafe fn take(&self) -> T {
        // SAFETY: the count of references is 0 and `LIVE` is clear, so no other thread accesses the
        // content (point 1). The content was written by `fill` and has not been taken since.
        self.content
            .with_mut(|p| unsafe { (*p).assume_init_read() })
    }

    /// Returns true if a guard holds this live entry. Another thread may acquire or release a
    /// reference at any time, so the result is only a snapshot.
    pub(crate) fn is_in_use(&self) -> bool {
        self.state.load(Ordering::Relaxed) & REFERENCES > ONE
    }

    /// Returns true if the drop of the last guard has to revoke the registration, or to make the
    /// entry a candidate for eviction again. The caller must own a reference to the entry.
    #[inline]
    pub(crate) fn awaits_last_guard(&self) -> bool {
        self.state.load(Ordering::Relaxed) & TOLD != 0
    }

    /// Parks a live entry if it is in use. Returns true if the entry is parked. The caller holds
    /// the table's lock.
    pub(crate) fn park(&self) -> bool {
        let before = self.state.fetch_or(PARKED, Ordering::Relaxed);
        let in_use = before & REFERENCES > ONE;
        if !in_use {
            self.unpark();
        }
        in_use
    }

    /// Clears the flag of a parked entry. Returns true if the entry was parked. The caller holds
    /// the table's lock.
    pub(crate) fn unpark(&self) -> bool {
        self.state.fetch_and(!PARKED, Ordering::Relaxed) & PARKED != 0
    }

    /// Sets the reference bit, which records that a lookup has found the entry.
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

    /// Returns the number of lookups that this entry has served, for all registrations that it has
    /// held.
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
        // SAFETY: the test has one thread, and it counts the references by hand.
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
        // SAFETY: the test has one thread, and it counts the references by hand.
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
        // SAFETY: the test has one thread, and it counts the references by hand.
        unsafe {
            entry.publish(7, true);
            assert!(entry.awaits_last_guard());
            assert!(entry.acquire());
            assert_eq!(entry.release(), Left::Others);
            assert_eq!(entry.release(), Left::Index);
            assert!(entry.acquire(), "live until it is killed");
            assert!(!entry.kill());
            assert_eq!(entry.release(), Left::Nobody);
            entry.take();
            entry.publish(8, false);
            assert!(!entry.awaits_last_guard());
        }
    }

    #[test]
    fn the_last_guard_of_a_parked_entry_is_told() {
        let entry = Entry::vacant();
        // SAFETY: the test has one thread, and it counts the references by hand.
        unsafe {
            entry.publish(7, false);
            assert!(entry.acquire());
            assert!(entry.park());
            assert!(entry.awaits_last_guard());
            assert_eq!(entry.release(), Left::Others);
            assert_eq!(entry.release(), Left::Index);
            assert!(!entry.park(), "idle");
            assert!(!entry.awaits_last_guard());
            assert!(entry.acquire(), "a parked entry stays live");
            assert!(entry.park());
            assert!(!entry.kill());
            assert_eq!(entry.release(), Left::Nobody);
            entry.take();
            entry.publish(8, false);
            assert!(!entry.awaits_last_guard());
            assert!(!entry.unpark());
        }
    }

    #[test]
    fn hits_are_counted_past_the_room_for_them_and_from_life_to_life() {
        let entry = Entry::vacant();
        // SAFETY: the test has one thread, and it counts the references by hand.
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
        // SAFETY: the test has one thread. The content needs no drop.
        unsafe { entry.publish(7, false) };
        let many = TOO_MANY - 2 * ONE + MANY_HITS;
        entry.state.fetch_add(many, Ordering::Relaxed);
        assert!(!entry.try_acquire());
        assert!(!entry.acquire());
        // SAFETY: the call releases one of the references added above.
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

    /// Readers acquire and release while the entry is killed. In every interleaving the content is
    /// taken exactly once, and no reader sees content that was taken.
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
                        // SAFETY: the reference was acquired above.
                        drop(Arc::clone(unsafe { entry.content() }));
                        // SAFETY: the reference was acquired above and is not used afterwards.
                        if unsafe { entry.release() } == Left::Nobody {
                            // SAFETY: the call above told this thread to take the content.
                            drop(unsafe { entry.take() });
                            return 1;
                        }
                        0
                    })
                })
                .collect();

            // SAFETY: the entry is live, and only this thread kills it.
            let mut taken = u32::from(unsafe { entry.kill() });
            if taken == 1 {
                // SAFETY: the call above told this thread to take the content.
                drop(unsafe { entry.take() });
            }
            // SAFETY: publish gave this thread a reference.
            if unsafe { entry.release() } == Left::Nobody {
                taken += 1;
                // SAFETY: the call above told this thread to take the content.
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
