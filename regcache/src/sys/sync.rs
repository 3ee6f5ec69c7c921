//! The primitives that the protocol is built on: std's, or loom's under `--cfg loom`.
//!
//! loom sees every atomic, lock and [`UnsafeCell`] of this module. loom does not see
//!
//! - the content of an entry, once [`UnsafeCell::with`] has returned a reference to it;
//! - the counter page and the fork mark, which are memory that the kernel writes;
//! - executions in which a thread's steps take effect in another order than the program's. loom
//!   lets a load return an older value, but a compare-and-exchange always finds the newest. Suppose
//!   that the ordering of `drained` (`design.rs`, step 3) were too weak. A lookup could then load
//!   the new value of `drained` and yet acquire an entry that was killed before. Only an execution
//!   of this kind shows the error, so no loom test covers this ordering.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
};

#[cfg(loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
};

/// Orders a sequentially consistent store before the sequentially consistent loads that follow it.
/// The orderings of the two do so already. But loom weakens them to release and acquire, and
/// supports only fences that are sequentially consistent.
#[inline]
pub(crate) fn after_store() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
}

/// std's `UnsafeCell` with the interface of loom's.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    #[inline]
    pub(crate) fn with<U>(&self, f: impl FnOnce(*const T) -> U) -> U {
        f(self.0.get())
    }

    #[inline]
    pub(crate) fn with_mut<U>(&self, f: impl FnOnce(*mut T) -> U) -> U {
        f(self.0.get())
    }
}

#[cfg(not(loom))]
pub(crate) use std::thread::yield_now;

#[cfg(loom)]
pub(crate) use loom::thread::yield_now;

/// Takes the lock, even if another thread panicked while it held the lock. This is sound because
/// the data under each lock is consistent at every statement that can panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Waits until the condition is signalled, for `timeout` at most. Releases the lock during the
/// wait, and takes the lock again before it returns.
pub(crate) fn wait_for<'l, T>(
    condition: &Condvar,
    locked: MutexGuard<'l, T>,
    timeout: std::time::Duration,
) -> MutexGuard<'l, T> {
    let waited = condition.wait_timeout(locked, timeout);
    waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
}
