//! [`Counted`]: a wrapper that counts the calls to a registrar or to a monitor. The counts show the
//! number of system calls of a strategy.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use regcache::monitor::{Cookie, Monitor};
use regcache::{Registrar, VaRange};
use regcache_test_support::PAGE;

/// Counters of calls and of pinned bytes.
#[derive(Debug, Default)]
pub struct Counts {
    registrations: AtomicU64,
    deregistrations: AtomicU64,
    monitor_calls: AtomicU64,
    pinned: AtomicU64,
    most_pinned: AtomicU64,
}

/// The values of [`Counts`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The number of registrations that were made.
    pub registrations: u64,
    /// The number of registrations that were destroyed.
    pub deregistrations: u64,
    /// The number of calls of `watch`, `unwatch` and `drain`. If the monitor needs a check at each
    /// lookup, these checks count too.
    pub monitor_calls: u64,
    /// The number of bytes that are pinned now. Each registration counts all pages that its range
    /// touches.
    pub pinned: u64,
    /// The largest value of `pinned`.
    pub most_pinned: u64,
}

impl Counts {
    /// Returns the present values.
    #[must_use]
    pub fn read(&self) -> Reading {
        let value = |of: &AtomicU64| of.load(Ordering::Relaxed);
        Reading {
            registrations: value(&self.registrations),
            deregistrations: value(&self.deregistrations),
            monitor_calls: value(&self.monitor_calls),
            pinned: value(&self.pinned),
            most_pinned: value(&self.most_pinned),
        }
    }

    /// Counts a registration of `range`.
    pub(crate) fn registered(&self, range: VaRange) {
        self.registrations.fetch_add(1, Ordering::Relaxed);
        let pages = pages(range);
        let pinned = self.pinned.fetch_add(pages, Ordering::Relaxed) + pages;
        self.most_pinned.fetch_max(pinned, Ordering::Relaxed);
    }

    /// Counts the deregistration of `range`.
    pub(crate) fn deregistered(&self, range: VaRange) {
        self.deregistrations.fetch_add(1, Ordering::Relaxed);
        self.pinned.fetch_sub(pages(range), Ordering::Relaxed);
    }

    fn asked(&self) {
        self.monitor_calls.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns the number of bytes in all pages that `range` touches.
fn pages(range: VaRange) -> u64 {
    (range.end().next_multiple_of(PAGE) - range.start() / PAGE * PAGE) as u64
}

/// A wrapper that counts the calls to a registrar or to a monitor.
#[derive(Debug, Clone)]
pub struct Counted<T> {
    inner: T,
    counts: Arc<Counts>,
}

impl<T> Counted<T> {
    /// Wraps `inner`, and counts the calls to `inner` in `counts`.
    pub fn new(inner: T, counts: &Arc<Counts>) -> Self {
        Self {
            inner,
            counts: Arc::clone(counts),
        }
    }
}

/// A registration, and the range that was registered.
#[derive(Debug)]
pub struct CountedRegistration<T> {
    inner: T,
    range: VaRange,
}

impl<T> CountedRegistration<T> {
    /// Returns the device's registration.
    pub fn get(&self) -> &T {
        &self.inner
    }
}

// SAFETY: all calls go to the wrapped registrar, which fulfils the contract of the trait.
unsafe impl<R: Registrar> Registrar for Counted<R> {
    type Access = R::Access;
    type Registration = CountedRegistration<R::Registration>;

    fn register(&self, range: VaRange, access: R::Access) -> io::Result<Self::Registration> {
        let inner = self.inner.register(range, access)?;
        self.counts.registered(range);
        Ok(CountedRegistration { inner, range })
    }

    fn prepare(&self, range: VaRange) -> bool {
        self.inner.prepare(range)
    }

    fn finish(&self, range: VaRange) {
        self.inner.finish(range);
    }

    fn deregister(&self, registration: Self::Registration) -> io::Result<()> {
        self.counts.deregistered(registration.range);
        self.inner.deregister(registration.inner)
    }
}

// SAFETY: all calls go to the wrapped monitor, which fulfils the contract of the trait.
unsafe impl<M: Monitor> Monitor for Counted<M> {
    const CHECKED: bool = M::CHECKED;

    #[inline]
    fn generation(&self) -> u64 {
        self.inner.generation()
    }

    #[inline]
    fn is_intact(&self, range: VaRange) -> bool {
        self.counts.asked();
        self.inner.is_intact(range)
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        self.counts.asked();
        self.inner.watch(range, cookie)
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        self.counts.asked();
        self.inner.unwatch(cookie)
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        self.counts.asked();
        self.inner.drain(invalidated)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.descriptor()
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_whole() {
        let range = |start: usize, len| VaRange::new(std::ptr::without_provenance(start), len);
        assert_eq!(pages(range(PAGE, 1).unwrap()), 4096);
        assert_eq!(pages(range(2 * PAGE - 1, 2).unwrap()), 8192);
        assert_eq!(pages(range(PAGE, PAGE).unwrap()), 4096);
    }
}
