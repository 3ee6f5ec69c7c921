//! Defines [`Rxe`], an RDMA device for the conformance suite.

use std::sync::Mutex;
use std::sync::PoisonError;

use memmap2::MmapMut;
use regcache::Cache;
use regcache::monitor::{Monitor, Ummunotify};
use regcache_conformance::{Column, Verdict};
use regcache_repro::{Device, NeverReports, Result};
use regcache_verbs::{Access, Context, Loopback, MrRegistrar, Pd};

/// The largest number of bytes that the device can read in one transfer.
const CAPACITY: usize = 1 << 20;

/// The first RDMA device in a connection with itself, and a cache of its registrations.
#[derive(Debug)]
pub struct Rxe<M: Monitor> {
    /// The connection, and the buffer in which the sends of the connection arrive.
    link: Mutex<(Loopback, MmapMut)>,
    cache: Cache<MrRegistrar, M>,
}

impl<M: Monitor> Rxe<M> {
    /// Opens the device, and makes a cache on `monitor`.
    ///
    /// # Errors
    ///
    /// The errors of the device.
    pub fn new(monitor: M) -> Result<Self> {
        let pd = Pd::alloc(&Context::open_first()?)?;
        Ok(Self {
            link: Mutex::new((Loopback::connect(&pd)?, MmapMut::map_anon(CAPACITY)?)),
            cache: Cache::builder(MrRegistrar::new(&pd))
                .monitor(monitor)
                // The kernel could map the reaper's stack at addresses that a scenario has
                // unmapped. So the cache has no reaper.
                .background_reaper(false)
                .build()?,
        })
    }
}

impl<M: Monitor> Device for Rxe<M> {
    fn name(&self) -> &'static str {
        "rxe"
    }

    fn monitor_name(&self) -> &'static str {
        self.cache.monitor_name()
    }

    fn read_out(&self, bytes: &[u8]) -> Result<(Vec<u8>, bool)> {
        let (link, sink) = &mut *self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let sink = &mut sink[..bytes.len()];
        let access = Access::LOCAL_WRITE;
        let from = self.cache.get(bytes.as_ptr(), bytes.len(), access)?;
        let to = self.cache.get(sink.as_ptr(), sink.len(), access)?;
        // SAFETY: the registration of `bytes` may be stale, because the suite tests for stale
        // registrations. A stale registration does no harm here, because the device only reads from
        // the pinned pages. The sink stays mapped, so the registration of the sink is never stale.
        unsafe { link.send_registered(bytes, from.registration(), sink, to.registration()) }?;
        Ok((sink.to_vec(), from.is_cached()))
    }

    fn flush(&self) -> Result<()> {
        self.cache.flush()?;
        Ok(())
    }
}

/// Returns the columns of this device in the matrix.
#[must_use]
pub fn rxe_columns() -> Vec<Column> {
    let naive = Verdict::StaleWhere(|scenario| scenario.replaces);
    vec![
        Column::new("rxe, naive", naive, || Rxe::new(NeverReports)),
        Column::new("rxe, ummunotify", Verdict::Sound, || {
            Rxe::new(Ummunotify::open()?)
        }),
    ]
}
