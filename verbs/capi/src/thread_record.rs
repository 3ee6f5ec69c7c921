//! [`ThreadRecord`]: the library's state for one thread.
//!
//! Records are never freed. When a thread ends, the next new thread takes over its record, with the
//! free slots in it. The number of records equals the peak number of threads. After a fork, the
//! child leaks the records of the threads that were not copied.

use std::alloc::{Layout, alloc_zeroed};
use std::cell::UnsafeCell;
use std::ffi::{c_char, c_uint, c_void};
use std::fmt::{self, Write};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use regcache::thread_word;

use crate::free_slots::{FreeSlots, Lists};
use crate::{caches, guards};

/// The size of a message in bytes, with the NUL.
const MESSAGE: usize = 1024;

/// The value of [`ThreadRecord::busy`] while the thread is in a callback of the application.
pub(crate) const OUTSIDE: u64 = u64::MAX;

/// The state of one thread. It shares no cache line with the state of another thread. A record
/// whose bytes are all zero has no owner.
#[repr(align(128))]
pub(crate) struct ThreadRecord {
    /// The handle of the cache or pool that the thread's current call uses, 0, or [`OUTSIDE`]. Only
    /// the owner writes this word. A destroy reads it (`table.rs`).
    pub(crate) busy: AtomicU64,
    /// An argument of the thread's current lookup. Only the owner accesses it.
    access: UnsafeCell<c_uint>,
    owned: AtomicBool,
    /// The free slots of the thread. Only the owner accesses them.
    free_slots: UnsafeCell<Lists>,
    /// The message of the last error. Only the owner accesses it.
    message: UnsafeCell<[u8; MESSAGE]>,
    next: AtomicPtr<ThreadRecord>,
}

// SAFETY: only the thread that has set `owned` accesses the cells, through `mine`. A record passes
// from one thread to the next by release and acquire of that flag.
unsafe impl Sync for ThreadRecord {}

/// The record of the threads that have none yet. It seems to be in a callback and to have no place
/// for a free slot. So a call that uses it changes nothing, and goes the long way.
static NONE: ThreadRecord = ThreadRecord {
    busy: AtomicU64::new(OUTSIDE),
    access: UnsafeCell::new(0),
    owned: AtomicBool::new(true),
    free_slots: UnsafeCell::new([FreeSlots::FULL, FreeSlots::FULL]),
    message: UnsafeCell::new([0; MESSAGE]),
    next: AtomicPtr::new(ptr::null_mut()),
};

/// The first record of the list.
static RECORDS: AtomicPtr<ThreadRecord> = AtomicPtr::new(ptr::null_mut());

/// The pthread key whose destructor releases the record of a thread that ends, plus 1. The value is
/// 0 before the key is made. A destructor of Rust's thread-local storage would run too early: C
/// programs put guards in destructors of other pthread keys, which run later. Such a put sets the
/// key's value again, and POSIX then calls the key's destructor again.
static KEY: AtomicU64 = AtomicU64::new(0);

thread_word! {
    /// The pointer to this thread's record or to [`NONE`].
    mod mine = "regcache_thread_record": *const ThreadRecord,
    operand: { sym NONE },
    value: &raw const NONE
}

