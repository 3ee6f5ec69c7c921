//! [`Entry`]: one registration in the cache, and the rule for who may deregister it.
//!
//! # The state
//!
//! One atomic word holds three flags, a count of hits and a count of references. So a lookup checks
//! that the entry is live, takes a reference and counts a hit in a single step.
//!
//! ```text
//!   63                  29 28                       4     3        2        1         0
//!  ┌──────────────────────┬──────────────────────────┬────────┬────────┬───────────┬──────┐
//!  │ references, 35 bits  │ hits, 25 bits            │ SPREAD │ PARKED │ REVOCABLE │ LIVE │
//!  └──────────────────────┴──────────────────────────┴────────┴────────┴───────────┴──────┘
//! ```
//!
//! The references to an entry that several threads use at once are counted elsewhere, without a
//! word that all these threads write. The flag `SPREAD` marks such an entry. Its state has the
//! number of a [`Spread`] in place of the hits (`spread.rs`). The rest of this page is about
//! entries without the flag.
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
//!    that the registration serves its request. A vacant entry may turn into zeros at any time,
//!    which are a vacant entry as well (`Slab::give_back`).
//! 4. *No count runs into its neighbour.* If the word holds 2^24 hits, half of them must move to a
//!    separate counter before another reference is granted. While there are 2^33 references or
//!    more, hits do not move. Each reference granted adds a hit, so at most 2^24 references are
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
use std::ptr::NonNull;

use crate::core::spread::{COLLISIONS, End, Spread, WINDOW};
use crate::sys::sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, UnsafeCell};

const LIVE: u64 = 1;
/// The flag of a registration that is not retained. The drop of its last guard revokes it.
const REVOCABLE: u64 = 1 << 1;
/// The flag of an entry that a search for a victim has found in use.
const PARKED: u64 = 1 << 2;
/// The flag of an entry whose references are counted in a [`Spread`]. The flag is set until the
/// content is taken out.
const SPREAD: u64 = 1 << 3;
/// The flags that the drop of a guard must act on.
const TOLD: u64 = REVOCABLE | PARKED | SPREAD;
/// The unit of the count of hits, and of the number of a [`Spread`].
const HIT: u64 = 1 << 4;
/// The bits of the hits, or of the number of a [`Spread`].
const HITS: u64 = ONE - HIT;
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
    used: AtomicU8,
    /// The collisions since the number of hits was `window`. Its lower bits are in `window`.
    /// Threads change the two fields without synchronisation, so a collision may get lost.
    collisions: AtomicU8,
    window: AtomicU16,
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

