//! The table of guards, with one slot for each guard that a C program holds.
//!
//! Each guard is taken out of the table once:
//!
//! 1. A slot holds a guard while the slot's word is the guard's handle (`handle.rs`).
//! 2. [`take`] exchanges that word for the slot's next word. Of all threads that put the same
//!    handle, only one succeeds. Only that thread reads the guard.
//! 3. Slots are in chunks that are never freed or moved. So it is safe to look up any handle.
//!
//! A free slot is in one of three places: a thread's [`FreeSlots`], a batch in the common pool, or
//! the part of the table that was never used. If a thread both gets guards and puts them, it writes
//! nothing that another thread uses. If some threads only look up and others only put, slots return
//! in batches through the pool.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use regcache::monitor::{Auto, Shared};

use crate::device::AnyDevice;
use crate::error::Error;
use crate::free_slots::{BATCH, FreeSlots};
use crate::handle;
use crate::thread_record::ThreadRecord;

pub(crate) type Guard = regcache::Guard<AnyDevice, Shared<Auto>>;

const CHUNK: u32 = 4096;
const CHUNKS: usize = (handle::SLOTS / CHUNK) as usize;

/// A place for one guard. A slot whose bytes are all zero was never used.
#[repr(C)]
struct GuardSlot {
    word: AtomicU64,
    guard: UnsafeCell<MaybeUninit<Guard>>,
    /// The handle of the guard's cache.
    cache: AtomicU64,
    /// In the pool, the number of the next slot of the batch, plus 1. It is 0 in the last slot.
    next: AtomicU32,
    /// In the first slot of a batch in the pool, the first slot of the next batch, plus 1. It is 0
    /// in the last batch.
    next_batch: AtomicU32,
}

static TABLE: [AtomicPtr<GuardSlot>; CHUNKS] = [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS];

/// The pool: a stack of batches. The low 24 bits hold the first slot of the first batch, plus 1.
///
/// The bits above the low 24 count changes of the pool. Suppose that a thread is preempted between
/// its load and its exchange, and that other threads take the first batch and put it back. Without
/// the count, the thread's exchange would succeed although the pool has changed. The count wraps
/// after 2^40 changes.
static POOL: AtomicU64 = AtomicU64::new(0);
const POOL_SLOT: u64 = (1 << 24) - 1;
const POOL_CHANGE: u64 = 1 << 24;

/// The first slot that was never used.
static FRESH: AtomicU32 = AtomicU32::new(0);

/// Takes one of this thread's free slots. Returns `None` if no slot, or no memory for one, is left.
#[inline]
fn pop_free(free: &mut FreeSlots) -> Option<u32> {
    if free.is_empty() {
        refill(free);
    }
    free.pop()
}

/// Adds a slot to this thread's free slots.
#[inline]
fn push_free(free: &mut FreeSlots, slot: u32) {
    if free.is_full() {
        spill(free);
    }
    free.push(slot);
}

/// Fills an empty list with a batch from the pool. If the pool is empty, fills the list with slots
/// that were never used. If there are none, leaves the list empty.
#[cold]
#[inline(never)]
fn refill(free: &mut FreeSlots) {
    let mut next = pool_pop();
    while let Some(index) = next {
        free.push(index);
        next = at(index).and_then(|slot| slot.next.load(Ordering::Relaxed).checked_sub(1));
    }
    if !free.is_empty() {
        return;
    }
    let batch = BATCH as u32;
    let take = |fresh: u32| (fresh < handle::SLOTS).then_some(fresh + batch);
    let Ok(first) = FRESH.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) else {
        return;
    };
    if make_chunk(first / CHUNK).is_none() {
        // Without memory for the chunk, the slots of this batch are never used. That is acceptable,
        // because there are 16 777 216 slots.
        return;
    }
    for index in (first..first + batch).rev() {
        if let Some(slot) = at(index) {
            slot.word.store(handle::FIRST, Ordering::Relaxed);
        }
        free.push(index);
    }
}

/// Moves half of a full list to the pool.
#[cold]
#[inline(never)]
fn spill(free: &mut FreeSlots) {
    let batch = free.pop_batch();
    for (&index, &next) in batch.iter().zip(&batch[1..]) {
        if let Some(slot) = at(index) {
            slot.next.store(next + 1, Ordering::Relaxed);
        }
    }
    if let Some(last) = at(batch[BATCH - 1]) {
        last.next.store(0, Ordering::Relaxed);
    }
    pool_push(batch[0]);
}

/// Returns the slot with this number, if its chunk exists.
#[inline]
fn at(index: u32) -> Option<&'static GuardSlot> {
    let chunk = TABLE.get((index / CHUNK) as usize)?;
    let chunk = chunk.load(Ordering::Acquire);
    if chunk.is_null() {
        return None;
    }
    // SAFETY: a chunk has `CHUNK` slots, which were zeroed before the chunk was stored. It is never
    // freed.
    Some(unsafe { &*chunk.add((index % CHUNK) as usize) })
}

