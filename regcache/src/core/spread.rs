//! [`Spread`]: the references to one entry that many threads use at once, counted in several cache
//! lines.
//!
//! An entry counts its references in its state (`entry.rs`). If two threads take references to one
//! entry at the same time, the cache line of the state moves between their CPUs at each hit. So an
//! entry that several threads use at once is *spread*: its references are counted in the *lanes* of
//! a `Spread`. A lane is a cache line of its own, and belongs to one thread, or to a few. A hit of
//! a spread entry writes to its lane, and only reads the state of the entry.
//!
//! A lane has two counts, which never fall: the references *taken* by its threads, and the
//! references *dropped* by its threads. A guard may be dropped in another thread than the one that
//! took it. So only the sums over all lanes have a meaning.
//!
//! ```text
//!   references = offset + sum of taken - sum of dropped
//! ```
//!
//! The *offset* accounts for the references that the state of the entry counts. It changes when the
//! entry dies.
//!
//! # The life of a `Spread`
//!
//! ```text
//!          assign             kill            claim            free
//!   FREE ──────────▶ LIVE ───────────▶ DEAD ──────────▶ CLAIMED ─────▶ FREE, next generation
//!     ▲               │ (another thread has spread the entry)
//!     └───────────────┘
//! ```
//!
//! The phase and a *generation* are one word. A `Spread` serves one entry from `assign` to `free`.
//! It is static, and is used again for other entries, also for those of other caches.
//!
//! # The argument
//!
//! All accesses to the word and to lanes, and those to the state of a spread entry that matter
//! here, are sequentially consistent. So there is one order of all of them, and "before" means this
//! order. Let E be an entry, and let S be its `Spread`.
//!
//! 1. *While E is live, a reference that was taken counts.* A reader loads the state of E, which
//!    names S. It adds 1 to *taken* in its lane of S, and then loads the state again. It owns a
//!    reference if the state still says that E is live and spread over S. Otherwise it adds 1 to
//!    *dropped*, so that the reference is undone. A kill first clears `LIVE` in the state, and then
//!    sums the lanes. If the reader's second load came before the kill, then the reader's addition
//!    did too, and the sum contains it. The state names S in the same word as `LIVE`. So it does
//!    not matter whether E was recycled between the two loads.
//! 2. *Only the last drop finds a sum of 0.* A sum reads all counts *dropped* first, and then all
//!    counts *taken*. Neither count falls. Consider a time between these two steps. The sum counts
//!    at least the references taken until that time, and at most those dropped until then. So the
//!    sum is never lower than the number of references at that time. When E is dead, no thread gets
//!    a new reference (point 1). So if the sum is 0, no reference is left, and none will come.
//! 3. *Some thread finds the sum of 0.* The kill sets the phase `DEAD`, and then sums the lanes.
//!    The drop of a reference adds to *dropped*, and then loads the phase. If the phase is `DEAD`,
//!    it sums the lanes. An undone reference is dropped in the same way. Consider the last addition
//!    to a count *dropped*, and the store of `DEAD`. Whichever of the two comes later is followed
//!    by a sum, and this sum reads both.
//! 4. *One thread claims E.* A thread that has found the sum of 0 replaces the word by a
//!    compare-and-swap. The word that it expects is the one that it loaded before the sum. So the
//!    sum belongs to this generation, and only one thread succeeds. That thread takes the content
//!    of E out. Each drop releases and each sum acquires, so all reads of the content come before.
//! 5. *A drop touches nothing that may be gone.* After the addition to *dropped*, E may be
//!    recycled, and its cache may be freed. After the addition a thread accesses only S, until it
//!    has claimed an entry. S may serve another entry than E by then. That entry may be dead, and
//!    the thread may have delayed its claim: a reader that undoes a reference has counted it for
//!    whichever entry S serves. So the thread claims whichever entry S serves. It calls the
//!    function that `assign` has got for that purpose, because the entry may belong to another
//!    cache. So a thread that drops a reference holds no lock. A lookup that holds the lock of the
//!    table undoes no reference, because no entry dies meanwhile.
//!
//! # References that the state counts
//!
//! References that were taken before E was spread are in the state. Their owners may drop them in
//! the state or in a lane, since only the sum counts. A thread that has found E not to be spread
//! may subtract its reference from the state later. If the kill came first, the subtraction returns
//! a state without `LIVE`, and the thread then drops its reference in a lane as well. The kill has
//! added to the offset the number of references that the state counted at that moment, without the
//! one of the index. So each reference is subtracted once.
//!
//! # Which entries are spread
//!
//! A thread counts a *collision* if another thread has changed the state during its hit. If
//! [`COLLISIONS`] come within [`WINDOW`] hits, the entry is spread until it dies. A hit of a spread
//! entry executes about twice as many instructions, and as many locked ones. So entries that one
//! thread uses at a time are not spread. If all of the process's `Spread`s are in use, the entry
//! stays as it is.
//!
//! A forked child may have a copy of a lane to which a thread of the parent had added half of what
//! it wanted to add. So a child of the process that spread the first entry spreads none.

