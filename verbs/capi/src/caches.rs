//! The table of caches, and why none is destroyed under somebody who uses it.
//!
//! A place in the table holds a cache while its word is the cache's number (`number.rs`). Counting who uses a cache would have
//! every lookup of every thread write one cache line. Instead a thread says in a word of its own which cache it uses,
//! and looks at the place after that. [`destroy`] marks the place, and after that looks at the words of all
//! threads, and waits for those that name the cache (`fence.rs`): either the thread has seen the mark, and does not use the
//! cache, or it is waited for.
//!
//! Numbers are valid once, so that a word which a thread left when the process forked is waited for by nobody.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use regcache::Cache;
use regcache::monitor::{Auto, Shared};

use crate::device::AnyDevice;
use crate::error::Error;
use crate::fence;
use crate::guards;
use crate::number;
use crate::thread::Thread;

/// What a process can have.
const MOST: usize = 1024;

/// What a thread says that is in one of the application's callbacks.
pub(crate) const OUTSIDE: u64 = u64::MAX;

/// What is in the table.
pub(crate) struct Instance {
    pub(crate) cache: Cache<AnyDevice, Shared<Auto>>,
    /// A share that watches nothing, for other caches to get theirs from.
    pub(crate) monitor: Shared<Auto>,
    /// Access flags that mean nothing to its device.
    pub(crate) unknown_access: u32,
}

struct Place {
    word: AtomicU64,
    instance: AtomicPtr<Instance>,
}

static TABLE: [Place; MOST] = [const {
    Place {
        word: AtomicU64::new(0),
        instance: AtomicPtr::new(ptr::null_mut()),
    }
}; MOST];

/// Enters a cache, and returns its number.
pub(crate) fn enter(instance: Instance) -> Result<u64, Error> {
    fence::prepare();
    for (index, place) in TABLE.iter().enumerate() {
        let free = place.word.load(Ordering::Relaxed);
        if number::kind(free) != number::FREE {
            continue;
        }
        let generation = if free == 0 { number::FIRST } else { free };
        let number = number::valid(generation, index as u32, number::CACHE);
        let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
        let ours = number::closing(number);
        if place
            .word
            .compare_exchange(free, ours, acquire, relaxed)
            .is_err()
        {
            continue;
        }
        let instance = Box::into_raw(Box::new(instance));
        place.instance.store(instance, Ordering::Relaxed);
        place.word.store(number, Ordering::Release);
        return Ok(number);
    }
    Err(Error::TooManyCaches { most: MOST })
}

/// What this thread says that it uses, until it is dropped.
struct Using<'t>(&'t Thread);

impl Drop for Using<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.busy.store(0, Ordering::Release);
    }
}

/// Does something with a cache, which is there until it is done.
#[inline]
pub(crate) fn with<T>(
    thread: &Thread,
    number: u64,
    what: impl FnOnce(&Instance) -> Result<T, Error>,
) -> Result<T, Error> {
    if thread.busy.load(Ordering::Relaxed) != 0 {
        return Err(Error::Nested);
    }
    let place = find(number)?;
    thread.busy.store(number, Ordering::Relaxed);
    let _using = Using(thread);
    fence::here();
    let word = place.word.load(Ordering::Acquire);
    if word != number {
        return Err(not_there(number, word));
    }
    // SAFETY: the place holds this cache, whose pointer was stored before the word, and it stays as long as this thread
    // says that it uses it: see the file's head.
    what(unsafe { &*place.instance.load(Ordering::Relaxed) })
}

#[inline]
fn find(number: u64) -> Result<&'static Place, Error> {
    if number::kind(number) != number::CACHE {
        return Err(match number {
            0 => Error::Null { what: "cache" },
            _ => Error::NoCache { number },
        });
    }
    let place = TABLE.get(number::place(number) as usize);
    place.ok_or(Error::NoCache { number })
}

#[cold]
fn not_there(number: u64, word: u64) -> Error {
    if number::is_past(number, word) {
        Error::Destroyed { number }
    } else {
        Error::NoCache { number }
    }
}

/// Takes a cache out and drops it, unless guards hold some of its registrations.
pub(crate) fn destroy(thread: &Thread, number: u64) -> Result<(), Error> {
    // Before anybody is turned away; and in a child, which has no business with it.
    with(thread, number, |instance| {
        instance.cache.flush()?;
        none_out(number)
    })?;
    let place = find(number)?;
    let closing = number::closing(number);
    let (acquire, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
    place
        .word
        .compare_exchange(number, closing, acquire, relaxed)
        .map_err(|word| not_there(number, word))?;
    let closed = fence::everywhere().map_err(Error::Fence).and_then(|()| {
        wait_for_users(number);
        none_out(number)
    });
    if let Err(error) = closed {
        place.word.store(number, Ordering::Release);
        return Err(error);
    }
    let instance = place.instance.swap(ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: made by `Box::into_raw`, taken out once, and used by nobody: no thread says that it uses it, and none can find
    // it any more.
    let instance = unsafe { Box::from_raw(instance) };
    let gone = wait_for_the_rest(&instance);
    drop(instance);
    place.word.store(number::after(number), Ordering::Release);
    gone
}

/// Whether all guards were put.
fn none_out(number: u64) -> Result<(), Error> {
    match guards::of(number) {
        0 => Ok(()),
        held => Err(Error::Held { held }),
    }
}

/// Gives all registrations up, and waits for those that other threads are destroying: one that puts the last guard, or the
/// reaper.
fn wait_for_the_rest(instance: &Instance) -> Result<(), Error> {
    let mut given_up = instance.cache.flush()?;
    while !given_up.wait(Duration::from_secs(3600)) {}
    Ok(())
}

fn wait_for_users(number: u64) {
    let mut pause = Duration::from_micros(10);
    for thread in Thread::all() {
        while thread.busy.load(Ordering::Acquire) == number {
            sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }
}