/// The result of an attempt to acquire a spread entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The caller owns a reference.
    Acquired,
    /// The entry is not spread, or not live.
    NotSpread,
    /// The entry has died. The caller must call [`Spread::undo`].
    Undo(Spread),
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
            used: AtomicU8::new(0),
            collisions: AtomicU8::new(0),
            window: AtomicU16::new(0),
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
        self.collisions.store(0, Ordering::Relaxed);
        // `LIVE` is clear now, and a reader changes the state only if `LIVE` is set. So no thread
        // changes the state between this load and the store below.
        let hits = self.state.load(Ordering::Relaxed) & HITS;
        debug_assert!(
            self.state.load(Ordering::Relaxed) & (LIVE | SPREAD | REFERENCES) == 0,
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
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if state & (LIVE | refused) != LIVE {
                return false;
            }
            if state & SPREAD != 0 {
                return self.acquire_spread(state);
            }
            let next = if state & MANY_HITS == 0 {
                state + ONE + HIT
            } else if state < TOO_MANY {
                state - MOVED_HITS
            } else {
                return false;
            };
            let acquire = Ordering::Acquire;
            let changed = self
                .state
                .compare_exchange_weak(state, next, acquire, acquire);
            match changed {
                Ok(_) if next > state => return true,
                Ok(_) => {
                    self.hit_blocks.fetch_add(1, Ordering::Relaxed);
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
        has_only_live(state, MANY_HITS | REVOCABLE | SPREAD)
            && self
                .state
                .compare_exchange_weak(state, next, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }

    /// Takes a reference, if the entry is spread. Otherwise returns a reason to go on in another
    /// way.
    #[inline]
    pub(crate) fn try_acquire_spread(&self) -> Attempt {
        let state = self.state.load(Ordering::Acquire);
        if state & (LIVE | SPREAD) != LIVE | SPREAD {
            return Attempt::NotSpread;
        }
        self.attempt_spread(state)
    }

    /// Acquires a retained entry for which [`try_acquire`](Self::try_acquire) has failed. If the
    /// entry has no flag that explains the failure, another thread has changed the state. If this
    /// has happened often, the entry is spread. `end` ends the entry.
    pub(crate) fn acquire_contended(&self, end: End) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        let acquired = self.acquire_retained();
        let collided = state & (LIVE | MANY_HITS | SPREAD) == LIVE;
        if acquired && collided && self.count_collision(state) {
            self.spread(end);
        }
        acquired
    }

    /// Takes a reference to an entry whose state was `state`, which has the flags `LIVE` and
    /// `SPREAD`. `spread.rs` argues why the reference is valid.
    #[inline]
    fn attempt_spread(&self, state: u64) -> Attempt {
        let spread = spread_of(state);
        spread.take();
        // The entry must be live still, and its references counted in the same place.
        if (self.state.load(Ordering::SeqCst) ^ state) & (LIVE | SPREAD | HITS) == 0 {
            Attempt::Acquired
        } else {
            Attempt::Undo(spread)
        }
    }

    fn acquire_spread(&self, state: u64) -> bool {
        if let Attempt::Undo(spread) = self.attempt_spread(state) {
            spread.undo();
            return false;
        }
        true
    }

    /// Counts a collision, and returns true if there were many in a short time.
    #[cold]
    fn count_collision(&self, state: u64) -> bool {
        let hits = (state / HIT) as u16;
        let window = self.window.load(Ordering::Relaxed);
        let mut collisions = self.collisions.load(Ordering::Relaxed);
        if collisions == 0 || hits.wrapping_sub(window) > WINDOW {
            self.window.store(hits, Ordering::Relaxed);
            collisions = 0;
        }
        self.collisions
            .store(collisions.saturating_add(1), Ordering::Relaxed);
        collisions >= COLLISIONS
    }

    /// Spreads the references of a live entry. The caller owns a reference, so the entry is not
    /// recycled meanwhile.
    #[cold]
    pub(crate) fn spread(&self, end: End) {
        let entry = NonNull::from(self).cast();
        let Some(spread) = Spread::assign(entry, end) else {
            return;
        };
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if state & (LIVE | SPREAD | REVOCABLE) != LIVE {
                return spread.abandon();
            }
            spread.set_hits((state & HITS) / HIT);
            let next = state & !HITS | SPREAD | (spread.number() as u64 * HIT);
            let order = Ordering::SeqCst;
            match self.state.compare_exchange_weak(state, next, order, order) {
                Ok(_) => return,
                Err(now) => state = now,
            }
        }
    }

    /// Resets the state of an entry that the caller has claimed. Afterwards the entry is not
    /// spread, and has no references and this number of hits.
    ///
    /// # Safety
    ///
    /// The caller has claimed the entry, and has not taken its content yet.
    pub(crate) unsafe fn reset(&self, hits: u64) {
        let (blocks, rest) = (hits / (MOVED_HITS / HIT), hits % (MOVED_HITS / HIT));
        self.hit_blocks.fetch_add(blocks as u32, Ordering::Relaxed);
        self.state.store(rest * HIT, Ordering::SeqCst);
    }

    /// Does the same as [`release`](Self::release), for any entry. Returns [`Left::Index`] also if
    /// this may have been the last guard of a spread entry. The caller holds no lock.
    ///
    /// # Safety
    ///
    /// The conditions are those of [`release`](Self::release). The memory of the entry exists until
    /// the call returns, even if its content is taken out meanwhile.
    #[must_use]
    pub(crate) unsafe fn release_told(&self) -> Left {
        if self.state.load(Ordering::Relaxed) & SPREAD == 0 {
            // SAFETY: the caller meets the conditions.
            return unsafe { self.release() };
        }
        self.spread_of_reference().drop_and_end();
        match self.is_in_use() {
            true => Left::Others,
            false => Left::Index,
        }
    }

    /// Returns true if [`awaits_last_guard`](Self::awaits_last_guard) returned true only because
    /// the entry is spread. The caller must own a reference.
    #[inline]
    pub(crate) fn is_only_spread(&self) -> bool {
        self.state.load(Ordering::Relaxed) & TOLD == SPREAD
    }

    /// Returns the `Spread` in which the caller must drop its reference to a spread entry.
    #[inline]
    pub(crate) fn spread_of_reference(&self) -> Spread {
        spread_of(self.state.load(Ordering::Acquire))
    }

    /// Releases a reference. Returns the kind of owners that remain.
    ///
    /// # Safety
    ///
    /// The caller owns the reference, and does not use it afterwards.
    #[inline]
    #[must_use]
    pub(crate) unsafe fn release(&self) -> Left {
        let before = self.state.fetch_sub(ONE, Ordering::Release);
        debug_assert!(
            before & REFERENCES != 0,
            "released a reference that did not exist"
        );
        if before & (LIVE | TOLD) == LIVE {
            return Left::Others;
        }
        self.left_of(before)
    }

    /// Makes one attempt to release a reference to a live entry without a flag that the drop of a
    /// guard must act on. Returns true if the reference was released. The index still owns one.
    ///
    /// The attempt also fails if the hits must move, only because the test of these bits takes one
    /// instruction less than the test of the flags.
    ///
    /// # Safety
    ///
    /// The caller owns the reference. If the result is true, the caller does not use it afterwards.
    #[inline(always)]
    #[must_use]
    pub(crate) unsafe fn try_release(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        has_only_live(state, MANY_HITS | TOLD)
            && self
                .state
                .compare_exchange_weak(state, state - ONE, Ordering::Release, Ordering::Relaxed)
                .is_ok()
    }

    /// Releases a reference that [`acquire`](Self::acquire) has just granted, and subtracts the hit
    /// that `acquire` counted.
    ///
    /// # Safety
    ///
    /// The conditions are those of [`release`](Self::release).
    #[must_use]
    pub(crate) unsafe fn decline(&self) -> Left {
        let mut state = self.state.load(Ordering::Acquire);
        while state & SPREAD == 0 {
            let (next, release) = (state - ONE - HIT, Ordering::Release);
            let acquire = Ordering::Acquire;
            match self
                .state
                .compare_exchange_weak(state, next, release, acquire)
            {
                Ok(_) if state & (LIVE | TOLD) == LIVE => return Left::Others,
                Ok(_) => return self.left_of(state),
                Err(now) => state = now,
            }
        }
        spread_of(state).undo();
        Left::Others
    }

    #[cold]
    #[inline(never)]
    fn left_of(&self, before: u64) -> Left {
        let references = before & REFERENCES;
        if before & SPREAD != 0 {
            if before & LIVE == 0 {
                // The kill has moved this reference to the `Spread`. So the content is still there.
                // `before` was not loaded with `Acquire`, as `spread_of` needs it.
                self.state.load(Ordering::Acquire);
                spread_of(before).drop_and_end();
            }
            return Left::Others;
        }
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
        let before = self.state.fetch_sub(LIVE + ONE, Ordering::SeqCst);
        debug_assert!(before & LIVE != 0, "killed an entry that was not live");
        if before & SPREAD == 0 {
            return self.left_of(before - LIVE) == Left::Nobody;
        }
        let Some(claimed) = spread_of(before).kill((before & REFERENCES) / ONE - 1) else {
            return false;
        };
        // SAFETY: the entry was claimed.
        unsafe { self.reset(claimed.hits) };
        claimed.free();
        true
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
        is_in_use(self.state.load(Ordering::Acquire))
    }

    /// Returns true if the drop of the last guard has to revoke the registration, or to make the
    /// entry a candidate for eviction again, or if the entry is spread. The caller must own a
    /// reference to the entry.
    #[inline]
    pub(crate) fn awaits_last_guard(&self) -> bool {
        self.state.load(Ordering::Relaxed) & TOLD != 0
    }

    /// Parks a live entry if it is in use. Returns true if the entry is parked. The caller holds
    /// the table's lock.
    pub(crate) fn park(&self) -> bool {
        let before = self.state.fetch_or(PARKED, Ordering::Relaxed);
        let in_use = is_in_use(before);
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

    /// Does the same as [`touch`](Self::touch), but does not write to the cache line if the bit is
    /// set already.
    #[inline]
    pub(crate) fn touch_shared(&self) {
        if self.used.load(Ordering::Relaxed) == 0 {
            self.touch();
        }
    }

    /// Clears the reference bit, and returns true if it was set.
    pub(crate) fn was_used(&self) -> bool {
        let used = self.used.load(Ordering::Relaxed) != 0;
        self.used.store(0, Ordering::Relaxed);
        used
    }

    /// Sets the state of a vacant entry to zero. Returns the number of lookups that the entry has
    /// served.
    ///
    /// # Safety
    ///
    /// The entry is vacant, and no other thread publishes it meanwhile.
    pub(crate) unsafe fn forget_hits(&self) -> u64 {
        let hits = self.hits();
        if hits != 0 {
            self.state.store(0, Ordering::Relaxed);
            self.hit_blocks.store(0, Ordering::Relaxed);
        }
        hits
    }

    /// Returns the number of lookups that this entry has served, for all registrations that it has
    /// held.
    pub(crate) fn hits(&self) -> u64 {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let here = match state & SPREAD {
                0 => (state & HITS) / HIT,
                _ => spread_of(state).hits(),
            };
            let blocks = u64::from(self.hit_blocks.load(Ordering::Relaxed));
            let now = self.state.load(Ordering::Acquire);
            // The `Spread` may have been assigned to another entry meanwhile.
            if (now ^ state) & SPREAD == 0 && (state & SPREAD == 0 || now & HITS == state & HITS) {
                return blocks * (MOVED_HITS / HIT) + here;
            }
            state = now;
        }
    }
}

