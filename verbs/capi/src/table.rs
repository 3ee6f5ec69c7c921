//! [`Table`]: the objects that C programs create and destroy, and the proof that no object is
//! destroyed while a thread uses it. There is a table of caches and a table of pools.
//!
//! A slot of a table holds an object while the slot's word is the object's handle (`handle.rs`). A
//! count of users in a cache would make every lookup of every thread write the same cache line.
//! Instead each thread has a separate word, [`ThreadRecord::busy`]. A use, such as a lookup, and a
//! destroy take these steps:
//!
//! ```text
//!   use ([`Table::with`])                 destroy ([`Table::remove`])
//!   L1  busy = handle                     D1  slot word: handle -> closing
//!   L2  light fence                       D2  heavy fence
//!   L3  load the slot's word; if it is    D3  load every thread's busy; wait while
//!       not the handle, return an error       it is the handle
//!   L4  use the object                    D4  slot word: closing -> free
//!   L5  busy = 0                          D5  the caller frees the object
//! ```
//!
//! The argument:
//!
//! 1. D1 is a compare-and-exchange, so only one thread destroys each object.
//! 2. D2 makes the using thread execute a full fence at some point of its program
//!    (`membarrier.rs`). If that point is before L3, then L3 sees D1, and the use returns an error.
//! 3. If that point is after L3, it is also after L1. So D3 sees L1 or a later store of `busy`. If
//!    D3 sees L1, destroy waits.
//! 4. If D3 sees a later store, that store is L5 of this use, or follows L5. L5 releases and D3
//!    acquires, so L4 happened before D5. A later use of the same handle by this thread is after
//!    the fence, so point 2 applies to it.
//! 5. Suppose that D3 does not find a thread in the list of records. Then the thread put its record
//!    into the list after the fence. L3 of every use by this thread is later still, so point 2
//!    applies to the use.
//! 6. Handles are never reused. A forked child has copies of the `busy` words of threads that it
//!    does not have. Such a word never equals the handle of a live object of the child, so the
//!    child does not wait for it.
//! 7. A thread has one `busy` word for all tables, because a call inside another call is refused.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use crate::error::Error;
use crate::handle;
use crate::membarrier;
use crate::thread_record::ThreadRecord;

/// A table of objects of one kind, with room for `MOST`.
///
/// `FIRST` is the number by which handles name the first slot. No two tables have a number in
/// common. So a handle of one table is unknown to the other.
pub(crate) struct Table<T: 'static, const FIRST: u32, const MOST: usize> {
    /// The name of the kind, which is also the name of the parameter that takes such an object.
    kind: &'static str,
    slots: [Slot<T>; MOST],
}

/// A place for one object.
struct Slot<T> {
    word: AtomicU64,
    object: AtomicPtr<T>,
}

/// The reason why a handle names no object that the thread can use.
enum Unusable {
    /// The thread uses an object already.
    Nested,
    /// The table has no slot for the handle.
    NoSlot,
    /// The slot has this word.
    Holds(u64),
}

/// A mark that the thread uses an object. Dropping it clears the thread's `busy` word, which is
/// step L5.
struct Using<'t>(&'t ThreadRecord);

impl Drop for Using<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.busy.store(0, Ordering::Release);
    }
}

impl<T: Send + Sync, const FIRST: u32, const MOST: usize> Table<T, FIRST, MOST> {
    pub(crate) const fn new(kind: &'static str) -> Self {
        Self {
            kind,
            slots: [const {
                Slot {
                    word: AtomicU64::new(0),
                    object: AtomicPtr::new(ptr::null_mut()),
                }
            }; MOST],
        }
    }

    /// Enters an object into the table, and returns the object's handle.
    pub(crate) fn enter(&self, object: T) -> Result<u64, Error> {
        membarrier::prepare();
        for (number, slot) in (FIRST..).zip(&self.slots) {
            let free = slot.word.load(Ordering::Relaxed);
            if handle::kind(free) != handle::FREE {
                continue;
            }
            let generation = if free == 0 { handle::FIRST } else { free };
            let handle = handle::valid(generation, number, handle::OBJECT);
            let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
            let ours = handle::closing(handle);
            if slot
                .word
                .compare_exchange(free, ours, acquire, relaxed)
                .is_err()
            {
                continue;
            }
            let object = Box::into_raw(Box::new(object));
            slot.object.store(object, Ordering::Relaxed);
            slot.word.store(handle, Ordering::Release);
            return Ok(handle);
        }
        let (kind, most) = (self.kind, MOST);
        Err(Error::TooMany { kind, most })
    }

