//! The table of guards, with one slot for each guard that a C program holds.
//!
//! Each guard is taken out of the table once:
//!
//! 1. A slot holds a guard while the slot's word is the guard's handle (`handle.rs`).
//! 2. [`take`] exchanges that word for the slot's next word. Of all threads that put the same
//!    handle, only one succeeds. Only that thread reads the guard.
//! 3. Slots are in chunks that are never freed or moved. So it is safe to look up any handle.
//! 4. The word of a slot that holds no guard does not equal any number that leads to the slot. The
//!    lowest bits of the word of a free slot name another slot (`handle.rs`). A slot that was never
//!    used has the word 0. Only the number 0 equals it, which leads to the first slot. [`prepare`]
//!    gives that slot another word, before a thread has a record and with it a way to take a guard.
//!
//! A free slot is in one of three places: a thread's [`FreeSlots`], a batch in a common pool, or
//! the part of the table that was never used. If a thread both gets guards and puts them, it writes
//! nothing that another thread uses. If some threads only look up and others only put, slots return
//! in batches through a pool.
//!
//! The first chunk is static, so that its slots are found without a load. [`enter_at_once`] and
//! [`take_at_once`], which serve most calls, use only this chunk. The slots of the first chunk are
//! *near*, and the others are *far*. The two have separate lists and pools, and far slots are used
//! only while there is no near one.
//!
//! [`of`] counts the guards of a cache. A far slot has the cache's handle. A near slot does not,
//! because that would be one more store in each lookup. It holds only guards of registrations that
//! are cached, and the address of such a guard tells which cache it belongs to.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use regcache::monitor::{Auto, Shared};

use crate::caches::AnyCache;
use crate::device::AnyDevice;
use crate::error::Error;
use crate::free_slots::{BATCH, FreeSlots, Lists};
use crate::handle;
use crate::thread_record::ThreadRecord;

pub(crate) type Guard = regcache::Guard<AnyDevice, Shared<Auto>>;

const CHUNK: u32 = 1 << 16;
const LEN: usize = CHUNK as usize;
const CHUNKS: usize = (handle::SLOTS / CHUNK) as usize;

/// The places for many guards, as columns. So the address of a word follows from the slot in one
/// step. A slot whose bytes are all zero was never used.
///
/// The slots of a batch are next to each other, and fill whole cache lines of each column.
#[repr(C, align(128))]
struct Chunk {
    words: [AtomicU64; LEN],
    /// The guards, from [`Guard::into_raw`].
    guards: [AtomicPtr<()>; LEN],
    /// In a pool, the number of the next slot of the batch, plus 1. It is 0 in the last slot.
    next: [AtomicU32; LEN],
    /// In the first slot of a batch in a pool, the first slot of the next batch, plus 1. It is 0 in
    /// the last batch.
    next_batch: [AtomicU32; LEN],
}

/// A chunk of far slots.
#[repr(C)]
struct FarChunk {
    chunk: Chunk,
    /// The handle of the guard's cache.
    caches: [AtomicU64; LEN],
}

/// The first chunk.
static NEAR: Chunk = Chunk {
    words: [const { AtomicU64::new(0) }; LEN],
    guards: [const { AtomicPtr::new(ptr::null_mut()) }; LEN],
    next: [const { AtomicU32::new(0) }; LEN],
    next_batch: [const { AtomicU32::new(0) }; LEN],
};

/// The other chunks.
static FAR: [AtomicPtr<FarChunk>; CHUNKS - 1] =
    [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS - 1];

/// The pools of near and of far slots: stacks of batches. The low 24 bits hold the first slot of
/// the first batch, plus 1.
///
/// The bits above the low 24 count changes of the pool. Suppose that a thread is preempted between
/// its load and its exchange, and that other threads take the first batch and put it back. Without
/// the count, the thread's exchange would succeed although the pool has changed. The count wraps
/// after 2^40 changes.
static POOLS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
const POOL_SLOT: u64 = (1 << 24) - 1;
const POOL_CHANGE: u64 = 1 << 24;

/// The first near and the first far slot that were never used.
static FRESH: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(CHUNK)];

