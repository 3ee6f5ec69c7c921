//! [`Thread`]: what a thread has for itself.
//!
//! Records are never freed: one whose thread has ended is the next new thread's, with the free places in it. There are as
//! many as there were threads at one time. A child by fork has those of threads that it does not have, and does
//! without.

use std::alloc::{Layout, alloc_zeroed};
use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_char, c_void};
use std::fmt::{self, Write};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use crate::guards::Magazine;

/// Bytes of a message, with the NUL.
const MESSAGE: usize = 1024;

/// See the file's head. Not in a cache line with another's. All of it zero is one that nobody owns.
#[repr(align(128))]
pub(crate) struct Thread {
    /// The cache that a call of this thread is using; 0 if there is none. Only the owner writes; `caches.rs`.
    pub(crate) busy: AtomicU64,
    owned: AtomicBool,
    /// The owner's alone.
    magazine: UnsafeCell<Magazine>,
    message: UnsafeCell<[u8; MESSAGE]>,
    next: AtomicPtr<Thread>,
}

// SAFETY: what is in cells is only reached by the thread that has set `owned`, through `mine`, which hands over by acquire
// and release of that flag.
unsafe impl Sync for Thread {}

static RECORDS: AtomicPtr<Thread> = AtomicPtr::new(ptr::null_mut());

/// The key by which a thread that ends gives its record back, plus 1. Keys, and not Rust's destructors, because C programs
/// put guards in destructors of keys of their own, which come later; a key's value that is set then is seen to again.
static KEY: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static MINE: Cell<*const Thread> = const { Cell::new(ptr::null()) };
}

impl Thread {
    /// This thread's. `None` without memory.
    #[inline]
    pub(crate) fn mine() -> Option<&'static Self> {
        match NonNull::new(MINE.get().cast_mut()) {
            // SAFETY: records are never freed.
            Some(mine) => Some(unsafe { mine.as_ref() }),
            None => Self::adopt(),
        }
    }

    /// All of them, those of other threads as well.
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        // SAFETY: records are never freed, and fully made before they are in the list.
        let at = |record: *mut Self| unsafe { record.as_ref() };
        std::iter::successors(at(RECORDS.load(Ordering::Acquire)), move |record| {
            at(record.next.load(Ordering::Relaxed))
        })
    }

    #[cold]
    #[inline(never)]
    fn adopt() -> Option<&'static Self> {
        let free = |record: &&Self| {
            let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
            let taken = record.owned.compare_exchange(false, true, acquire, relaxed);
            taken.is_ok()
        };
        let record = Self::all().find(free).or_else(Self::push_new)?;
        MINE.set(record);
        // Without a key the record is not given back.
        if let Some(key) = key() {
            // SAFETY: the key is made, and never deleted.
            unsafe { libc::pthread_setspecific(key, ptr::from_ref(record).cast()) };
        }
        Some(record)
    }

    /// `None` without memory.
    fn push_new() -> Option<&'static Self> {
        // SAFETY: not of size 0.
        let record: *mut Self = unsafe { alloc_zeroed(Layout::new::<Self>()) }.cast();
        // SAFETY: null, or of the layout of a `Thread`, for which zeros are a value; never freed.
        let record = unsafe { record.as_ref() }?;
        record.owned.store(true, Ordering::Relaxed);
        let mut first = RECORDS.load(Ordering::Relaxed);
        loop {
            record.next.store(first, Ordering::Relaxed);
            let pushed = RECORDS.compare_exchange_weak(
                first,
                ptr::from_ref(record).cast_mut(),
                // As `busy`'s store, which follows: `caches.rs`.
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
            match pushed {
                Ok(_) => return Some(record),
                Err(now) => first = now,
            }
        }
    }

    /// The free places.
    #[inline]
    pub(crate) fn with_magazine<T>(&self, what: impl FnOnce(&mut Magazine) -> T) -> T {
        // SAFETY: this thread's, by `mine`; `what` calls nothing that could come here again.
        what(unsafe { &mut *self.magazine.get() })
    }

    /// Keeps the message until the next, as much of it as there is room for.
    pub(crate) fn set_message(&self, message: impl fmt::Display) {
        // SAFETY: as above: formatting an error calls no callback.
        let buffer = unsafe { &mut *self.message.get() };
        let mut text = Bounded { buffer, len: 0 };
        // Fails when it is full.
        let _ = write!(text, "{message}");
        let Bounded { buffer, len } = text;
        buffer[len] = 0;
    }

    /// NUL-terminated.
    pub(crate) fn message(&self) -> *const c_char {
        self.message.get().cast()
    }
}

/// The thread ends.
extern "C" fn give_back(record: *mut c_void) {
    MINE.set(ptr::null());
    // SAFETY: what `adopt` has set, which is never freed.
    if let Some(record) = unsafe { record.cast::<Thread>().as_ref() } {
        record.owned.store(false, Ordering::Release);
    }
}

/// Made when it is first needed. `None` if the process has as many as it can.
fn key() -> Option<libc::pthread_key_t> {
    let made = KEY.load(Ordering::Acquire);
    if made != 0 {
        return libc::pthread_key_t::try_from(made - 1).ok();
    }
    let mut key = 0;
    // SAFETY: writes the key; the function stays where it is: the library is never unloaded (`-z nodelete`).
    if unsafe { libc::pthread_key_create(&raw mut key, Some(give_back)) } != 0 {
        return None;
    }
    let ours = u64::from(key) + 1;
    match KEY.compare_exchange(0, ours, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(key),
        Err(theirs) => {
            // SAFETY: made above, and nobody else has it.
            unsafe { libc::pthread_key_delete(key) };
            libc::pthread_key_t::try_from(theirs - 1).ok()
        }
    }
}

/// Text in a buffer, with a byte left for the NUL.
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

    fn message_of(thread: &Thread) -> &str {
        // SAFETY: NUL-terminated, and this thread's.
        unsafe { CStr::from_ptr(thread.message()) }
            .to_str()
            .unwrap()
    }

    #[test]
    fn a_message_that_is_too_long_is_cut_between_characters() {
        let thread = Thread::mine().unwrap();
        thread.set_message("é".repeat(MESSAGE));
        assert_eq!(message_of(thread), "é".repeat((MESSAGE - 1) / 2));
        thread.set_message("short");
        assert_eq!(message_of(thread), "short");
    }

    #[test]
    fn the_record_of_a_thread_that_has_ended_is_used_again() {
        let address = || ptr::from_ref(Thread::mine().unwrap()).addr();
        let mine = address();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let theirs = std::thread::spawn(address).join().unwrap();
            assert_ne!(theirs, mine);
            seen.insert(theirs);
        }
        // Other tests' threads come and go meanwhile.
        assert!(seen.len() < 50, "{} records", seen.len());
    }
}
