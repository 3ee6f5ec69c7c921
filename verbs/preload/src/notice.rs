//! Writes messages for the user, and has small helpers that every module needs.
//!
//! Messages go to the stderr that the process had when the shim was loaded. A daemon closes its
//! standard descriptors, and a file of its own may then get the number 2. So the number must still
//! name the same file; otherwise messages are lost.

use std::ffi::c_int;
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use regcache::Uncancelled;

/// The device and the inode of stderr at the start; zeros if it was closed.
static STDERR: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Returns the device and the inode of the descriptor's file; zeros if it is closed.
pub(crate) fn file_of(descriptor: c_int) -> [u64; 2] {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `fstat` writes `stat`, unless it fails.
    if unsafe { libc::fstat(descriptor, stat.as_mut_ptr()) } != 0 {
        return [0; 2];
    }
    // SAFETY: `fstat` succeeded, so it has written `stat`.
    let stat = unsafe { stat.assume_init() };
    [stat.st_dev, stat.st_ino]
}

/// Remembers stderr. The loader calls this function before the program starts.
extern "C" fn at_load() {
    for (known, now) in STDERR.iter().zip(file_of(libc::STDERR_FILENO)) {
        known.store(now, Ordering::Relaxed);
    }
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
    let known = STDERR.each_ref().map(|it| it.load(Ordering::Relaxed));
    if known == [0; 2] || known != file_of(libc::STDERR_FILENO) {
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
