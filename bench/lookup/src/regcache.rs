//! [`Regcache`] and [`Unwatched`]: regcache as a [`Subject`].

use std::hint::black_box;
use std::io;
use std::ptr;
use std::sync::Arc;

use regcache::Cache;
use regcache::monitor::Monitor;

use crate::{Addresses, DummyMonitor, DummyRegistrar, FakeMonitor, Subject};

/// A regcache cache that uses [`DummyRegistrar`] and [`FakeMonitor`].
#[derive(Debug)]
pub struct Regcache {
    cache: Cache<DummyRegistrar, FakeMonitor>,
    monitor: FakeMonitor,
    addresses: Arc<Addresses>,
}

impl Regcache {
    /// Makes an empty cache of at most `max_entries` entries.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Builder::build`](regcache::Builder::build).
    pub fn new(addresses: &Arc<Addresses>, max_entries: usize) -> io::Result<Self> {
        Self::with_registrar(DummyRegistrar::default(), addresses, max_entries)
    }

    /// Makes an empty cache of at most `max_entries` entries, over `registrar`.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Builder::build`](regcache::Builder::build).
    pub fn with_registrar(
        registrar: DummyRegistrar,
        addresses: &Arc<Addresses>,
        max_entries: usize,
    ) -> io::Result<Self> {
        let monitor = FakeMonitor::new(addresses)?;
        Ok(Self {
            cache: of(registrar, monitor.clone(), max_entries)?,
            monitor,
            addresses: Arc::clone(addresses),
        })
    }

    /// Reports a change of the range that starts at `start`. The next lookup drains this report.
    #[inline]
    pub fn mark(&self, start: usize) {
        self.monitor.invalidate(start);
    }

    /// Reports one change of the ranges with these starts.
    pub fn mark_all(&self, starts: impl Iterator<Item = usize>) {
        self.monitor.invalidate_all(starts);
    }

    /// Deregisters the ranges that were reported, as the reaper does.
    pub fn reap(&self) {
        self.cache.reap().expect("no call of the dummies fails");
    }
}

/// Makes an empty cache of at most `max_entries` entries.
fn of<M: Monitor>(
    registrar: DummyRegistrar,
    monitor: M,
    max_entries: usize,
) -> io::Result<Cache<DummyRegistrar, M>> {
    Cache::builder(registrar)
        .monitor(monitor)
        .max_entries(u32::try_from(max_entries).unwrap_or(u32::MAX))
        .max_bytes(usize::MAX)
        .build()
}

#[inline(always)]
fn get_put<M: Monitor>(cache: &Cache<DummyRegistrar, M>, start: usize, len: usize) {
    let guard = cache
        .get(ptr::without_provenance(start), len, ())
        .expect("no call of the dummies fails");
    black_box(*guard.registration());
}

impl Subject for Regcache {
    const NAME: &'static str = "regcache";

    #[inline(always)]
    fn get_put(&self, start: usize, len: usize) {
        get_put(&self.cache, start, len);
    }

    /// Reports the change, and makes the cache drain the report and deregister the range, as the
    /// reaper does. Then looks up the first range, which stays registered.
    #[inline(always)]
    fn invalidate(&self, start: usize, _: usize) {
        self.mark(start);
        self.reap();
        self.get_put(self.addresses.entry(0), self.addresses.len());
    }

    fn counts(&self) -> (u64, u64) {
        self.cache.registrar().counts()
    }
}

/// A regcache cache that uses [`DummyRegistrar`] and [`DummyMonitor`].
///
/// [`DummyMonitor`] records no watches. So the figures of this cache exclude the cost of a watch.
#[derive(Debug)]
pub struct Unwatched(Cache<DummyRegistrar, DummyMonitor>);

impl Unwatched {
    /// Makes an empty cache of at most `max_entries` entries.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Builder::build`](regcache::Builder::build).
    pub fn new(max_entries: usize) -> io::Result<Self> {
        let registrar = DummyRegistrar::default();
        Ok(Self(of(registrar, DummyMonitor::new()?, max_entries)?))
    }
}

impl Subject for Unwatched {
    const NAME: &'static str = "regcache, unwatched";

    #[inline(always)]
    fn get_put(&self, start: usize, len: usize) {
        get_put(&self.0, start, len);
    }

    /// Invalidates the range as an application does, with [`Cache::invalidate`].
    fn invalidate(&self, start: usize, len: usize) {
        self.0
            .invalidate(ptr::without_provenance(start), len)
            .expect("no call of the dummies fails");
    }

    fn counts(&self) -> (u64, u64) {
        self.0.registrar().counts()
    }
}