use std::mem;
use std::ptr::NonNull;

use crate::sys::sync::{AtomicPtr, AtomicU64, Ordering, after_store};

/// The number of `Spread`s of a process.
pub(crate) const MOST: usize = if cfg!(loom) { 2 } else { 256 };

/// The number of collisions after which an entry is spread.
pub(crate) const COLLISIONS: u8 = 8;

/// The number of hits within which the collisions have to come.
pub(crate) const WINDOW: u16 = 4096;

/// The number of lanes of a `Spread`, a power of two. The lanes of a `Spread` take a page.
const LANES: usize = if cfg!(loom) { 2 } else { 64 };

const FREE: u64 = 0;
const LIVE: u64 = 1;
const DEAD: u64 = 2;
const CLAIMED: u64 = 3;
const PHASE: u64 = 3;
/// The unit of the generation.
const GENERATION: u64 = 4;

/// A function that resets the state of a claimed entry to the number of its hits, takes the content
/// out, and deregisters it. The caller must have claimed the entry.
pub(crate) type End = unsafe fn(entry: NonNull<()>, hits: u64);

/// The counts of the threads of one lane, in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Lane {
    taken: AtomicU64,
    dropped: AtomicU64,
}

/// The number of a `Spread`; see the head of this file. The address of a lane follows from the
/// number and the thread. So a hit loads no pointer to find its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spread(usize);

/// The part of a `Spread` that all threads share.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Common {
    word: AtomicU64,
    offset: AtomicU64,
    /// The hits that the entry had before, less the references taken before.
    hits: AtomicU64,
    /// The number of references that were taken and did not serve a lookup.
    declined: AtomicU64,
    /// The entry.
    entry: AtomicPtr<()>,
    /// The function that ends the entry, of type [`End`].
    end: AtomicPtr<()>,
}

#[cfg(not(loom))]
impl Common {
    const fn new() -> Self {
        Self {
            word: AtomicU64::new(FREE),
            offset: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            declined: AtomicU64::new(0),
            entry: AtomicPtr::new(std::ptr::null_mut()),
            end: AtomicPtr::new(std::ptr::null_mut()),
        }
    }
}

/// A claimed entry: the right to end it, and its number of hits.
#[derive(Debug)]
pub(crate) struct Claimed {
    spread: Spread,
    free: u64,
    pub(crate) hits: u64,
}

impl Claimed {
    /// Makes the `Spread` free. The state of the entry no longer names it.
    pub(crate) fn free(self) {
        self.spread.common().word.store(self.free, Ordering::SeqCst);
    }
}

/// Returns true if this thread has a lane of its own, as far as there are lanes. Without one, it
/// uses the first lane.
#[inline]
pub(crate) fn has_lane() -> bool {
    threads::mine() != 0
}

/// Gives this thread a lane, unless it has one.
#[cold]
pub(crate) fn choose_lane() {
    threads::choose();
}

impl Spread {
    /// Returns the `Spread` with this number, which a state has named.
    #[inline]
    pub(crate) fn at(number: usize) -> Self {
        Self(number)
    }

    pub(crate) fn number(self) -> usize {
        self.0
    }

    /// Finds a free `Spread` for an entry. `end` ends the entry.
    pub(crate) fn assign(entry: NonNull<()>, end: End) -> Option<Self> {
        if threads::in_child() || !all::prepare() {
            return None;
        }
        (0..MOST).map(Self).find(|spread| {
            let common = spread.common();
            let (word, order) = (common.word.load(Ordering::SeqCst), Ordering::SeqCst);
            // In the phase `CLAIMED` no thread claims an entry.
            let ours = word | CLAIMED;
            if word & PHASE != FREE
                || common
                    .word
                    .compare_exchange(word, ours, order, order)
                    .is_err()
            {
                return false;
            }
            common.entry.store(entry.as_ptr(), order);
            common.end.store(end as *mut (), order);
            common.word.store(word | LIVE, order);
            true
        })
    }