impl ThreadRecord {
    /// Returns this thread's record, or `None` if there is no memory for one.
    #[inline]
    pub(crate) fn mine() -> Option<&'static Self> {
        Self::known().or_else(Self::adopt)
    }

    /// Returns this thread's record, if the thread has one already.
    #[inline]
    fn known() -> Option<&'static Self> {
        let known = Self::known_or_none();
        (!ptr::eq(known, &raw const NONE)).then_some(known)
    }

    /// Returns this thread's record, or one that no call can use at once.
    #[inline(always)]
    pub(crate) fn known_or_none() -> &'static Self {
        // SAFETY: the pointer is to a record, which is never freed.
        unsafe { &*mine::get() }
    }

    /// Returns true if this thread is in a call that uses an object, or in a callback.
    #[inline(always)]
    pub(crate) fn is_busy(&self) -> bool {
        // SAFETY: `self` is this thread's record, from `mine` or `known_or_none`. Only this thread
        // writes the word, so no write runs at the same time.
        unsafe { self.busy.as_ptr().read() != 0 }
    }

    /// Notes the access of a lookup, which uses an object.
    #[inline(always)]
    pub(crate) fn set_access(&self, access: c_uint) {
        // SAFETY: `self` is this thread's record. It is not `NONE`, by which no lookup can use an
        // object.
        unsafe { self.access.get().write(access) };
    }

    /// Returns the access that was noted last.
    #[inline(always)]
    pub(crate) fn access(&self) -> c_uint {
        // SAFETY: as above.
        unsafe { self.access.get().read() }
    }

    /// Does the same as [`access`](Self::access), for the long way. The compiler must not keep the
    /// access in a register until then, so the read is volatile.
    #[inline(always)]
    pub(crate) fn access_again(&self) -> c_uint {
        // SAFETY: as above.
        unsafe { self.access.get().read_volatile() }
    }

    /// Returns the records of all threads.
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        // SAFETY: records are never freed, and are initialised before they are in the list.
        let at = |record: *mut Self| unsafe { record.as_ref() };
        std::iter::successors(at(RECORDS.load(Ordering::Acquire)), move |record| {
            at(record.next.load(Ordering::Relaxed))
        })
    }

    /// Takes over a record whose thread has ended, or allocates a record.
    #[cold]
    #[inline(never)]
    fn adopt() -> Option<&'static Self> {
        let free = |record: &&Self| {
            let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
            let taken = record.owned.compare_exchange(false, true, acquire, relaxed);
            taken.is_ok()
        };
        let record = Self::all().find(free).or_else(Self::push_new)?;
        // With a record, the thread can use the tables.
        guards::prepare();
        caches::prepare();
        mine::set(record);
        // Without a key the record is never released, so no other thread can use it.
        if let Some(key) = key() {
            // SAFETY: the key exists and is never deleted.
            unsafe { libc::pthread_setspecific(key, ptr::from_ref(record).cast()) };
        }
        Some(record)
    }

    /// Allocates a record and puts it into the list. Returns `None` if there is no memory for it.
    fn push_new() -> Option<&'static Self> {
        // SAFETY: the layout is not of size 0.
        let record: *mut Self = unsafe { alloc_zeroed(Layout::new::<Self>()) }.cast();
        // SAFETY: the pointer is null, or points to zeroed memory with the layout of a record,
        // which is never freed. Zeros are a valid record.
        let record = unsafe { record.as_ref() }?;
        record.owned.store(true, Ordering::Relaxed);
        let mut first = RECORDS.load(Ordering::Relaxed);
        loop {
            record.next.store(first, Ordering::Relaxed);
            let pushed = RECORDS.compare_exchange_weak(
                first,
                ptr::from_ref(record).cast_mut(),
                // Point 5 of the argument in `table.rs` relies on this order.
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
            match pushed {
                Ok(_) => return Some(record),
                Err(now) => first = now,
            }
        }
    }

    /// Returns true if the list of near slots is full. That of `NONE` always is.
    #[inline(always)]
    pub(crate) fn is_full(&self) -> bool {
        // SAFETY: `self` is this thread's record or `NONE`, whose lists never change. Nobody calls
        // this function while `with_free_slots` runs.
        let [near, _] = unsafe { &*self.free_slots.get() };
        near.is_full()
    }

    /// Calls `action` with the thread's free slots. `action` must not call this function.
    #[inline]
    pub(crate) fn with_free_slots<T>(&self, action: impl FnOnce(&mut Lists) -> T) -> T {
        // SAFETY: `self` is this thread's record, from `mine`, and not `NONE`: the callers have
        // checked that the record has room or a slot, or have used an object. `action` does not
        // call this function: the callers, in `guards.rs`, only move slots.
        action(unsafe { &mut *self.free_slots.get() })
    }

    /// Stores a message, which replaces the last message. Cuts a message that is too long.
    pub(crate) fn set_message(&self, message: impl fmt::Display) {
        // SAFETY: `self` is this thread's record, from `mine`. Formatting an error calls no
        // callback, so this buffer has no other reference.
        let buffer = unsafe { &mut *self.message.get() };
        let mut text = Bounded { buffer, len: 0 };
        // Writing fails only when the buffer is full. The message is then cut, so ignore the error.
        let _ = write!(text, "{message}");
        let Bounded { buffer, len } = text;
        buffer[len] = 0;
    }

    /// Returns the message, NUL-terminated.
    pub(crate) fn message(&self) -> *const c_char {
        self.message.get().cast()
    }
}

/// Releases the record of a thread that ends. This function is the key's destructor.
extern "C" fn give_back(record: *mut c_void) {
    mine::set(&raw const NONE);
    // SAFETY: `adopt` has set the value to a record, and records are never freed.
    if let Some(record) = unsafe { record.cast::<ThreadRecord>().as_ref() } {
        record.owned.store(false, Ordering::Release);
    }
}

/// Returns the key, and makes it at the first call. Returns `None` if the process has no key left.
fn key() -> Option<libc::pthread_key_t> {
    let made = KEY.load(Ordering::Acquire);
    if made != 0 {
        return libc::pthread_key_t::try_from(made - 1).ok();
    }
    let mut key = 0;
    // SAFETY: the call writes `key`. The destructor stays loaded, because the library is never
    // unloaded (`-z nodelete`).
    if unsafe { libc::pthread_key_create(&raw mut key, Some(give_back)) } != 0 {
        return None;
    }
    let ours = u64::from(key) + 1;
    match KEY.compare_exchange(0, ours, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(key),
        Err(theirs) => {
            // SAFETY: the key was made above, and no other thread has it.
            unsafe { libc::pthread_key_delete(key) };
            libc::pthread_key_t::try_from(theirs - 1).ok()
        }
    }
}

/// A writer of text into a buffer, which leaves a byte for the NUL.
struct Bounded<'b> {
    buffer: &'b mut [u8; MESSAGE],
    len: usize,
}

impl Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MESSAGE - 1 - self.len;
        let mut take = text.len().min(room);
        while !text.is_char_boundary(take) {
            take -= 1;
        }
        let text_that_fits = &text.as_bytes()[..take];
        self.buffer[self.len..self.len + take].copy_from_slice(text_that_fits);
        self.len += take;
        if take < text.len() {
            Err(fmt::Error)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn message_of(thread: &ThreadRecord) -> &str {
        // SAFETY: the message is NUL-terminated and belongs to this thread.
        unsafe { CStr::from_ptr(thread.message()) }
            .to_str()
            .unwrap()
    }

    #[test]
    fn a_message_that_is_too_long_is_cut_between_characters() {
        let thread = ThreadRecord::mine().unwrap();
        thread.set_message("é".repeat(MESSAGE));
        assert_eq!(message_of(thread), "é".repeat((MESSAGE - 1) / 2));
        thread.set_message("short");
        assert_eq!(message_of(thread), "short");
    }

    #[test]
    fn the_record_of_a_thread_that_has_ended_is_used_again() {
        let address = || ptr::from_ref(ThreadRecord::mine().unwrap()).addr();
        let mine = address();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let theirs = std::thread::spawn(address).join().unwrap();
            assert_ne!(theirs, mine);
            seen.insert(theirs);
        }
        // Threads of other tests start and end at the same time, so the count is not exact.
        assert!(seen.len() < 50, "{} records", seen.len());
    }
}
