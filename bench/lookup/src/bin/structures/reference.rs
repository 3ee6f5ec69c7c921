//! Measures ways to take a reference to a live entry, to check the entry, and to drop the
//! reference.

use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering, compiler_fence, fence};
use std::sync::{Arc, Mutex, RwLock};
use std::{array, ptr};

use crate::{Candidate, Run};

pub(crate) const CANDIDATES: &[Candidate] = &[
    ("none", |_| Box::new(Loop(None))),
    ("CAS, `fetch_sub`", |_| {
        Box::new(Loop(Counted::<Swap>::new()))
    }),
    ("`fetch_add`, `fetch_sub`", |_| {
        Box::new(Loop(Counted::<Add>::new()))
    }),
    ("slot of the thread, fence", |_| {
        Box::new(Loop(Announced::<Full>::new()))
    }),
    ("slot of the thread, asymmetric fence", |_| {
        Box::new(Loop(Announced::<Asymmetric>::new()))
    }),
    ("count of the thread, asymmetric fence", |_| {
        Box::new(Loop(PerThread::new()))
    }),
    ("`Mutex`, `fetch_add`, `fetch_sub`", |_| {
        Box::new(Loop(Locked::new()))
    }),
    ("`RwLock`, `Arc`", |_| Box::new(Loop(Shared::new()))),
];

/// A way to take and drop references. `which` is the number of the thread.
trait Reference: Sync {
    fn take_and_give_back(&self, which: usize);
}

struct Loop<R>(R);

impl<R: Reference> Run for Loop<R> {
    fn run(&self, which: usize, operations: usize) {
        for _ in 0..operations {
            self.0.take_and_give_back(black_box(which));
        }
    }
}

/// The empty loop. Its cost is subtracted from the cost of each other loop.
impl Reference for Option<()> {
    #[inline(always)]
    fn take_and_give_back(&self, _: usize) {}
}

const LIVE: u64 = 1;
const ONE: u64 = 2;

/// An entry that shares no cache line with other data. `state` holds the live flag and the count of
/// references.
#[repr(align(128))]
struct Entry {
    state: AtomicU64,
    content: u64,
}

impl Entry {
    fn live() -> Self {
        Self {
            state: AtomicU64::new(LIVE + ONE),
            content: 1,
        }
    }
}

trait Acquire: Sync {
    fn acquire(state: &AtomicU64) -> bool;
}

/// A method that adds the reference with a compare-and-swap, as in `regcache/src/core/entry.rs`. It
/// never adds a reference to an entry that is not live.
struct Swap;