    /// Returns an object, and a mark that the thread uses it. The object is not destroyed before
    /// the mark is dropped.
    #[inline(always)]
    fn using<'t>(
        &self,
        thread: &'t ThreadRecord,
        handle: u64,
    ) -> Result<(Using<'t>, &T), Unusable> {
        if thread.busy.load(Ordering::Relaxed) != 0 {
            return Err(Unusable::Nested);
        }
        let slot = self.slot_of(handle).ok_or(Unusable::NoSlot)?;
        thread.busy.store(handle, Ordering::Relaxed);
        let using = Using(thread);
        membarrier::light();
        let word = slot.word.load(Ordering::Acquire);
        if word != handle {
            return Err(Unusable::Holds(word));
        }
        // SAFETY: the slot holds this object, because the object's pointer was stored before the
        // word. The object is not freed while this thread's `busy` is the object's handle, as the
        // head of the file argues.
        Ok((using, unsafe { &*slot.object.load(Ordering::Relaxed) }))
    }

    /// Calls `action` with an object. The object is not destroyed before `action` returns.
    #[inline]
    pub(crate) fn with<V>(
        &self,
        thread: &ThreadRecord,
        handle: u64,
        action: impl FnOnce(&T) -> Result<V, Error>,
    ) -> Result<V, Error> {
        let using = self.using(thread, handle);
        let (_using, object) = using.map_err(|why| self.refusal(handle, &why))?;
        action(object)
    }

    /// Does the same as [`with`](Self::with), but returns `None` instead of an error.
    #[inline(always)]
    pub(crate) fn try_with<V>(
        &self,
        thread: &ThreadRecord,
        handle: u64,
        action: impl FnOnce(&T) -> Option<V>,
    ) -> Option<V> {
        let (_using, object) = self.using(thread, handle).ok()?;
        action(object)
    }

    /// Calls `action` with each object and its handle, as [`with`](Self::with) does. Objects that
    /// are entered or destroyed meanwhile may be left out.
    pub(crate) fn each(&self, thread: &ThreadRecord, action: impl Fn(u64, &T)) {
        for slot in &self.slots {
            let word = slot.word.load(Ordering::Relaxed);
            // This fails if the slot holds no object, or holds it no more.
            let _ = self.with(thread, word, |object| {
                action(word, object);
                Ok(())
            });
        }
    }

    /// Takes an object out of the table and returns it. No thread uses it any more. `check` is
    /// called when no thread can start to use the object. If `check` fails, the object stays.
    pub(crate) fn remove(
        &self,
        handle: u64,
        check: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Box<T>, Error> {
        let (kind, slot) = (self.kind, self.find(handle)?);
        let closing = handle::closing(handle);
        let (acquire, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        slot.word
            .compare_exchange(handle, closing, acquire, relaxed)
            .map_err(|word| self.not_there(handle, word))?;
        let fenced = membarrier::heavy().map_err(|source| Error::Fence { kind, source });
        let closed = fenced.and_then(|()| {
            wait_for_users(handle);
            check()
        });
        if let Err(error) = closed {
            slot.word.store(handle, Ordering::Release);
            return Err(error);
        }
        let object = slot.object.swap(ptr::null_mut(), Ordering::Relaxed);
        slot.word.store(handle::after(handle), Ordering::Release);
        // SAFETY: the pointer was made by `Box::into_raw`, and is taken out once. No thread uses
        // the object, and no thread can find it any more. The head of the file has the argument.
        Ok(unsafe { Box::from_raw(object) })
    }

    /// Returns the slot that a handle names.
    #[inline(always)]
    fn slot_of(&self, handle: u64) -> Option<&Slot<T>> {
        if handle::kind(handle) != handle::OBJECT {
            return None;
        }
        let number = handle::slot(handle).wrapping_sub(FIRST);
        self.slots.get(number as usize)
    }

    fn find(&self, handle: u64) -> Result<&Slot<T>, Error> {
        self.slot_of(handle).ok_or_else(|| self.no_slot(handle))
    }

    #[cold]
    fn no_slot(&self, handle: u64) -> Error {
        let kind = self.kind;
        match handle {
            0 => Error::Null { what: kind },
            _ => Error::Foreign { kind, handle },
        }
    }

    #[cold]
    fn refusal(&self, handle: u64, why: &Unusable) -> Error {
        match *why {
            Unusable::Nested => Error::Nested,
            Unusable::NoSlot => self.no_slot(handle),
            Unusable::Holds(word) => self.not_there(handle, word),
        }
    }

    #[cold]
    fn not_there(&self, handle: u64, word: u64) -> Error {
        let kind = self.kind;
        if handle::is_past(handle, word) {
            Error::Destroyed { kind, handle }
        } else {
            Error::Foreign { kind, handle }
        }
    }
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