/// Returns true if the state has the flag `LIVE` and none of the other `bits`.
#[inline(always)]
fn has_only_live(state: u64, bits: u64) -> bool {
    // `LIVE` is the lowest bit. If it is set, the subtraction clears it and changes no other bit.
    // Otherwise the subtraction sets it.
    state.wrapping_sub(LIVE) & (LIVE | bits) == 0
}

/// Returns the [`Spread`] that a state with the flag `SPREAD` names. The caller has loaded the
/// state with `Acquire`. So the lanes, which were mapped before the flag was set, are mapped for it
/// too.
#[inline]
fn spread_of(state: u64) -> Spread {
    Spread::at(((state & HITS) / HIT) as usize)
}

fn is_in_use(state: u64) -> bool {
    let counted = (state & REFERENCES) / ONE;
    match state & SPREAD {
        0 => counted > 1,
        _ => counted.wrapping_add(spread_of(state).references()) != 1,
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
    fn one_attempt_releases_only_a_plain_reference_to_a_live_entry() {
        let entry = Entry::vacant();
        // SAFETY: the test has one thread, and it counts the references by hand.
        unsafe {
            entry.publish(7, true);
            assert!(!entry.try_release(), "revocable");
            assert_eq!(entry.release(), Left::Index);
            assert!(entry.kill());
            assert_eq!(entry.take(), 7);
            entry.publish(8, false);
            assert!(entry.acquire() && entry.park());
            assert!(!entry.try_release(), "parked");
            assert!(entry.unpark());
            entry.state.fetch_add(MANY_HITS, Ordering::Relaxed);
            assert!(!entry.try_release(), "the hits must move");
            entry.state.fetch_sub(MANY_HITS, Ordering::Relaxed);
            // On some CPUs a compare-and-swap may fail spuriously.
            assert!((0..1000).any(|_| entry.try_release()));
            assert!(entry.is_in_use(), "the first reference of publish");
            assert!(!entry.kill());
            assert!(!entry.try_release(), "dead");
            assert_eq!(entry.release(), Left::Nobody);
            assert_eq!(entry.take(), 8);
            entry.publish(9, false);
            entry.spread(end);
            assert!(!entry.try_release(), "spread");
            assert_eq!(entry.release_told(), Left::Index);
            assert!(entry.kill());
            assert_eq!(entry.take(), 9);
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

    /// Ends an entry, and leaves the content to be taken by the test.
    unsafe fn end(entry: NonNull<()>, hits: u64) {
        // SAFETY: `spread.rs` calls this function with an entry that was claimed. The type of the
        // content does not matter here.
        unsafe { entry.cast::<Entry<u8>>().as_ref().reset(hits) };
    }

    /// Releases a reference to a spread entry. Returns true if the entry was ended.
    fn ends<T>(entry: &Entry<T>) -> bool {
        entry.spread_of_reference().drop_and_end();
        entry.state.load(Ordering::Relaxed) & SPREAD == 0
    }

    #[test]
    fn a_spread_entry_is_taken_once_and_its_hits_are_kept() {
        let entry = Entry::vacant();
        // SAFETY: the test counts the references by hand. The threads take and drop them.
        unsafe {
            entry.publish(7, false);
            assert!(entry.acquire());
            entry.spread(end);
            assert!(!entry.try_acquire(), "the plain attempt refuses it");
            assert!(entry.is_in_use());
            assert!(entry.acquire_contended(end));
            assert!(entry.acquire_retained());
            std::thread::scope(|s| {
                s.spawn(|| assert!(!ends(&entry)));
            });
            assert_eq!(entry.decline(), Left::Others);
            assert_eq!(entry.release(), Left::Others, "in the state");
            assert!(entry.is_in_use(), "the first reference of publish");
            assert_eq!(entry.hits(), 2);
            assert!(!ends(&entry));
            assert!(!entry.is_in_use());
            assert!(!entry.park());
            assert!(entry.acquire());
            assert!(entry.park());
            assert!(!entry.is_only_spread());
            assert_eq!(entry.release_told(), Left::Index);
            assert!(entry.unpark());
            assert!(entry.acquire());
            assert!(!entry.kill(), "a guard is out");
            assert!(!entry.acquire() && !entry.acquire_contended(end), "dead");
            assert!(ends(&entry));
            assert_eq!(entry.take(), 7);
            assert_eq!(entry.hits(), 4);
            entry.publish(8, false);
            assert!(entry.try_acquire() && entry.is_in_use());
            assert_eq!(entry.release(), Left::Others);
            assert_eq!(entry.release(), Left::Others);
            assert_eq!(entry.hits(), 5);
            entry.spread(end);
            assert!(entry.kill(), "idle");
            assert_eq!(entry.take(), 8);
        }
    }

    #[test]
    fn a_reference_in_the_state_may_be_dropped_after_the_death_of_a_spread_entry() {
        let entry = Entry::vacant();
        // SAFETY: the test has one thread, and it counts the references by hand.
        unsafe {
            entry.publish(7, false);
            assert!(entry.acquire() && entry.acquire());
            entry.spread(end);
            assert!(!ends(&entry));
            assert!(!entry.kill());
            assert_eq!(entry.release(), Left::Others);
            assert!(entry.state.load(Ordering::Relaxed) & SPREAD != 0);
            assert_eq!(entry.release(), Left::Others);
            assert_eq!(entry.state.load(Ordering::Relaxed), 2 * HIT, "ended");
            assert_eq!(entry.take(), 7);
        }
    }

    #[test]
    fn revocable_and_dead_entries_are_not_spread() {
        let entry = Entry::vacant();
        // SAFETY: the test has one thread, and it counts the references by hand.
        unsafe {
            entry.publish(7, true);
            entry.spread(end);
            assert_eq!(entry.release(), Left::Index);
            assert!(entry.kill());
            entry.spread(end);
            assert_eq!(entry.take(), 7);
            entry.publish(8, false);
            assert!(entry.try_acquire());
        }
    }

    #[test]
    fn an_entry_is_spread_after_many_collisions_in_a_short_time() {
        let entry = Entry::vacant();
        // SAFETY: the content needs no drop.
        unsafe { entry.publish(7, false) };
        let collisions = |apart: u64| {
            let mut hits = 0;
            let mut count = || {
                hits += apart;
                entry.count_collision(hits * HIT)
            };
            (0..100).any(|_| count())
        };
        assert!(!collisions(u64::from(WINDOW) / 4), "too far apart");
        assert!(collisions(100));
    }

    #[test]
    fn without_a_place_for_its_counts_an_entry_is_not_spread() {
        let entries: Vec<_> = (0..400).map(|_| Entry::vacant()).collect();
        let in_state = || entries.iter().filter(|entry| entry.try_acquire()).count();
        // SAFETY: the test has one thread, and it counts the references by hand.
        unsafe {
            for entry in &entries {
                entry.publish(7, false);
                entry.spread(end);
            }
            let plain = in_state();
            assert!((400 - crate::core::spread::MOST..400).contains(&plain));
            for entry in &entries {
                let _ = entry.kill();
            }
            for entry in &entries {
                if entry.state.load(Ordering::Relaxed) & SPREAD != 0 {
                    assert!(ends(entry) || ends(entry));
                } else if entry.release() != Left::Nobody {
                    assert_eq!(entry.release(), Left::Nobody);
                }
                entry.take();
            }
            entries[0].publish(8, false);
            entries[0].spread(end);
            assert!(!entries[0].try_acquire(), "a place is free again");
            assert!(!entries[0].kill());
            assert!(ends(&entries[0]));
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
    fn an_entry_that_is_no_longer_spread_keeps_all_hits() {
        let most = MOVED_HITS / HIT;
        for hits in [5, most - 1, most, 3 * most + 5, 100 * most] {
            let entry = Entry::<u8>::vacant();
            // SAFETY: the entry has no content, and the test has one thread.
            unsafe { entry.reset(hits) };
            assert_eq!(entry.hits(), hits);
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
    use crate::core::spread;

    /// The content of an entry. A test has another `Arc` of it. So at the end, the count shows
    /// whether the content was taken once.
    type Content = Arc<()>;

    fn live_entry() -> (Arc<Entry<Content>>, Content) {
        let (entry, content) = (Entry::vacant(), Arc::new(()));
        // SAFETY: the entry is vacant and not shared yet.
        unsafe { entry.publish(Arc::clone(&content), false) };
        (Arc::new(entry), content)
    }

    fn assert_taken_once(content: &Content) {
        assert_eq!(Arc::strong_count(content), 1);
    }

    /// Takes the content of an entry that an undone reference has claimed.
    unsafe fn end(entry: NonNull<()>, hits: u64) {
        // SAFETY: `spread.rs` calls this function once, with the entry that `spread` has got.
        unsafe {
            let entry = entry.cast::<Entry<Content>>().as_ref();
            entry.reset(hits);
            drop(entry.take());
        }
    }

    /// Reads the content, releases a reference as a guard does, and takes the content if this was
    /// the last one.
    unsafe fn read_and_release(entry: &Entry<Content>) {
        // SAFETY: the caller owns a reference, which is not used afterwards. The test keeps the
        // entry. The content is taken if the release requires that.
        unsafe {
            drop(Arc::clone(entry.content()));
            let left = match entry.awaits_last_guard() {
                true => entry.release_told(),
                false => entry.release(),
            };
            if left == Left::Nobody {
                drop(entry.take());
            }
        }
    }

    /// Kills the entry, and takes the content if no reference is left. Returns true if it was
    /// taken.
    unsafe fn kill(entry: &Entry<Content>) -> bool {
        // SAFETY: the entry is live, and only the caller kills it. The content is taken if the kill
        // requires that.
        unsafe {
            let taken = entry.kill();
            if taken {
                drop(entry.take());
            }
            taken
        }
    }

    /// Readers acquire and release while the entry is killed. In every interleaving the content is
    /// taken exactly once, and no reader sees content that was taken. If `spread` is true, one of
    /// the readers spreads the entry.
    fn taken_once(spread: bool) {
        taken_once_if_released_by(spread, read_and_release);
    }

    /// Does the same as [`taken_once`]. The readers release their references by `release`.
    fn taken_once_if_released_by(spread: bool, release: unsafe fn(&Entry<Content>)) {
        let (entry, content) = live_entry();
        let readers = (0..2).map(|lane| {
            let entry = Arc::clone(&entry);
            thread::spawn(move || {
                spread::threads::set(lane);
                if entry.acquire() {
                    if spread && lane == 0 {
                        entry.spread(end);
                    }
                    // SAFETY: the reference was acquired above.
                    unsafe { release(&entry) };
                }
            })
        });
        let readers: Vec<_> = readers.collect();
        // SAFETY: the entry is live, and only this thread kills it. `publish` gave this thread a
        // reference.
        unsafe {
            kill(&entry);
            read_and_release(&entry);
        }
        for reader in readers {
            reader.join().unwrap();
        }
        assert_taken_once(&content);
    }

    #[test]
    fn loom_content_is_taken_once_and_never_seen_after() {
        loom::model(|| taken_once(false));
    }

    /// Releases a reference as the C library does.
    unsafe fn read_and_release_at_once(entry: &Entry<Content>) {
        // SAFETY: the caller owns a reference, which is not used after its release.
        unsafe {
            drop(Arc::clone(entry.content()));
            if !entry.try_release() {
                read_and_release(entry);
            }
        }
    }

    #[test]
    fn loom_content_is_taken_once_if_readers_first_make_one_attempt_to_release() {
        loom::model(|| taken_once_if_released_by(false, read_and_release_at_once));
    }

    #[test]
    fn loom_an_entry_may_be_spread_while_it_is_killed() {
        loom::model(|| taken_once(true));
    }

    /// The entry is spread from the start. Each reader drops its reference in the lane of the
    /// other, as if it had sent its guard there.
    #[test]
    fn loom_content_of_a_spread_entry_is_taken_once_and_never_seen_after() {
        loom::model(|| {
            let (entry, content) = live_entry();
            entry.spread(end);
            let readers = (0..2).map(|lane| {
                let entry = Arc::clone(&entry);
                thread::spawn(move || {
                    spread::threads::set(lane);
                    if entry.acquire() {
                        spread::threads::set(1 - lane);
                        // SAFETY: the reference was acquired above.
                        unsafe { read_and_release(&entry) };
                    }
                })
            });
            let readers: Vec<_> = readers.collect();
            // SAFETY: `publish` gave this thread a reference. Only this thread kills the entry.
            unsafe {
                read_and_release(&entry);
                kill(&entry);
            }
            for reader in readers {
                reader.join().unwrap();
            }
            assert_taken_once(&content);
        });
    }

    /// A reader finds an entry to be spread. Before it takes its reference, the entry dies, and its
    /// `Spread` serves another entry, which dies too. The reader's reference, which it undoes,
    /// keeps neither entry alive.
    #[test]
    fn loom_a_late_reader_keeps_no_other_entry() {
        // With more preemptions, the model takes too long.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = model.preemption_bound.map(|bound| bound.min(2));
        model.check(|| {
            let ((first, content), (second, other)) = (live_entry(), live_entry());
            first.spread(end);
            let reader = {
                let first = Arc::clone(&first);
                thread::spawn(move || {
                    spread::threads::set(1);
                    if first.acquire() {
                        // SAFETY: the reference was acquired above.
                        unsafe { read_and_release(&first) };
                    }
                })
            };
            // SAFETY: `publish` gave this thread the references. Only this thread kills the
            // entries.
            unsafe {
                read_and_release(&first);
                if kill(&first) {
                    second.spread(end);
                }
                read_and_release(&second);
                kill(&second);
            }
            reader.join().unwrap();
            assert_taken_once(&content);
            assert_taken_once(&other);
        });
    }
}
