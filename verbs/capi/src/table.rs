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
//!
//! [`Table::use_at_once`] takes the same steps with fewer instructions, for the hits of the C
//! library. Its L2 is a fence of the compiler only. In L3 it loads the *quick word* of the slot,
//! which is the handle while two conditions hold: the slot's word is the handle, and the light
//! fence executes no instruction. Otherwise the quick word is *empty*: 0, or 1 in the first slot.
//! D1 also empties the quick word, before D2. So the argument holds for the quick word as it does
//! for the slot's word.
//!
//! The quick word is found by the lowest bits of the handle, which may be any number. An empty
//! quick word equals no number that leads to it: only 0 leads to the first slot and equals 0. So
//! equality alone shows that the number is the handle of a live object of the table.
//! [`Table::prepare`] empties the first quick word, before a thread has a record and with it a way
//! to use an object.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering, compiler_fence};
use std::thread::sleep;
use std::time::Duration;

use crate::error::Error;
use crate::handle;
use crate::membarrier;
use crate::thread_record::ThreadRecord;

/// An object of a table.
pub(crate) trait Object: Send + Sync {
    /// The name of the kind, which is also the name of the parameter that takes such an object.
    const KIND: &'static str;

    /// The part of the object that [`Table::use_at_once`] returns.
    type AtOnce: Sync;

    /// Returns that part, which stays where it is while the object exists, even if it is moved.
    fn at_once(&self) -> &Self::AtOnce;
}

/// A table of objects of one kind, with room for `MOST`.
///
/// `FIRST` is the number by which handles name the first slot. No two tables have a number in
/// common. So a handle of one table is unknown to the other. `MOST` is a power of two, and `FIRST`
/// is a multiple of it.
pub(crate) struct Table<T: Object + 'static, const FIRST: u32, const MOST: usize> {
    /// The quick words, which are apart from the rest. So the address of a quick word follows from
    /// a handle in one step.
    quick: [AtomicU64; MOST],
    /// The parts of the objects with a quick word.
    at_once: [AtomicPtr<T::AtOnce>; MOST],
    objects: [AtomicPtr<T>; MOST],
    words: [AtomicU64; MOST],
}

/// A place for one object.
struct Slot<'t, T: Object> {
    word: &'t AtomicU64,
    quick: &'t AtomicU64,
    at_once: &'t AtomicPtr<T::AtOnce>,
    object: &'t AtomicPtr<T>,
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

impl<T: Object> Slot<'_, T> {
    /// Makes the object usable under its handle. Its pointer was stored before.
    fn open(&self, handle: u64, is_quick: bool) {
        self.word.store(handle, Ordering::Release);
        if is_quick {
            self.quick.store(handle, Ordering::Release);
        }
    }
}

/// A mark that the thread uses an object. Dropping it clears the thread's `busy` word, which is
/// step L5.
pub(crate) struct Using<'t>(&'t ThreadRecord);

impl Drop for Using<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.busy.store(0, Ordering::Release);
    }
}

impl<T: Object, const FIRST: u32, const MOST: usize> Table<T, FIRST, MOST> {
    pub(crate) const fn new() -> Self {
        const { assert!(MOST.is_power_of_two() && (FIRST as usize).is_multiple_of(MOST)) };
        Self {
            quick: [const { AtomicU64::new(0) }; MOST],
            at_once: [const { AtomicPtr::new(ptr::null_mut()) }; MOST],
            objects: [const { AtomicPtr::new(ptr::null_mut()) }; MOST],
            words: [const { AtomicU64::new(0) }; MOST],
        }
    }

