//! [`Lock`]: the cache's lock, which protects the table.
//!
//! std's mutex lets the thread that has just unlocked it lock it again at once, although others
//! wait. So a thread that has much to do under the lock does it in pieces, and calls
//! [`Lock::yield_to_waiters`] between two pieces. A waiting thread then waits for one piece at
//! most.
//!
//! The cache calls the allocator under the lock, because its tables grow there. So an allocator's
//! hook that looks up memory would wait for a lock that its own thread holds. The documentation of
//! [`Cache`](crate::Cache) forbids such hooks. In a build with debug assertions, the lock panics if
//! the calling thread already holds the lock of a cache. So the test of such a hook fails instead
//! of hanging.

use std::ops::{Deref, DerefMut};
use std::sync::TryLockError;
use std::time::Duration;

use crate::sys::sync::{
    AtomicU32, Condvar, Mutex, MutexGuard, Ordering, lock, wait_for, yield_now,
};

/// The maximum number of times that a thread offers the lock to one waiting thread. A thread that
/// was woken needs some tens of microseconds until it runs, and an offer takes less than one.
const OFFERS: usize = if cfg!(loom) { 1 } else { 200 };

/// The lock; see the head of this file.
#[derive(Debug)]
pub(crate) struct Lock<T> {
    mutex: Mutex<T>,
    /// The number of threads that wait for the lock.
    waiting: AtomicU32,
}

/// The value that the lock protects, while this thread holds the lock.
#[derive(Debug)]
pub(crate) struct Locked<'l, T> {
    guard: MutexGuard<'l, T>,
    _held: Held,
}

impl<T> Lock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            mutex: Mutex::new(value),
            waiting: AtomicU32::new(0),
        }
    }

    /// Takes the lock, even if another thread panicked while it held the lock.
    #[inline]
    pub(crate) fn lock(&self) -> Locked<'_, T> {
        let held = Held::new();
        let guard = match self.mutex.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => self.wait(),
        };
        Locked { guard, _held: held }
    }

    #[cold]
    fn wait(&self) -> MutexGuard<'_, T> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let guard = lock(&self.mutex);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    /// Gives the threads that wait for the lock time to take it. The caller does not hold the lock.
    pub(crate) fn yield_to_waiters(&self) {
        for _ in 0..OFFERS {
            if self.waiting.load(Ordering::Relaxed) == 0 {
                return;
            }
            yield_now();
        }
    }
}

impl<T> Locked<'_, T> {
    /// Releases the lock, waits until the condition is signalled, for `timeout` at most, and takes
    /// the lock again.
    pub(crate) fn wait_for(self, condition: &Condvar, timeout: Duration) -> Self {
        Self {
            guard: wait_for(condition, self.guard, timeout),
            _held: self._held,
        }
    }
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Locked<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// The record that this thread holds the lock of a cache.
#[cfg(any(not(debug_assertions), loom))]
#[derive(Debug)]
struct Held;

#[cfg(any(not(debug_assertions), loom))]
impl Held {
    #[inline]
    fn new() -> Self {
        Self
    }
}

#[cfg(all(debug_assertions, not(loom)))]
use checked::Held;

#[cfg(all(debug_assertions, not(loom)))]
mod checked {
    use std::cell::Cell;

    thread_local! {
        static HOLDS: Cell<bool> = const { Cell::new(false) };
    }

    #[derive(Debug)]
    pub(super) struct Held(());

    impl Held {
        pub(super) fn new() -> Self {
            // A thread that is ending may have no thread-locals left, and is not checked.
            let held = HOLDS.try_with(|holds| holds.replace(true));
            if held == Ok(true) {
                panic!(
                    "a cache was called by a thread that is inside a cache: neither an allocator's \
                     hook nor `Access::serves` nor a monitor's `drain` may call a cache"
                );
            }
            Self(())
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            let _ = HOLDS.try_with(|holds| holds.set(false));
        }
    }
}
