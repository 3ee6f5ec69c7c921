//! The table of caches, and the proof that no cache is destroyed while a thread uses it.
//!
//! A slot of the table holds a cache while its word is the cache's handle (`handle.rs`). A count of
//! users would make every lookup of every thread write one cache line. Instead each thread has a
//! word of its own, [`ThreadRecord::busy`], and the two sides do this:
//!
//! ```text
//!   lookup ([`with`])                     destroy ([`destroy`])
//!   L1  busy = handle                     D1  slot word: handle -> closing
//!   L2  light fence                       D2  heavy fence
//!   L3  load the slot's word; if it is    D3  load every thread's busy; wait while
//!       not the handle, return an error       it is the handle
//!   L4  use the cache                     D4  free the cache
//!   L5  busy = 0                          D5  slot word: the next free one
//! ```
//!
//! The argument:
//!
//! 1. D1 is an exchange, so that one thread destroys each cache.
//! 2. D2 runs a full fence in the looking thread at some point of its program (`membarrier.rs`). If
//!    that point is before L3, then L3 sees D1 and the lookup ends with an error.
//! 3. If that point is after L3, it is after L1, and D3 sees L1 or a later store of `busy`. If it
//!    sees L1, destroy waits.
//! 4. If it sees a later store, that store is L5 of this lookup, or follows it. L5 releases and D3
//!    acquires, so that L4 happened before D4. A later lookup of the same handle is after the
//!    fence, and falls under 2.
//! 5. A thread that D3 does not find in the list of records put its record there after the fence.
//!    Its L3 is later still, and falls under 2.
//! 6. Handles are never reused. So a `busy` word that a fork left behind, of a thread that the
//!    child does not have, never equals the handle of a live cache of the child.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use regcache::Cache;
use regcache::monitor::{Auto, Shared};

use crate::device::AnyDevice;
use crate::error::Error;
use crate::guards;
use crate::handle;
use crate::membarrier;
use crate::thread_record::ThreadRecord;

/// Caches that a process can have.
const MOST: usize = 1024;

/// A cache, with what the C functions need beside it.
pub(crate) struct Instance {
    pub(crate) cache: Cache<AnyDevice, Shared<Auto>>,
    /// A subscriber of the cache's monitor that watches nothing. Other caches subscribe through it.
    pub(crate) monitor: Shared<Auto>,
    /// Access flags that the device does not know.
    pub(crate) unknown_access: u32,
}

/// A place for one cache.
struct CacheSlot {
    word: AtomicU64,
    instance: AtomicPtr<Instance>,
}

static TABLE: [CacheSlot; MOST] = [const {
    CacheSlot {
        word: AtomicU64::new(0),
        instance: AtomicPtr::new(ptr::null_mut()),
    }
}; MOST];

/// Enters a cache, and returns its handle.
pub(crate) fn enter(instance: Instance) -> Result<u64, Error> {
    membarrier::prepare();
    for (index, slot) in TABLE.iter().enumerate() {
        let free = slot.word.load(Ordering::Relaxed);
        if handle::kind(free) != handle::FREE {
            continue;
        }
        let generation = if free == 0 { handle::FIRST } else { free };
        let handle = handle::valid(generation, index as u32, handle::CACHE);
        let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
        let ours = handle::closing(handle);
        if slot
            .word
            .compare_exchange(free, ours, acquire, relaxed)
            .is_err()
        {
            continue;
        }
        let instance = Box::into_raw(Box::new(instance));
        slot.instance.store(instance, Ordering::Relaxed);
        slot.word.store(handle, Ordering::Release);
        return Ok(handle);
    }
    Err(Error::TooManyCaches { most: MOST })
}

/// Clears the thread's `busy` word when dropped: L5.
struct Using<'t>(&'t ThreadRecord);

impl Drop for Using<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.busy.store(0, Ordering::Release);
    }
}

/// Calls `action` with a cache, which stays until `action` returns.
#[inline]
pub(crate) fn with<T>(
    thread: &ThreadRecord,
    handle: u64,
    action: impl FnOnce(&Instance) -> Result<T, Error>,
) -> Result<T, Error> {
    if thread.busy.load(Ordering::Relaxed) != 0 {
        return Err(Error::Nested);
    }
    let slot = find(handle)?;
    thread.busy.store(handle, Ordering::Relaxed);
    let _using = Using(thread);
    membarrier::light();
    let word = slot.word.load(Ordering::Acquire);
    if word != handle {
        return Err(not_there(handle, word));
    }
    // SAFETY: the slot holds this cache, whose pointer was stored before the word; and it stays
    // while this thread's `busy` is its handle: the argument at the head of the file.
    action(unsafe { &*slot.instance.load(Ordering::Relaxed) })
}

/// Returns the slot that a cache's handle names.
#[inline]
fn find(handle: u64) -> Result<&'static CacheSlot, Error> {
    if handle::kind(handle) != handle::CACHE {
        return Err(match handle {
            0 => Error::Null { what: "cache" },
            _ => Error::NoCache { handle },
        });
    }
    let slot = TABLE.get(handle::slot(handle) as usize);
    slot.ok_or(Error::NoCache { handle })
}

#[cold]
fn not_there(handle: u64, word: u64) -> Error {
    if handle::is_past(handle, word) {
        Error::Destroyed { handle }
    } else {
        Error::NoCache { handle }
    }
}

/// Takes a cache out and drops it. Fails if guards of it are out.
pub(crate) fn destroy(thread: &ThreadRecord, handle: u64) -> Result<(), Error> {
    // This comes first, so that a destroy that has to fail turns no lookup away. It also refuses in
    // a forked child, which may not touch its parent's cache.
    with(thread, handle, |instance| {
        instance.cache.flush()?;
        none_out(handle)
    })?;
    let slot = find(handle)?;
    let closing = handle::closing(handle);
    let (acquire, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
    slot.word
        .compare_exchange(handle, closing, acquire, relaxed)
        .map_err(|word| not_there(handle, word))?;
    let closed = membarrier::heavy().map_err(Error::Fence).and_then(|()| {
        wait_for_users(handle);
        none_out(handle)
    });
    if let Err(error) = closed {
        slot.word.store(handle, Ordering::Release);
        return Err(error);
    }
    let instance = slot.instance.swap(ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: made by `Box::into_raw`, and taken out once. No thread uses it, and none can find it
    // any more: the argument at the head of the file.
    let instance = unsafe { Box::from_raw(instance) };
    let gone = wait_for_deregistrations(&instance);
    drop(instance);
    slot.word.store(handle::after(handle), Ordering::Release);
    gone
}

/// Fails if guards of the cache are out.
fn none_out(handle: u64) -> Result<(), Error> {
    match guards::of(handle) {
        0 => Ok(()),
        held => Err(Error::Held { held }),
    }
}

/// Flushes the cache, and waits for the registrations that other threads are destroying: a thread
/// that puts a last guard, or the reaper.
fn wait_for_deregistrations(instance: &Instance) -> Result<(), Error> {
    let mut flushed = instance.cache.flush()?;
    while !flushed.wait(Duration::from_secs(3600)) {}
    Ok(())
}

fn wait_for_users(handle: u64) {
    let mut pause = Duration::from_micros(10);
    for thread in ThreadRecord::all() {
        while thread.busy.load(Ordering::Acquire) == handle {
            sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }
}
