//! The table of guards: a number for each guard that is out, and why it is taken back once.
//!
//! A place in the table holds a guard while its word is the guard's number (`number.rs`). [`put`] compares and exchanges
//! that word: of all the threads that put a number, at any time, one succeeds, and it alone reads the guard. Places are in
//! chunks that are never freed or moved, so that any number may be looked up.
//!
//! A free place is either in a thread's [`Magazine`], or in a batch of them in the common pool, or was never used. Lookups and
//! puts of one thread touch nothing that is another's. Threads that only look up, while others put, exchange batches.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use regcache::monitor::{Auto, Shared};

use crate::device::AnyDevice;
use crate::error::Error;
use crate::number;
use crate::thread::Thread;

/// What is in the table.
pub(crate) type Guard = regcache::Guard<AnyDevice, Shared<Auto>>;

/// Places that move at once between a magazine and the pool.
const BATCH: usize = 32;

const CHUNK: u32 = 4096;
const CHUNKS: usize = (number::PLACES / CHUNK) as usize;

/// All zero is a place that was never used.
#[repr(C)]
struct Place {
    word: AtomicU64,
    guard: UnsafeCell<MaybeUninit<Guard>>,
    /// The number of the cache that it is of.
    cache: AtomicU64,
    /// In the pool: the next place of the batch, plus 1.
    next: AtomicU32,
    /// And the next batch, plus 1.
    next_batch: AtomicU32,
}

static TABLE: [AtomicPtr<Place>; CHUNKS] = [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS];

/// The first place of the first batch, plus 1, and above it how often the pool was changed, so that a thread that was
/// stopped between its look and its exchange does not take what has come back meanwhile for what it saw: 2^40 changes
/// tell them apart.
static POOL: AtomicU64 = AtomicU64::new(0);
const POOL_PLACE: u64 = (1 << 24) - 1;
const POOL_CHANGE: u64 = 1 << 24;

/// The first place that was never used.
static FRESH: AtomicU32 = AtomicU32::new(0);

/// Free places of one thread. All of it zero is none.
pub(crate) struct Magazine {
    len: usize,
    places: [u32; 2 * BATCH],
}

impl Magazine {
    #[inline]
    fn pop(&mut self) -> Option<u32> {
        if self.len == 0 {
            self.refill();
        }
        self.len = self.len.checked_sub(1)?;
        self.places.get(self.len).copied()
    }

    #[inline]
    fn push(&mut self, place: u32) {
        if self.len == self.places.len() {
            self.spill();
        }
        self.places[self.len] = place;
        self.len += 1;
    }

    /// From the pool, or else places that were never used. Nothing if there are none.
    #[cold]
    #[inline(never)]
    fn refill(&mut self) {
        let mut next = pool_pop();
        while let Some(index) = next {
            self.places[self.len] = index;
            self.len += 1;
            next = at(index).and_then(|place| place.next.load(Ordering::Relaxed).checked_sub(1));
        }
        if self.len > 0 {
            return;
        }
        let batch = BATCH as u32;
        let take = |fresh: u32| (fresh < number::PLACES).then_some(fresh + batch);
        let Ok(first) = FRESH.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) else {
            return;
        };
        if make_chunk(first / CHUNK).is_none() {
            // Without memory; the places are lost, which there are enough of.
            return;
        }
        for index in (first..first + batch).rev() {
            if let Some(place) = at(index) {
                place.word.store(number::FIRST, Ordering::Relaxed);
            }
            self.places[self.len] = index;
            self.len += 1;
        }
    }

    /// Half of them to the pool.
    #[cold]
    #[inline(never)]
    fn spill(&mut self) {
        self.len -= BATCH;
        let batch = &self.places[self.len..];
        for (&index, &next) in batch.iter().zip(&batch[1..]) {
            if let Some(place) = at(index) {
                place.next.store(next + 1, Ordering::Relaxed);
            }
        }
        if let Some(last) = at(batch[BATCH - 1]) {
            last.next.store(0, Ordering::Relaxed);
        }
        pool_push(batch[0]);
    }
}

