//! Writes messages for the user, and has small helpers that every module needs.
//!
//! Messages go to the stderr that the process had when the shim was loaded. A daemon closes its
//! standard descriptors, and a file of its own may then get the number 2. So the number must still
//! name the same file; otherwise messages are lost.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use regcache::Uncancelled;
use regcache::internal::FileId;

/// The file that stderr was at the start; `None` if it was closed.
static STDERR: OnceLock<Option<FileId>> = OnceLock::new();

/// Remembers stderr. The loader calls this function before the program starts.
extern "C" fn at_load() {
    // The loader calls this function once.
    let _ = STDERR.set(FileId::of(libc::STDERR_FILENO).ok());
}

#[used]
// SAFETY: the section holds addresses of functions without parameters, and the loader calls each
// once.
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

/// Writes one line with one call of `write` to the stderr of the start. If the program has closed
/// that, the line is lost.
pub(crate) fn notice(text: fmt::Arguments<'_>) {
    let _uncancelled = Uncancelled::begin();
    let Some(Some(known)) = STDERR.get() else {
        return;
    };
    if !FileId::of(libc::STDERR_FILENO).is_ok_and(|now| now == *known) {
        return;
    }
    let line = format!("regcache: {text}\n");
    // SAFETY: the bytes may be read.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}

/// Locks a mutex, even if a thread panicked while it held the lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds one to a counter.
pub(crate) fn add_one(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}
