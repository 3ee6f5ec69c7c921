//! The primitives that the accounting uses, or loom's versions under `--cfg loom`. `Arc` is always
//! std's, because no model takes the contents of an
//! `Arc` back.
//!
//! The locks are parking_lot's. An uncontended lock or unlock is one atomic instruction, and a
//! panic does not poison the lock.

pub(crate) use std::sync::{Arc, Weak};

#[cfg(not(loom))]
pub(crate) use parking_lot::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

/// Locks the mutex.
#[cfg(not(loom))]
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

/// Locks the mutex. No test panics while it holds a lock.
#[cfg(loom)]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Waits between two tries to get a lock. The wait grows with the number of tries.
#[cfg(not(loom))]
pub(crate) fn pause(tries: u32) {
    match tries {
        0..64 => std::hint::spin_loop(),
        64..256 => std::thread::yield_now(),
        // The owner may have a lower priority than this thread.
        _ => std::thread::sleep(std::time::Duration::from_micros(50)),
    }
}

/// Lets another thread of the model run.
#[cfg(loom)]
pub(crate) fn pause(_: u32) {
    loom::thread::yield_now();
}

/// Adds to a word whose lowest bit is a lock that this thread has. Other threads only try to set
/// that bit, and it is set, so their tries do not change the word. So no atomic instruction is
/// needed.
#[cfg(not(loom))]
#[inline]
pub(crate) fn add_to_locked(word: &AtomicU64, amount: u64) {
    let sum = word.load(Ordering::Relaxed).wrapping_add(amount);
    word.store(sum, Ordering::Release);
}

/// Does the same. loom may order a try of another thread after the store, although the try has read
/// an earlier value. C++ and Rust do not allow this.
#[cfg(loom)]
pub(crate) fn add_to_locked(word: &AtomicU64, amount: u64) {
    word.fetch_add(amount, Ordering::Release);
}