/// The first slot beyond the near and beyond the far ones.
const LIMITS: [u32; 2] = [CHUNK, handle::SLOTS];

/// Returns 0 for a near slot and 1 for a far one.
fn distance(slot: u32) -> usize {
    usize::from(slot >= CHUNK)
}

/// Takes one of this thread's free slots, at least as far as `nearest`. Returns `None` if no slot,
/// or no memory for one, is left.
#[inline]
fn pop_free(free: &mut Lists, nearest: usize) -> Option<u32> {
    (nearest..2).find_map(|distance| {
        let free = &mut free[distance];
        if free.is_empty() {
            refill(free, distance);
        }
        free.pop()
    })
}

/// Adds a slot to this thread's free slots.
#[inline]
fn push_free(free: &mut Lists, slot: u32) {
    let distance = distance(slot);
    let free = &mut free[distance];
    if free.place().is_none() {
        spill(free, distance);
    }
    add(free, slot);
}

fn add(free: &mut FreeSlots, slot: u32) {
    if let Some(place) = free.place() {
        place.fill(slot);
    }
}

/// Fills an empty list with a batch from its pool. If the pool is empty, fills the list with slots
/// that were never used. If there are none, leaves the list empty.
#[cold]
#[inline(never)]
fn refill(free: &mut FreeSlots, distance: usize) {
    let mut next = pool_pop(distance);
    while let Some(index) = next {
        add(free, index);
        next = at(index).and_then(|slot| slot.next().load(Ordering::Relaxed).checked_sub(1));
    }
    if !free.is_empty() {
        return;
    }
    let batch = BATCH as u32;
    let take = |fresh: u32| (fresh < LIMITS[distance]).then_some(fresh + batch);
    let taken = FRESH[distance].fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
    let Ok(first) = taken else {
        return;
    };
    if make_chunk(first / CHUNK).is_none() {
        // Without memory for the chunk, the slots of this batch are never used. That is acceptable,
        // because there are 16 777 216 slots.
        return;
    }
    for index in (first..first + batch).rev() {
        if let Some(slot) = at(index) {
            slot.word()
                .store(handle::first_of_guards(index), Ordering::Relaxed);
        }
        add(free, index);
    }
}

/// Moves half of a full list to its pool.
#[cold]
#[inline(never)]
fn spill(free: &mut FreeSlots, distance: usize) {
    let batch = free.pop_batch();
    for (&index, &next) in batch.iter().zip(&batch[1..]) {
        if let Some(slot) = at(index) {
            slot.next().store(next + 1, Ordering::Relaxed);
        }
    }
    if let Some(last) = at(batch[BATCH - 1]) {
        last.next().store(0, Ordering::Relaxed);
    }
    pool_push(batch[0], distance);
}

/// A slot of a chunk that exists.
#[derive(Clone, Copy)]
struct GuardSlot {
    chunk: &'static Chunk,
    /// The handle of the guard's cache, in a far slot.
    cache: Option<&'static AtomicU64>,
    /// The number within the chunk.
    within: usize,
}

impl GuardSlot {
    #[inline(always)]
    fn near(within: usize) -> Self {
        Self {
            chunk: &NEAR,
            cache: None,
            within,
        }
    }

