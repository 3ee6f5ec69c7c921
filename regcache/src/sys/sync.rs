//! The primitives that the protocol is built on: std's, or loom's under `--cfg loom`.
//!
//! loom sees every atomic, lock and [`UnsafeCell`] that comes from here. It does not see the
//! contents of an entry after [`UnsafeCell::with`] has returned a reference to them, nor the
//! counter page and the fork mark, which are memory that the kernel writes. And it runs threads in
//! turn: that `drained` is stored with release and loaded with acquire ordering (`cache.rs`, step 3)
//! makes a difference only where two processors see two stores in different orders, which no test
//! here can show.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

#[cfg(loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// std's cell behind loom's interface.
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

/// Locks, also after another thread panicked: what the lock guards is consistent between any two
/// statements that can panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Waits for the condition to be signalled, for `timeout` at most, with the lock given up meanwhile.
pub(crate) fn wait_for<'l, T>(
    condition: &Condvar,
    locked: MutexGuard<'l, T>,
    timeout: std::time::Duration,
) -> MutexGuard<'l, T> {
    let waited = condition.wait_timeout(locked, timeout);
    waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
}