impl Acquire for Swap {
    #[inline(always)]
    fn acquire(state: &AtomicU64) -> bool {
        let mut now = state.load(Ordering::Relaxed);
        while now & LIVE != 0 {
            match state.compare_exchange_weak(now, now + ONE, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
        false
    }
}

/// A method that first adds a reference. If the entry is not live, the method subtracts the
/// reference again.
struct Add;

impl Acquire for Add {
    #[inline(always)]
    fn acquire(state: &AtomicU64) -> bool {
        if state.fetch_add(ONE, Ordering::Acquire) & LIVE != 0 {
            return true;
        }
        state.fetch_sub(ONE, Ordering::Release);
        false
    }
}

struct Counted<A> {
    entry: Entry,
    how: std::marker::PhantomData<A>,
}

impl<A> Counted<A> {
    fn new() -> Self {
        Self {
            entry: Entry::live(),
            how: std::marker::PhantomData,
        }
    }
}

impl<A: Acquire> Reference for Counted<A> {
    #[inline(always)]
    fn take_and_give_back(&self, _: usize) {
        let entry = black_box(&self.entry);
        if A::acquire(&entry.state) {
            black_box(entry.content);
            if entry.state.fetch_sub(ONE, Ordering::Release) == ONE {
                fence(Ordering::Acquire);
                black_box(&self.entry);
            }
        }
    }
}

trait Fence: Sync {
    fn fence();
}

/// A full fence, which each lookup executes. In a real cache, the thread that reclaims an entry
/// also executes a fence before it reads the slots.
struct Full;

impl Fence for Full {
    #[inline(always)]
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// A fence of the compiler only, so that a lookup executes no instruction for it. In a real cache,
/// the thread that reclaims an entry calls `membarrier`, which executes a fence in each thread.
struct Asymmetric;

impl Fence for Asymmetric {
    #[inline(always)]
    fn fence() {
        compiler_fence(Ordering::SeqCst);
    }
}

const SLOTS: usize = 8;

/// The references of one thread: each slot holds the address of an entry, or null if the slot is
/// empty. Dropping a reference empties its slot.
#[repr(align(128))]
struct Slots([AtomicPtr<Entry>; SLOTS]);

thread_local! {
    static MINE: Cell<Option<&'static Slots>> = const { Cell::new(None) };
    static COUNTS: Cell<Option<&'static Count>> = const { Cell::new(None) };
}

fn my_slots() -> &'static Slots {
    MINE.get().unwrap_or_else(new_slots)
}

#[cold]
fn new_slots() -> &'static Slots {
    // The slots of a thread are small, so they may stay allocated until the program ends.
    let slots = Box::leak(Box::new(Slots(array::from_fn(|_| AtomicPtr::default()))));
    MINE.set(Some(slots));
    slots
}

/// A method with hazard pointers. A lookup does not count the reference in the entry. Instead, it
/// writes the entry's address into one of the [`Slots`] of its thread.
struct Announced<F> {
    entry: Entry,
    how: std::marker::PhantomData<F>,
}

impl<F> Announced<F> {
    fn new() -> Self {
        Self {
            entry: Entry::live(),
            how: std::marker::PhantomData,
        }
    }
}

impl<F: Fence> Reference for Announced<F> {
    #[inline(always)]
    fn take_and_give_back(&self, _: usize) {
        let entry = black_box(&self.entry);
        let slots = my_slots();
        let free = slots
            .0
            .iter()
            .find(|slot| slot.load(Ordering::Acquire).is_null());
        // In this benchmark a slot is always empty. A real cache without an empty slot would count
        // the reference in the entry.
        let Some(slot) = free else { return };
        slot.store(ptr::from_ref(entry).cast_mut(), Ordering::Relaxed);
        F::fence();
        if entry.state.load(Ordering::Acquire) & LIVE != 0 {
            black_box(entry.content);
        }
        black_box(slot).store(ptr::null_mut(), Ordering::Release);
    }
}

/// A thread's count for one entry: the number of references that the thread took, less the number
/// of references that the thread dropped.
#[repr(align(128))]
struct Count(AtomicU64);

struct PerThread(Entry);

impl PerThread {
    fn new() -> Self {
        Self(Entry::live())
    }
}

#[cold]
fn new_count() -> &'static Count {
    let count = Box::leak(Box::new(Count(AtomicU64::new(0))));
    COUNTS.set(Some(count));
    count
}

impl Reference for PerThread {
    #[inline(always)]
    fn take_and_give_back(&self, _: usize) {
        let entry = black_box(&self.0);
        let count = COUNTS.get().unwrap_or_else(new_count);
        count
            .0
            .store(count.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        if entry.state.load(Ordering::Acquire) & LIVE != 0 {
            black_box(entry.content);
        }
        // In a real cache, another thread may drop the guard, and it would use its own count. So
        // the drop looks up the count of the dropping thread again.
        let count = black_box(COUNTS.get().unwrap_or_else(new_count));
        count.0.store(
            count.0.load(Ordering::Relaxed).wrapping_sub(1),
            Ordering::Release,
        );
    }
}

/// A method that checks the entry under a lock, and counts references in the entry.
struct Locked(Mutex<()>, Entry);

impl Locked {
    fn new() -> Self {
        Self(Mutex::new(()), Entry::live())
    }
}

impl Reference for Locked {
    #[inline(always)]
    fn take_and_give_back(&self, _: usize) {
        let entry = black_box(&self.1);
        let lock = self.0.lock();
        let live = Add::acquire(&entry.state);
        drop(lock);
        if live {
            black_box(entry.content);
            entry.state.fetch_sub(ONE, Ordering::Release);
        }
    }
}

struct Shared(RwLock<Arc<u64>>);

impl Shared {
    fn new() -> Self {
        Self(RwLock::new(Arc::new(1)))
    }
}

impl Reference for Shared {
    #[inline(always)]
    fn take_and_give_back(&self, _: usize) {
        let registration = self.0.read().map(|registration| Arc::clone(&registration));
        if let Ok(registration) = registration {
            black_box(*registration);
        }
    }
}