    fn slot(&self, index: usize) -> Option<Slot<'_, T>> {
        Some(Slot {
            word: self.words.get(index)?,
            quick: self.quick.get(index)?,
            at_once: self.at_once.get(index)?,
            object: self.objects.get(index)?,
        })
    }

    /// Prepares the table before a thread gets its record.
    pub(crate) fn prepare(&self) {
        let order = Ordering::Relaxed;
        // This fails if the word is not 0 already.
        let _ = self.quick[0].compare_exchange(0, 1, order, order);
    }

    /// Enters an object into the table, and returns the object's handle.
    pub(crate) fn enter(&self, object: T) -> Result<u64, Error> {
        let is_quick = membarrier::prepare();
        for (number, slot) in (FIRST..).zip((0..MOST).filter_map(|index| self.slot(index))) {
            let free = slot.word.load(Ordering::Relaxed);
            if handle::kind(free) != handle::FREE {
                continue;
            }
            let next = if free == 0 {
                handle::first(number)
            } else {
                free
            };
            let handle = handle::valid(next, handle::OBJECT);
            let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
            let ours = handle::closing(handle);
            if slot
                .word
                .compare_exchange(free, ours, acquire, relaxed)
                .is_err()
            {
                continue;
            }
            let object = Box::new(object);
            let at_once = ptr::from_ref(object.at_once()).cast_mut();
            slot.at_once.store(at_once, Ordering::Relaxed);
            slot.object.store(Box::into_raw(object), Ordering::Relaxed);
            slot.open(handle, is_quick);
            return Ok(handle);
        }
        let (kind, most) = (T::KIND, MOST);
        Err(Error::TooMany { kind, most })
    }

    /// Returns a part of an object, and a mark that the thread uses the object. The object is not
    /// destroyed before the mark is dropped. Returns `None` if that takes more than a few
    /// instructions, or if the thread cannot use the object.
    #[inline(always)]
    pub(crate) fn use_at_once<'t>(
        &self,
        thread: &'t ThreadRecord,
        handle: u64,
    ) -> Option<(Using<'t>, &T::AtOnce)> {
        if thread.is_busy() {
            return None;
        }
        let index = handle as usize % MOST;
        let quick = &self.quick[index];
        thread.busy.store(handle, Ordering::Relaxed);
        let using = Using(thread);
        compiler_fence(Ordering::SeqCst);
        if quick.load(Ordering::Acquire) != handle {
            return None;
        }
        let at_once = self.at_once[index].load(Ordering::Relaxed);
        // SAFETY: this is a part of the object, because the pointer was stored before the quick
        // word. The object is not freed while this thread's `busy` is the object's handle, as the
        // head of the file argues.
        Some((using, unsafe { &*at_once }))
    }

    /// Returns the part of an object that [`use_at_once`](Self::use_at_once) has returned.
    ///
    /// # Safety
    ///
    /// This thread still uses the object with this handle.
    pub(crate) unsafe fn used_at_once(&self, handle: u64) -> &T::AtOnce {
        let at_once = self.at_once[handle as usize % MOST].load(Ordering::Relaxed);
        // SAFETY: as in `use_at_once`.
        unsafe { &*at_once }
    }

    /// Does the same as [`use_at_once`](Self::use_at_once), for every handle and with the whole
    /// object. Returns the reason if the thread cannot use the object.
    #[inline]
    fn using<'t>(
        &self,
        thread: &'t ThreadRecord,
        handle: u64,
    ) -> Result<(Using<'t>, &T), Unusable> {
        if thread.is_busy() {
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

    /// Calls `action` with each object, as [`with`](Self::with) does. Objects that
    /// are entered or destroyed meanwhile may be left out.
    pub(crate) fn each(&self, thread: &ThreadRecord, action: impl Fn(&T)) {
        for word in &self.words {
            let word = word.load(Ordering::Relaxed);
            // This fails if the slot holds no object, or holds it no more.
            let _ = self.with(thread, word, |object| {
                action(object);
                Ok(())
            });
        }
    }

    /// Takes an object out of the table and returns it. No thread uses it any more. `check` is
    /// called when no thread can start to use the object. If `check` fails, the object stays.
    pub(crate) fn remove(
        &self,
        handle: u64,
        check: impl FnOnce(&T) -> Result<(), Error>,
    ) -> Result<Box<T>, Error> {
        let (kind, slot) = (T::KIND, self.find(handle)?);
        let closing = handle::closing(handle);
        let (acquire, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        slot.word
            .compare_exchange(handle, closing, acquire, relaxed)
            .map_err(|word| self.not_there(handle, word))?;
        let empty = u64::from(handle::slot(handle) == FIRST);
        let is_quick = slot.quick.swap(empty, Ordering::Relaxed) == handle;
        let fenced = membarrier::heavy().map_err(|source| Error::Fence { kind, source });
        let closed = fenced.and_then(|()| {
            wait_for_users(handle);
            // SAFETY: the slot holds the object, and only this thread destroys it.
            check(unsafe { &*slot.object.load(Ordering::Relaxed) })
        });
        if let Err(error) = closed {
            slot.open(handle, is_quick);
            return Err(error);
        }
        let object = slot.object.swap(ptr::null_mut(), Ordering::Relaxed);
        slot.word.store(handle::after(handle), Ordering::Release);
        // SAFETY: the pointer was made by `Box::into_raw`, and is taken out once. No thread uses
        // the object, and no thread can find it any more. The head of the file has the argument.
        Ok(unsafe { Box::from_raw(object) })
    }

    /// Returns the slot that a handle names.
    #[inline]
    fn slot_of(&self, handle: u64) -> Option<Slot<'_, T>> {
        if handle::kind(handle) != handle::OBJECT {
            return None;
        }
        self.slot(handle::slot(handle).wrapping_sub(FIRST) as usize)
    }

    fn find(&self, handle: u64) -> Result<Slot<'_, T>, Error> {
        self.slot_of(handle).ok_or_else(|| self.no_slot(handle))
    }

    #[cold]
    fn no_slot(&self, handle: u64) -> Error {
        let kind = T::KIND;
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
        let kind = T::KIND;
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
