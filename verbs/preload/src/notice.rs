//! Writes messages for the user, and has small helpers that every module needs.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use regcache::internal::Notices;

/// The stderr that the process had when the shim was loaded.
static STDERR: Notices = Notices::to(libc::STDERR_FILENO);

extern "C" fn at_load() {
    STDERR.begin();
}

#[used]
// SAFETY: the section holds addresses of functions without parameters, and the loader calls each
// once.
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

/// Writes one line.
pub(crate) fn notice(text: fmt::Arguments<'_>) {
    STDERR.write(&format!("regcache: {text}"));
}

/// Locks a mutex, even if a thread panicked while it held the lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds one to a counter.
pub(crate) fn add_one(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}
