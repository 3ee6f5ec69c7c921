//! The table of caches, and the proof that no cache is destroyed while a thread uses it.
//!
//! A slot of the table holds a cache while the slot's word is the cache's handle (`handle.rs`). A
//! count of users in the cache would make every lookup of every thread write the same cache line.
//! Instead each thread has a separate word, [`ThreadRecord::busy`]. A lookup and a destroy take
//! these steps:
//!
//! ```text
//!   lookup ([`with`])                     destroy ([`destroy`])
//!   L1  busy = handle                     D1  slot word: handle -> closing
//!   L2  light fence                       D2  heavy fence
//!   L3  load the slot's word; if it is    D3  load every thread's busy; wait while
//!       not the handle, return an error       it is the handle
//!   L4  use the cache                     D4  free the cache
//!   L5  busy = 0                          D5  slot word: closing -> free
//! ```
//!
//! The argument:
//!
//! 1. D1 is a compare-and-exchange, so only one thread destroys each cache.
//! 2. D2 makes the looking-up thread execute a full fence at some point of its program
//!    (`membarrier.rs`). If that point is before L3, then L3 sees D1, and the lookup returns an
//!    error.
//! 3. If that point is after L3, it is also after L1. So D3 sees L1 or a later store of `busy`. If
//!    D3 sees L1, destroy waits.
//! 4. If D3 sees a later store, that store is L5 of this lookup, or follows L5. L5 releases and D3
//!    acquires, so L4 happened before D4. A later lookup of the same handle by this thread is after
//!    the fence, so point 2 applies to it.
//! 5. Suppose that D3 does not find a thread in the list of records. Then the thread put its record
//!    into the list after the fence. L3 of every lookup by this thread is later still, so point 2
//!    applies to the lookup.
//! 6. Handles are never reused. A forked child has copies of the `busy` words of threads that it
//!    does not have. Such a word never equals the handle of a live cache of the child, so the child
//!    does not wait for it.

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

/// The maximum number of caches in a process.
const MOST: usize = 1024;

/// A cache, with the additional state that the C functions need.
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

/// Enters a cache into the table, and returns the cache's handle.
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

/// A mark that the thread uses a cache. Dropping it clears the thread's `busy` word, which is step
/// L5.
struct Using<'t>(&'t ThreadRecord);

impl Drop for Using<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.busy.store(0, Ordering::Release);
    }
}

/// Calls `action` with a cache. The cache is not destroyed before `action` returns.
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
    // SAFETY: the slot holds this cache, because the cache's pointer was stored before the word.
    // The cache is not freed while this thread's `busy` is the cache's handle, as the head of the
    // file argues.
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

/// Takes a cache out of the table and drops it. Fails if guards of the cache are still held.
pub(crate) fn destroy(thread: &ThreadRecord, handle: u64) -> Result<(), Error> {
    // These checks come before anything changes. So a destroy that fails here unlinks no entry, and
    // makes no concurrent lookup fail. A forked child may not touch its parent's cache.
    with(thread, handle, |instance| {
        instance.cache.check_process()?;
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
    // SAFETY: the pointer was made by `Box::into_raw`, and is taken out once. No thread uses the
    // cache, and no thread can find it any more. The head of the file has the argument.
    let instance = unsafe { Box::from_raw(instance) };
    let gone = wait_for_deregistrations(&instance);
    drop(instance);
    slot.word.store(handle::after(handle), Ordering::Release);
    gone
}

/// Fails if guards of the cache are still held.
fn none_out(handle: u64) -> Result<(), Error> {
    match guards::of(handle) {
        0 => Ok(()),
        held => Err(Error::Held { held }),
    }
}

/// Flushes the cache, and waits until the other threads that deregister for the cache are done.
/// Such a thread may be putting a last guard, or may be the reaper.
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