/// The place, if it exists.
#[inline]
fn at(index: u32) -> Option<&'static Place> {
    let chunk = TABLE.get((index / CHUNK) as usize)?;
    let chunk = chunk.load(Ordering::Acquire);
    if chunk.is_null() {
        return None;
    }
    // SAFETY: a chunk has `CHUNK` places, zeroed before it was stored, and is never freed.
    Some(unsafe { &*chunk.add((index % CHUNK) as usize) })
}

/// Makes the chunk exist. `None` without memory.
fn make_chunk(number: u32) -> Option<()> {
    let chunk = TABLE.get(number as usize)?;
    if !chunk.load(Ordering::Acquire).is_null() {
        return Some(());
    }
    let layout = Layout::array::<Place>(CHUNK as usize).ok()?;
    // SAFETY: not of size 0.
    let new: *mut Place = unsafe { alloc_zeroed(layout) }.cast();
    if new.is_null() {
        return None;
    }
    let stored = chunk.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire);
    if stored.is_err() {
        // SAFETY: allocated above with this layout, and nobody else has it.
        unsafe { dealloc(new.cast(), layout) };
    }
    Some(())
}

fn pool_pop() -> Option<u32> {
    let mut pool = POOL.load(Ordering::Acquire);
    loop {
        let index = ((pool & POOL_PLACE) as u32).checked_sub(1)?;
        // Whoever else has it by now may write this; then the exchange fails.
        let next = at(index)?.next_batch.load(Ordering::Relaxed);
        let now = pool_word(pool, next);
        match POOL.compare_exchange_weak(pool, now, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) => return Some(index),
            Err(changed) => pool = changed,
        }
    }
}

fn pool_push(index: u32) {
    let Some(place) = at(index) else { return };
    let mut pool = POOL.load(Ordering::Relaxed);
    loop {
        place
            .next_batch
            .store((pool & POOL_PLACE) as u32, Ordering::Relaxed);
        let now = pool_word(pool, index + 1);
        match POOL.compare_exchange_weak(pool, now, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return,
            Err(changed) => pool = changed,
        }
    }
}

/// The pool with another first batch.
fn pool_word(before: u64, first: u32) -> u64 {
    (before & !POOL_PLACE).wrapping_add(POOL_CHANGE) | u64::from(first)
}

/// Enters a guard of a cache, and returns its number. If there are too many out the guard is dropped.
#[inline]
pub(crate) fn enter(thread: &Thread, cache: u64, guard: Guard) -> Result<u64, Error> {
    let free = thread.with_magazine(Magazine::pop);
    let Some((index, place)) = free.and_then(|index| Some((index, at(index)?))) else {
        return Err(Error::TooManyGuards);
    };
    let number = number::valid(place.word.load(Ordering::Relaxed), index, number::GUARD);
    // SAFETY: a free place that this thread has taken out of its magazine: nobody reads it before the word says so.
    unsafe { (*place.guard.get()).write(guard) };
    place.cache.store(cache, Ordering::Relaxed);
    place.word.store(number, Ordering::Release);
    Ok(number)
}

/// Takes the guard back out.
#[inline]
pub(crate) fn take(thread: &Thread, number: u64) -> Result<Guard, Error> {
    let place = (number::kind(number) == number::GUARD)
        .then(|| at(number::place(number)))
        .flatten();
    let Some(place) = place else {
        return Err(Error::NoGuard { number });
    };
    let after = number::after(number);
    let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
    if let Err(word) = place.word.compare_exchange(number, after, acquire, relaxed) {
        return Err(if number::is_past(number, word) {
            Error::PutAlready { number }
        } else {
            Error::NoGuard { number }
        });
    }
    // SAFETY: the word was the guard's number, stored after the guard was written; and by exchanging it this thread alone
    // has come here.
    let guard = unsafe { (*place.guard.get()).assume_init_read() };
    if number::kind(after) == number::FREE {
        thread.with_magazine(|magazine| magazine.push(number::place(number)));
    }
    Ok(guard)
}

/// How many guards of a cache are out. Exact if nobody looks up or puts meanwhile.
pub(crate) fn of(cache: u64) -> usize {
    let used = FRESH.load(Ordering::Acquire);
    let is_out = |place: &&Place| {
        number::kind(place.word.load(Ordering::Acquire)) == number::GUARD
            && place.cache.load(Ordering::Relaxed) == cache
    };
    (0..used).filter_map(at).filter(is_out).count()
}