/// Allocates a chunk, unless it exists. Returns `None` if there is no memory for it.
fn make_chunk(number: u32) -> Option<()> {
    let chunk = TABLE.get(number as usize)?;
    if !chunk.load(Ordering::Acquire).is_null() {
        return Some(());
    }
    let layout = Layout::array::<GuardSlot>(CHUNK as usize).ok()?;
    // SAFETY: the layout is not of size 0.
    let new: *mut GuardSlot = unsafe { alloc_zeroed(layout) }.cast();
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

/// Takes the first batch of the pool, and returns its first slot.
fn pool_pop() -> Option<u32> {
    let mut pool = POOL.load(Ordering::Acquire);
    loop {
        let index = ((pool & POOL_SLOT) as u32).checked_sub(1)?;
        // Another thread may have taken this batch after `POOL` was loaded, and may be writing
        // `next_batch`. If so, the exchange fails and the value of `next` is not used.
        let next = at(index)?.next_batch.load(Ordering::Relaxed);
        let now = pool_word(pool, next);
        match POOL.compare_exchange_weak(pool, now, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) => return Some(index),
            Err(changed) => pool = changed,
        }
    }
}

/// Puts the batch that begins with this slot into the pool.
fn pool_push(index: u32) {
    let Some(slot) = at(index) else { return };
    let mut pool = POOL.load(Ordering::Relaxed);
    loop {
        slot.next_batch
            .store((pool & POOL_SLOT) as u32, Ordering::Relaxed);
        let now = pool_word(pool, index + 1);
        match POOL.compare_exchange_weak(pool, now, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return,
            Err(changed) => pool = changed,
        }
    }
}

/// Returns the word that replaces `before` in the pool. Its first batch begins with slot `first`
/// minus 1, and its count of changes is one higher.
fn pool_word(before: u64, first: u32) -> u64 {
    (before & !POOL_SLOT).wrapping_add(POOL_CHANGE) | u64::from(first)
}

/// Enters a guard of a cache into the table, and returns the guard's handle. Drops the guard if no
/// slot is left.
#[inline(always)]
pub(crate) fn enter(thread: &ThreadRecord, cache: u64, guard: Guard) -> Result<u64, Error> {
    let free = thread.with_free_slots(pop_free);
    let handle = free.and_then(|index| enter_at(index, cache, guard));
    handle.ok_or(Error::TooManyGuards)
}

/// Does the same as [`enter`], but only if the thread has a free slot. Otherwise drops the guard
/// and returns `None`.
#[inline(always)]
pub(crate) fn try_enter(thread: &ThreadRecord, cache: u64, guard: Guard) -> Option<u64> {
    let index = thread.with_free_slots(FreeSlots::pop)?;
    enter_at(index, cache, guard)
}

#[inline(always)]
fn enter_at(index: u32, cache: u64, guard: Guard) -> Option<u64> {
    let slot = at(index)?;
    let handle = handle::valid(slot.word.load(Ordering::Relaxed), index, handle::GUARD);
    // SAFETY: the slot is free, and only this thread has taken it. Other threads read the guard
    // only after the word has become its handle.
    unsafe { (*slot.guard.get()).write(guard) };
    slot.cache.store(cache, Ordering::Relaxed);
    slot.word.store(handle, Ordering::Release);
    Some(handle)
}

/// Does the same as [`take`], but returns `None` if the handle is not valid, or if the list of the
/// thread's free slots is full.
#[inline(always)]
pub(crate) fn try_take(thread: &ThreadRecord, handle: u64) -> Option<Guard> {
    let after = handle::after(handle);
    if handle::kind(handle) != handle::GUARD || handle::kind(after) != handle::FREE {
        return None;
    }
    let number = handle::slot(handle);
    let slot = at(number)?;
    thread.with_free_slots(|free| {
        if free.is_full() {
            return None;
        }
        let guard = take_from(slot, handle, after).ok()?;
        free.push(number);
        Some(guard)
    })
}

/// Takes the guard with this handle out of its slot, whose word becomes `after`. If the slot has
/// another word, returns that word.
#[inline(always)]
fn take_from(slot: &GuardSlot, handle: u64, after: u64) -> Result<Guard, u64> {
    let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
    slot.word
        .compare_exchange(handle, after, acquire, relaxed)?;
    // SAFETY: the word was the guard's handle, which was stored after the guard was written. Only
    // this thread has exchanged that word.
    Ok(unsafe { (*slot.guard.get()).assume_init_read() })
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
    let after = handle::after(handle);
    let guard = take_from(slot, handle, after).map_err(|word| {
        if handle::is_past(handle, word) {
            Error::PutAlready { handle }
        } else {
            Error::NoGuard { handle }
        }
    })?;
    if handle::kind(after) == handle::FREE {
        thread.with_free_slots(|free| push_free(free, handle::slot(handle)));
    }
    Ok(guard)
}

/// Returns the number of guards of a cache that C programs hold. The number is exact if no thread
/// looks up or puts during the call.
pub(crate) fn of(cache: u64) -> usize {
    let used = FRESH.load(Ordering::Acquire);
    let is_out = |slot: &&GuardSlot| {
        handle::kind(slot.word.load(Ordering::Acquire)) == handle::GUARD
            && slot.cache.load(Ordering::Relaxed) == cache
    };
    (0..used).filter_map(at).filter(is_out).count()
}
