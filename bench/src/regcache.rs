//! [`Regcache`]: this repository's cache as a [`Subject`].

use std::hint::black_box;
use std::io;
use std::ptr;
use std::sync::Arc;

use regcache::Cache;

use crate::{Addresses, DummyRegistrar, FakeMonitor, Subject};

/// A cache on [`DummyRegistrar`] and [`FakeMonitor`].
#[derive(Debug)]
pub struct Regcache {
    cache: Cache<DummyRegistrar, FakeMonitor>,
    monitor: FakeMonitor,
    addresses: Arc<Addresses>,
}

impl Regcache {
    /// An empty cache of at most so many entries.
    ///
    /// # Errors
    ///
    /// As for [`Builder::build`](regcache::Builder::build).
    pub fn new(addresses: &Arc<Addresses>, max_entries: usize) -> io::Result<Self> {
        let monitor = FakeMonitor::new(addresses)?;
        let cache = Cache::builder(DummyRegistrar::default())
            .monitor(monitor.clone())
            .max_entries(u32::try_from(max_entries).unwrap_or(u32::MAX))
            .max_bytes(usize::MAX)
            .build()?;
        Ok(Self {
            cache,
            monitor,
            addresses: Arc::clone(addresses),
        })
    }

    /// The memory of the range changes. The next lookup will notice.
    #[inline]
    pub fn mark(&self, start: usize) {
        self.monitor.invalidate(start);
    }
}

impl Subject for Regcache {
    const NAME: &'static str = "regcache";

    #[inline(always)]
    fn get_put(&self, start: usize, len: usize) {
        let guard = self
            .cache
            .get(ptr::without_provenance(start), len, ())
            .expect("nothing here refuses");
        black_box(*guard.registration());
    }

    /// The lookup that notices is one of the first range, which stays.
    #[inline(always)]
    fn invalidate(&self, start: usize, _: usize) {
        self.mark(start);
        self.get_put(self.addresses.entry(0), self.addresses.len());
    }

    fn counts(&self) -> (u64, u64) {
        self.cache.registrar().counts()
    }
}