    /// Makes the `Spread` free again that the caller has got from [`assign`](Self::assign), and
    /// that no state names.
    pub(crate) fn abandon(self) {
        let word = &self.common().word;
        let free = (word.load(Ordering::SeqCst) & !PHASE).wrapping_add(GENERATION);
        word.store(free, Ordering::SeqCst);
    }

    #[inline]
    fn common(self) -> &'static Common {
        all::common(self.0)
    }

    /// Returns the lane of this thread.
    #[inline]
    fn lane(self) -> &'static Lane {
        all::lane(self.0, threads::mine() % LANES)
    }

    /// Counts a reference. The caller must load the state of the entry again (point 1).
    #[inline]
    pub(crate) fn take(self) {
        self.lane().taken.fetch_add(1, Ordering::SeqCst);
        after_store();
    }

    /// Drops a reference that the caller owns. Returns the word if it shows that an entry is dead.
    /// The caller must then call [`end_if_last`](Self::end_if_last).
    #[inline]
    #[must_use]
    fn drop_one(self) -> Option<u64> {
        self.lane().dropped.fetch_add(1, Ordering::SeqCst);
        after_store();
        let word = self.common().word.load(Ordering::SeqCst);
        (word & PHASE == DEAD).then_some(word)
    }

    /// Ends the entry that the `Spread` serves, if no reference to it is left. `word` is the word
    /// that the caller has loaded after its drop. The caller holds no lock.
    #[cold]
    #[inline(never)]
    fn end_if_last(self, word: u64) {
        let common = self.common();
        let (entry, end) = (
            common.entry.load(Ordering::SeqCst),
            common.end.load(Ordering::SeqCst),
        );
        let (Some(entry), Some(claimed)) = (NonNull::new(entry), self.claim(word)) else {
            return;
        };
        // SAFETY: the word has not changed until the claim. So the two pointers are those that
        // `assign` has stored for this generation, and the second one is a function of this type.
        let end: End = unsafe { mem::transmute::<*mut (), End>(end) };
        // SAFETY: the entry was claimed.
        unsafe { end(entry, claimed.hits) };
        claimed.free();
    }

    /// Drops a reference, and ends the entry if this was the last one. The caller holds no lock.
    #[inline]
    pub(crate) fn drop_and_end(self) {
        if let Some(word) = self.drop_one() {
            self.end_if_last(word);
        }
    }

    /// Undoes a reference that [`take`](Self::take) has counted, and that serves no lookup. The
    /// caller holds no lock.
    #[cold]
    pub(crate) fn undo(self) {
        self.count_declined();
        self.drop_and_end();
    }

    /// Counts a reference that did not serve a lookup, and that is not a hit.
    pub(crate) fn count_declined(self) {
        self.common().declined.fetch_add(1, Ordering::Relaxed);
    }

    /// Handles the death of the entry. `counted` is the number of references that its state counted
    /// then, without the one of the index. Returns the right to end the entry, if no reference is
    /// left.
    pub(crate) fn kill(self, counted: u64) -> Option<Claimed> {
        let offset = self.common().offset.load(Ordering::Relaxed);
        self.common()
            .offset
            .store(offset.wrapping_add(counted), Ordering::SeqCst);
        let dead = self.common().word.load(Ordering::Relaxed) & !PHASE | DEAD;
        self.common().word.store(dead, Ordering::SeqCst);
        after_store();
        self.claim(dead)
    }

    fn claim(self, dead: u64) -> Option<Claimed> {
        if self.references() != 0 {
            return None;
        }
        let (claimed, order) = (dead | CLAIMED, Ordering::SeqCst);
        self.common()
            .word
            .compare_exchange(dead, claimed, order, order)
            .ok()?;
        Some(Claimed {
            spread: self,
            free: (dead & !PHASE).wrapping_add(GENERATION),
            hits: self.hits(),
        })
    }

    /// Returns the number of references. While the entry is live, its state counts further ones.
    pub(crate) fn references(self) -> u64 {
        let dropped = self.sum(|lane| &lane.dropped);
        let offset = self.common().offset.load(Ordering::SeqCst);
        let taken = self.sum(|lane| &lane.taken);
        offset.wrapping_add(taken).wrapping_sub(dropped)
    }

    fn sum(self, count: impl Fn(&Lane) -> &AtomicU64) -> u64 {
        let lanes = (0..LANES).map(|lane| all::lane(self.0, lane));
        let counts = lanes.map(|lane| count(lane).load(Ordering::SeqCst));
        counts.fold(0, u64::wrapping_add)
    }

    fn served(self) -> u64 {
        let taken = self.sum(|lane| &lane.taken);
        taken.wrapping_sub(self.common().declined.load(Ordering::Relaxed))
    }

    /// Sets the number of hits that the entry has had until now.
    pub(crate) fn set_hits(self, hits: u64) {
        self.common()
            .hits
            .store(hits.wrapping_sub(self.served()), Ordering::Relaxed);
    }

    /// Returns the number of hits of the entry.
    pub(crate) fn hits(self) -> u64 {
        self.common()
            .hits
            .load(Ordering::Relaxed)
            .wrapping_add(self.served())
    }
}