    #[inline(always)]
    fn word(self) -> &'static AtomicU64 {
        // SAFETY: `within` is less than the number of elements, wherever a `GuardSlot` is made.
        unsafe { self.chunk.words.get_unchecked(self.within) }
    }

    #[inline(always)]
    fn guard(self) -> &'static AtomicPtr<()> {
        // SAFETY: as in `word`.
        unsafe { self.chunk.guards.get_unchecked(self.within) }
    }

    fn next(self) -> &'static AtomicU32 {
        &self.chunk.next[self.within]
    }

    fn next_batch(self) -> &'static AtomicU32 {
        &self.chunk.next_batch[self.within]
    }

    /// Fills the free slot with a guard, and returns the guard's handle. Only this thread has taken
    /// the slot off a list.
    #[inline(always)]
    fn fill(self, guard: Guard) -> u64 {
        let handle = handle::of_guard(self.word().load(Ordering::Relaxed));
        let guard = guard.into_raw().as_ptr();
        // Other threads take the guard only after the word has become its handle.
        self.guard().store(guard, Ordering::Relaxed);
        self.word().store(handle, Ordering::Release);
        handle
    }

    /// Takes the guard with this handle out of the slot, whose word becomes `after`. If the slot
    /// has another word, returns that word. The lowest bits of `handle` are those of the slot's
    /// number.
    #[inline(always)]
    fn take(self, handle: u64, after: u64) -> Result<Guard, u64> {
        let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
        self.word()
            .compare_exchange(handle, after, acquire, relaxed)?;
        let guard = self.guard().load(Ordering::Relaxed);
        // SAFETY: the word was the guard's handle, which was stored after the guard was. Only this
        // thread has exchanged that word. The pointer was not null.
        Ok(unsafe { Guard::from_raw(NonNull::new_unchecked(guard)) })
    }
}

/// Returns the slot with this number, if its chunk exists.
#[inline]
fn at(index: u32) -> Option<GuardSlot> {
    let within = (index % CHUNK) as usize;
    let Some(far) = (index / CHUNK).checked_sub(1) else {
        return Some(GuardSlot::near(within));
    };
    let chunk = FAR.get(far as usize)?.load(Ordering::Acquire);
    // SAFETY: the pointer is null, or points to a chunk that was zeroed before the pointer was
    // stored, and that is never freed.
    let far = unsafe { chunk.as_ref() }?;
    Some(GuardSlot {
        chunk: &far.chunk,
        cache: Some(&far.caches[within]),
        within,
    })
}

/// Allocates a chunk, unless it exists. Returns `None` if there is no memory for it.
fn make_chunk(number: u32) -> Option<()> {
    let Some(far) = number.checked_sub(1) else {
        return Some(());
    };
    let chunk = FAR.get(far as usize)?;
    if !chunk.load(Ordering::Acquire).is_null() {
        return Some(());
    }
    let layout = Layout::new::<FarChunk>();
    // SAFETY: the layout is not of size 0.
    let new: *mut FarChunk = unsafe { alloc_zeroed(layout) }.cast();
    if new.is_null() {
        return None;
    }
    let stored = chunk.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire);
    if stored.is_err() {
        // SAFETY: the memory was allocated above with this layout, and no other thread has a
        // pointer to it.
        unsafe { dealloc(new.cast(), layout) };
    }
    Some(())
}

/// Takes the first batch of a pool, and returns its first slot.
fn pool_pop(distance: usize) -> Option<u32> {
    let shared = &POOLS[distance];
    let mut pool = shared.load(Ordering::Acquire);
    loop {
        let index = ((pool & POOL_SLOT) as u32).checked_sub(1)?;
        // Another thread may have taken this batch after the pool was loaded, and may be writing
        // `next_batch`. If so, the exchange fails and the value of `next` is not used.
        let next = at(index)?.next_batch().load(Ordering::Relaxed);
        let now = pool_word(pool, next);
        match shared.compare_exchange_weak(pool, now, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) => return Some(index),
            Err(changed) => pool = changed,
        }
    }
}

/// Puts the batch that begins with this slot into a pool.
fn pool_push(index: u32, distance: usize) {
    let Some(slot) = at(index) else { return };
    let shared = &POOLS[distance];
    let mut pool = shared.load(Ordering::Relaxed);
    loop {
        slot.next_batch()
            .store((pool & POOL_SLOT) as u32, Ordering::Relaxed);
        let now = pool_word(pool, index + 1);
        match shared.compare_exchange_weak(pool, now, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return,
            Err(changed) => pool = changed,
        }
    }
}

/// Returns the word that replaces `before` in a pool. Its first batch begins with slot `first`
/// minus 1, and its count of changes is one higher.
fn pool_word(before: u64, first: u32) -> u64 {
    (before & !POOL_SLOT).wrapping_add(POOL_CHANGE) | u64::from(first)
}

