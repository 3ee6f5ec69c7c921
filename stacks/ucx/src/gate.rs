//! [`Gate`]: decides whether lookups may use one cache of UCX.
//!
//! # How UCX's cache works
//!
//! A cache has a table of regions, a lock for the table, and a queue of unmapped ranges.
//!
//! - Its callback gets the ranges of unmapped memory. It removes the regions of the range from the
//!   table, or appends the range to the queue if it does not get the lock.
//! - A *quick* lookup is used if the queue is empty. It finds a region in the table.
//! - A *slow* lookup has the lock. It first empties the queue and removes the regions of each
//!   range. Then it finds a region, or it inserts one into the table and calls `mem_reg`.
//! - `ucs_rcache_get` tries a quick lookup, then a slow one. Since UCX 1.14, libucp has quick
//!   lookups of its own. All lookups of such a cache are made under one lock of libucp, or by one
//!   thread.
//!
//! # The protocol
//!
//! The gate is *open* if `settled` equals the generation of the monitor.
//!
//! - `ucs_rcache_get`: if the gate is closed, the thread calls [`get`](Gate::get). This drains the
//!   monitor, and passes the range of each report to UCX's callback. Then it calls UCX's own
//!   `ucs_rcache_get`. Only after that, it stores the generation that the drain returned.
//! - libucp's quick lookup: if the gate is closed, the lookup finds nothing. libucp then calls
//!   `ucs_rcache_get`.
//! - `mem_reg`: the region is watched before it is registered, and `mem_dereg` deregisters it before
//!   the watch ends.
//!
//! # Why no lookup returns a stale registration
//!
//! Let U be a change of a region's memory that was over before a lookup began.
//!
//! - U began before the region was watched. Then U was over before the region was registered, or
//!   rule M2 of [`Monitor`] makes the monitor report U after it ended. In the first case the
//!   registration has the new pages. The second case is the next one.
//! - U was reported after the region was watched. Then U raised the generation before the lookup
//!   began (rule M3). UCX inserts a region into the table before it calls `mem_reg`, so each
//!   callback for the region's range finds the region.
//!   - The lookup finds the gate closed. If it is libucp's lookup, it returns nothing. If it is
//!     `ucs_rcache_get`, its thread drains the monitor, or waits for another thread that drains.
//!     In both cases the callback was called for U before UCX's function runs. So that function
//!     finds the region removed, or the queue not empty. In the second case it makes a slow
//!     lookup, which removes the region first.
//!   - The lookup finds the gate open. Then some thread stored in `settled` a generation that
//!     includes U. That thread had drained the monitor, or waited for the thread that did. So the
//!     callback had been called for U. Then the thread ran `ucs_rcache_get` to its end. That
//!     function found the queue empty, or it emptied the queue under the lock. So the region was
//!     removed from the table before the store, and the lookup began to read the table after the
//!     store. This is why the store comes *after* UCX's function: a quick lookup of libucp tests
//!     the queue before it calls the function that this library interposes. If the store came
//!     earlier, a range could enter the queue between the two steps, and the lookup would return
//!     the region.
//!
//! Several threads may catch up at the same time. `draining` makes each of them wait until the
//! reports that another thread has read were passed to the callback. A thread may store an older
//! generation after another thread has stored a newer one. The gate is then closed, and one more
//! lookup catches up.
//!
//! # Memory that cannot be watched
//!
//! The monitor may refuse a range. Then the registration must serve only the lookup that made it.
//! So the range is recorded as if it had been reported, and the gate is closed. A thread that had
//! caught up before must not open the gate. So the thread that stores the generation compares the
//! number of refusals, under the lock of the table, with the number before its drain.
//!
//! # fork
//!
//! A forked child has a copy of the gate, but the monitor watches the parent's memory. `settled` is
//! 0 in a child, so the gate is closed there. In a child the gate neither takes a lock nor calls
//! the monitor: a thread of the parent may have held the lock during the fork.

use std::collections::HashMap;
use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use regcache::internal::ForkMark;
use regcache::{Cookie, Monitor, VaRange};

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

/// The value of `settled` that closes the gate at every generation. It is not 0, which means a
/// child.
const CLOSED: u64 = 1;

pub(crate) struct Gate<M> {
    monitor: M,
    /// The inverse of the generation up to which UCX has removed all reported regions from its
    /// table. The inverse is never 0, because no generation is `u64::MAX`.
    settled: ForkMark,
    draining: Mutex<()>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// The watched ranges, by cookie.
    watched: HashMap<u64, VaRange>,
    /// The ranges that the monitor has refused, and that were not passed to UCX yet.
    refused: Vec<VaRange>,
    refusals: u64,
}