/// All `Spread`s of the process. Their lanes are mapped when the first entry is spread, and never
/// unmapped.
#[cfg(not(loom))]
mod all {
    use std::ptr;
    use std::sync::atomic::AtomicPtr;

    use super::{Common, LANES, Lane, MOST, Ordering};
    use crate::sys::zeroed::{FromZeros, Zeroed};

    static COMMON: [Common; MOST] = [const { Common::new() }; MOST];

    static FIRST_LANE: AtomicPtr<Lane> = AtomicPtr::new(ptr::null_mut());

    // SAFETY: a lane whose bytes are all zero has counted nothing.
    unsafe impl FromZeros for Lane {}

    /// Maps the lanes, unless they are mapped. Returns false if there is no memory.
    #[cold]
    pub(super) fn prepare() -> bool {
        if !FIRST_LANE.load(Ordering::Acquire).is_null() {
            return true;
        }
        let Ok(lanes) = Zeroed::<Lane>::new(MOST * LANES) else {
            return false;
        };
        let first = lanes.as_slice().as_ptr().cast_mut();
        let (release, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        let stored = FIRST_LANE.compare_exchange(ptr::null_mut(), first, release, relaxed);
        if stored.is_ok() {
            std::mem::forget(lanes);
        }
        true
    }

    #[inline]
    pub(super) fn common(number: usize) -> &'static Common {
        &COMMON[number % MOST]
    }

    #[inline]
    pub(super) fn lane(number: usize, lane: usize) -> &'static Lane {
        let index = number % MOST * LANES + lane % LANES;
        // SAFETY: a number comes from `assign`, which has mapped the lanes. The caller got it from
        // there, or from a state that it loaded with `Acquire`. So the pointer is not null, and the
        // index is in the array.
        unsafe { &*FIRST_LANE.load(Ordering::Relaxed).add(index) }
    }
}

#[cfg(not(loom))]
mod threads {
    use std::cell::Cell;
    use std::process;
    use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    thread_local! {
        /// The number of this thread, or 0 if it has none yet.
        static MINE: Cell<usize> = const { Cell::new(0) };
    }

    /// The process that has spread the first entry, or 0.
    static FIRST: AtomicU32 = AtomicU32::new(0);

    /// Returns the number of this thread, or 0.
    #[inline]
    pub(super) fn mine() -> usize {
        MINE.get()
    }

    /// Gives this thread a number, unless it has one. The threads get their numbers in turn, so
    /// that as many threads as there are lanes share none.
    pub(super) fn choose() {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        if mine() == 0 {
            MINE.set(NEXT.fetch_add(1, Ordering::Relaxed).max(1));
        }
    }

    pub(super) fn in_child() -> bool {
        let (here, order) = (process::id(), Ordering::SeqCst);
        let first = FIRST.compare_exchange(0, here, order, order);
        first.is_err_and(|first| first != here)
    }
}

/// The `Spread`s of one execution of a model.
#[cfg(loom)]
mod all {
    use super::{Common, LANES, Lane, MOST};

    loom::lazy_static! {
        static ref COMMON: Vec<Common> = (0..MOST).map(|_| Common::default()).collect();
        static ref ALL_LANES: Vec<Lane> = (0..MOST * LANES).map(|_| Lane::default()).collect();
    }

    pub(super) fn prepare() -> bool {
        true
    }

    pub(super) fn common(number: usize) -> &'static Common {
        &COMMON[number]
    }

    pub(super) fn lane(number: usize, lane: usize) -> &'static Lane {
        &ALL_LANES[number * LANES + lane]
    }
}

#[cfg(loom)]
pub(in crate::core) mod threads {
    use std::cell::Cell;

    loom::thread_local! {
        static MINE: Cell<usize> = Cell::new(0);
    }

    /// Sets the lane of this thread. Without this call, all threads share the first lane.
    #[cfg(test)]
    pub(in crate::core) fn set(lane: usize) {
        MINE.with(|mine| mine.set(lane));
    }

    pub(super) fn mine() -> usize {
        MINE.with(Cell::get)
    }

    pub(super) fn choose() {}

    pub(super) fn in_child() -> bool {
        false
    }
}