/// Enters a guard of a cache into the table, and returns the guard's handle. Drops the guard if no
/// slot is left.
#[inline(always)]
pub(crate) fn enter(thread: &ThreadRecord, cache: u64, guard: Guard) -> Result<u64, Error> {
    let nearest = usize::from(!guard.is_cached());
    let slot = thread.with_free_slots(|free| pop_free(free, nearest));
    let slot = slot.and_then(at).ok_or(Error::TooManyGuards)?;
    if let Some(place) = slot.cache {
        place.store(cache, Ordering::Relaxed);
    }
    Ok(slot.fill(guard))
}

/// Returns true if [`enter_at_once`] can be called.
#[inline(always)]
pub(crate) fn has_room(thread: &ThreadRecord) -> bool {
    thread.with_free_slots(|[near, _]| !near.is_empty())
}

/// Does the same as [`enter`], for a guard of a cached registration and a thread that has a free
/// near slot.
///
/// # Safety
///
/// [`has_room`] has returned true, and this thread has entered no guard since.
#[inline(always)]
pub(crate) unsafe fn enter_at_once(thread: &ThreadRecord, guard: Guard) -> u64 {
    // SAFETY: the caller meets the condition, and only `enter` takes slots off the list.
    let within = thread.with_free_slots(|[near, _]| unsafe { near.pop_unchecked() }) as usize;
    // The slots of the first list are less than `CHUNK`, see `push_free` and `refill`.
    GuardSlot::near(within).fill(guard)
}

/// Does the same as [`take`], but returns `None` if the handle is not valid, if its slot is far, or
/// if the list of the thread's near slots is full.
#[inline(always)]
pub(crate) fn take_at_once(thread: &ThreadRecord, handle: u64) -> Option<Guard> {
    // The handle of a far slot leads to a near one as well, whose word is another.
    let within = handle as usize % LEN;
    // Otherwise the thread has a record, and the first slot has a word (`prepare`).
    if thread.is_full() {
        return None;
    }
    thread.with_free_slots(|[near, _]| {
        let place = near.place()?;
        let after = handle::after_guard(handle)?;
        let guard = GuardSlot::near(within).take(handle, after).ok()?;
        place.fill(within as u32);
        Some(guard)
    })
}

/// Prepares the table before a thread gets its record.
pub(crate) fn prepare() {
    let (other, order) = (handle::first_of_guards(0), Ordering::Relaxed);
    // This fails if the slot has another word already.
    let _ = NEAR.words[0].compare_exchange(0, other, order, order);
}

/// Takes the guard with this handle out of the table, and returns it. Fails if the handle is not
/// valid.
#[inline]
pub(crate) fn take(thread: &ThreadRecord, handle: u64) -> Result<Guard, Error> {
    let slot = (handle::kind(handle) == handle::GUARD)
        .then(|| at(handle::slot(handle)))
        .flatten();
    let Some(slot) = slot else {
        return Err(Error::NoGuard { handle });
    };
    let free = handle::after_guard(handle);
    let after = free.unwrap_or_else(|| handle::retired(handle));
    let guard = slot.take(handle, after).map_err(|word| {
        if handle::is_past_guard(handle, word) {
            Error::PutAlready { handle }
        } else {
            Error::NoGuard { handle }
        }
    })?;
    if free.is_some() {
        thread.with_free_slots(|free| push_free(free, handle::slot(handle)));
    }
    Ok(guard)
}

/// Returns the number of guards of a cache with this handle that C programs hold. The number is
/// exact if no thread looks up or puts during the call.
pub(crate) fn of(handle: u64, cache: &AnyCache) -> usize {
    let is_out = |&number: &u32| {
        at(number).is_some_and(|slot| {
            handle::holds_guard(slot.word().load(Ordering::Acquire), number)
                && match slot.cache {
                    Some(its) => its.load(Ordering::Relaxed) == handle,
                    None => cache.has_cached(slot.guard().load(Ordering::Relaxed)),
                }
        })
    };
    let used = |distance: usize| FRESH[distance].load(Ordering::Acquire);
    let numbers = (0..used(0)).chain(CHUNK..used(1));
    numbers.filter(is_out).count()
}