/// The result of [`Gate::catch_up`].
struct CaughtUp {
    generation: u64,
    refusals: u64,
}

/// The whole address space.
fn everything() -> Option<VaRange> {
    VaRange::new(std::ptr::null(), usize::MAX).ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Monitor> Gate<M> {
    /// Returns an open gate for a cache that has no regions yet.
    pub(crate) fn new(monitor: M) -> io::Result<Self> {
        let settled = ForkMark::new(!monitor.generation())?;
        Ok(Self {
            monitor,
            settled,
            draining: Mutex::new(()),
            table: Mutex::new(Table::default()),
        })
    }

    /// Returns true if no region of the cache has changed since UCX removed the changed ones.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.settled.load(Ordering::Acquire) == !self.monitor.generation()
    }

    /// Returns true in a forked child of the process that made the gate.
    pub(crate) fn in_child(&self) -> bool {
        self.settled.in_child()
    }

    /// Makes a lookup that found the gate closed. `real` is UCX's own `ucs_rcache_get`, and
    /// `callback` UCX's callback. `failed` gets the error of the monitor. After an error the gate
    /// stays closed, so each lookup drops all regions.
    pub(crate) fn get<R>(
        &self,
        callback: impl FnMut(VaRange),
        failed: impl FnOnce(&io::Error),
        real: impl FnOnce() -> R,
    ) -> R {
        let caught_up = self.catch_up(callback);
        let result = real();
        // UCX has emptied its queue even if it returned an error.
        match caught_up {
            Ok(caught_up) => self.settle(caught_up),
            Err(error) => failed(&error),
        }
        result
    }

    /// Drains the monitor, and passes each range that may have changed to `callback`. Nothing is
    /// allocated meanwhile.
    ///
    /// # Errors
    ///
    /// Returns an error if reports may have been lost. Then `callback` gets the whole address space.
    fn catch_up(&self, mut callback: impl FnMut(VaRange)) -> io::Result<CaughtUp> {
        let _draining = lock(&self.draining);
        let refusals = {
            let mut table = lock(&self.table);
            let refused = std::mem::take(&mut table.refused);
            let refusals = table.refusals;
            drop(table);
            refused.into_iter().for_each(&mut callback);
            refusals
        };
        let drained = self.monitor.drain(&mut |cookie| {
            let range = lock(&self.table).watched.get(&cookie.0).copied();
            if let Some(range) = range {
                callback(range);
            }
        });
        match drained {
            Ok(generation) => Ok(CaughtUp {
                generation,
                refusals,
            }),
            Err(error) => {
                everything().into_iter().for_each(callback);
                Err(error)
            }
        }
    }

    /// Opens the gate, unless memory has changed since the call of [`catch_up`](Self::catch_up).
    /// The caller has run UCX's `ucs_rcache_get` since that call.
    fn settle(&self, caught_up: CaughtUp) {
        let table = lock(&self.table);
        if table.refusals == caught_up.refusals {
            self.settled.store(!caught_up.generation, Ordering::Release);
        }
    }

    /// Registers a region with `register`. Returns also whether the range is watched. If it is not,
    /// the region serves only the current lookup.
    pub(crate) fn register<R>(
        &self,
        range: VaRange,
        cookie: u64,
        register: impl FnOnce() -> R,
    ) -> (bool, R) {
        let is_watched = self.watch(range, cookie);
        (is_watched, register())
    }

    fn watch(&self, range: VaRange, cookie: u64) -> bool {
        // UCX may have freed an earlier region at this address without `mem_dereg`.
        self.unwatch(cookie);
        lock(&self.table).watched.insert(cookie, range);
        // No lock is held here, because the call may wait for an invalidation.
        if self.monitor.watch(range, Cookie(cookie)).is_ok() {
            return true;
        }
        let mut table = lock(&self.table);
        table.watched.remove(&cookie);
        table.refused.push(range);
        table.refusals += 1;
        self.settled.store(CLOSED, Ordering::Release);
        false
    }

    /// Ends the watch of a region, if there is one.
    pub(crate) fn unwatch(&self, cookie: u64) {
        let was_watched = lock(&self.table).watched.remove(&cookie).is_some();
        if was_watched {
            // An error only means that the driver no longer has the watch.
            let _ = self.monitor.unwatch(Cookie(cookie));
        }
    }
}
