//! [`Builder`]: the options of a cache, and their defaults.

use std::io;
use std::sync::OnceLock;

use crossbeam_utils::CachePadded;

use crate::cache::Cache;
use crate::core::budget::Budget;
use crate::core::fresh::Fresh;
use crate::core::hints::Hints;
use crate::core::lock::Lock;
use crate::core::pool::Pool;
use crate::core::reaper::Reaper;
use crate::core::slab::{SPARE, Slab};
use crate::core::slot::Slot;
use crate::core::table::Table;
use crate::core::widen::Widening;
use crate::core::{Core, Counter};
use crate::limits;
use crate::monitor::{Auto, Monitor, auto};
use crate::registrar::Registrar;
use crate::sys::fork::ForkMark;
use crate::sys::memory;
use crate::sys::sync::{Arc, Condvar};

const DEFAULT_MAX_ENTRIES: u32 = 65_536;

/// The maximum of [`Builder::max_entries`]: 16 776 960.
const MAX_ENTRIES: u32 = (1 << Slot::BITS) - SPARE;

/// Builds a [`Cache`]; see [`Cache::builder`].
///
/// ```
/// # use std::io;
/// # use regcache::{Cache, Registrar, VaRange};
/// # struct Device;
/// # // SAFETY: there is no device that reaches memory.
/// # unsafe impl Registrar for Device {
/// #     type Access = ();
/// #     type Registration = VaRange;
/// #     fn register(&self, range: VaRange, (): ()) -> io::Result<VaRange> { Ok(range) }
/// #     fn deregister(&self, _: VaRange) -> io::Result<()> { Ok(()) }
/// # }
/// let cache = Cache::builder(Device)
///     .max_entries(1024)
///     .max_bytes(1 << 30)
///     .granularity(1 << 16)
///     .build()?;
/// # Ok::<_, io::Error>(())
/// ```
#[derive(Debug)]
pub struct Builder<R, M> {
    registrar: R,
    monitor: M,
    options: Options,
}

#[derive(Debug)]
struct Options {
    max_entries: u32,
    max_bytes: Option<usize>,
    widening: Widening,
    revoke_remote_keys: bool,
    background_reaper: bool,
    pool: Option<Pool>,
}

/// A placeholder for the monitor that [`auto`] chooses in [`Builder::build`].
#[derive(Debug)]
pub struct DefaultMonitor(());

impl<R: Registrar> Cache<R> {
    /// Starts building a cache over `registrar`.
    ///
    /// By default the cache
    ///
    /// - uses the best sound monitor of this machine ([`auto`]);
    /// - holds up to 65 536 registrations;
    /// - pins as much memory as `RLIMIT_MEMLOCK` allows, but at most half of the machine's memory
    ///   and half of the memory that the cgroups of the process allow (`memory.max`);
    /// - runs a thread that deregisters freed memory within milliseconds.
    pub fn builder(registrar: R) -> Builder<R, DefaultMonitor> {
        Builder {
            registrar,
            monitor: DefaultMonitor(()),
            options: Options {
                max_entries: DEFAULT_MAX_ENTRIES,
                max_bytes: None,
                widening: Widening::default(),
                revoke_remote_keys: false,
                background_reaper: true,
                pool: None,
            },
        }
    }
}

impl<R: Registrar> Builder<R, DefaultMonitor> {
    /// Sets the monitor of the cache. The cache becomes the only reader of the monitor's reports.
    ///
    /// Several caches can share one monitor through [`Shared`](crate::monitor::Shared).
    pub fn monitor<M: Monitor>(self, monitor: M) -> Builder<R, M> {
        Builder {
            registrar: self.registrar,
            monitor,
            options: self.options,
        }
    }

    /// Builds the cache, with the monitor that [`auto`] chooses.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`build`](Builder::build) with an explicit monitor.
    pub fn build(self) -> io::Result<Cache<R, Auto>> {
        self.monitor(auto()).build()
    }
}

impl<R, M> Builder<R, M> {
    /// Limits the number of registrations that the cache holds. A limit above 16 776 960 is lowered
    /// to 16 776 960. If the limit is 0, nothing is cached.
    ///
    /// Room for a registration is made after the device has made it. So a lookup that fails evicts
    /// nothing. Registrations that are being made come on top of this limit and of
    /// [`max_bytes`](Self::max_bytes).
    #[must_use]
    pub fn max_entries(mut self, entries: u32) -> Self {
        self.options.max_entries = entries.min(MAX_ENTRIES);
        self
    }

    /// Limits the bytes that cached registrations pin, counted in whole pages. The registration of
    /// a range larger than the limit is not cached, and its bytes are not counted.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.options.max_bytes = Some(bytes);
        self
    }

    /// Makes the cache a member of a pool, whose limit holds for the bytes of all its caches
    /// together. By default the cache belongs to no pool.
    #[must_use]
    pub fn pool(mut self, pool: &Pool) -> Self {
        self.options.pool = Some(pool.clone());
        self
    }

    /// Registers whole aligned blocks of `bytes` bytes. The size must be a power of two. A range is
    /// widened to the blocks that contain it, so that lookups of other parts of these blocks are
    /// hits. If the blocks cannot be registered, only the range itself is registered.
    ///
    /// By default, ranges with local access are widened to whole pages, and ranges with remote
    /// access are not widened. With 1, no range is widened.
    ///
    /// A widened registration never becomes stale, because all of its memory is watched. Widening
    /// has these effects:
    ///
    /// - Blocks up to the page size (4096) pin no additional page, because the device pins whole
    ///   pages anyway. Such blocks cause no additional invalidation, because the bytes of a page
    ///   share a mapping. But the registration *allows access* to the rest of each page. Work of
    ///   this process that exceeds its buffer is then refused only at the end of the page. If the
    ///   access is remote, a peer can reach the rest of the page too.
    /// - Larger blocks also pin, count, watch and give access to neighbouring pages. These pages
    ///   may belong to another part of the program. When they change, the registration is
    ///   invalidated.
    #[must_use]
    pub fn granularity(mut self, bytes: usize) -> Self {
        self.options.widening.granularity = Some(bytes);
        self
    }

    /// Merges the range of a miss with the registrations of the same access that overlap or touch
    /// the range. A merged registration has at most `bytes` bytes. With the default, 0, ranges are
    /// not merged.
    ///
    /// Merging suits memory that is looked up piece by piece. Each merge registers the whole merged
    /// range again, so `bytes` also limits the cost of a miss.
    #[must_use]
    pub fn merge_up_to(mut self, bytes: usize) -> Self {
        self.options.widening.merge_up_to = bytes;
        self
    }

    /// Ends a registration with remote access ([`Access::is_remote`]) when the last guard of the
    /// registration is dropped. A peer cannot use the remote key after the deregistration. By
    /// default, registrations with remote access are retained like all others.
    ///
    /// [`Access::is_remote`]: crate::Access::is_remote
    #[must_use]
    pub fn revoke_remote_keys(mut self, revoke: bool) -> Self {
        self.options.revoke_remote_keys = revoke;
        self
    }

    /// Chooses whether the cache runs a thread that waits for the monitor's reports and deregisters
    /// invalidated memory. By default the thread runs if the monitor has a
    /// [descriptor](Monitor::descriptor) to wait on.
    ///
    /// Without the thread, freed memory stays pinned until [`Cache::reap`] is called, or until
    /// misses have deregistered it, eight registrations in each miss at most. It counts against the
    /// limits until then. An application without the thread can call [`Cache::reap`] from its event
    /// loop.
    ///
    /// Caches that share a monitor through [`Shared`](crate::monitor::Shared) share the thread.
    #[must_use]
    pub fn background_reaper(mut self, reap: bool) -> Self {
        self.options.background_reaper = reap;
        self
    }
}

impl<R: Registrar, M: Monitor> Builder<R, M> {
    /// Builds the cache.
    ///
    /// # Errors
    ///
    /// Returns [`io::ErrorKind::InvalidInput`] if the granularity is not a power of two. Returns
    /// [`Error::Forked`](crate::Error::Forked) in an [`io::Error`] if the pool belongs to the
    /// parent process. Otherwise returns the error of the monitor or of the kernel. The kernel must
    /// grant address space for the entries, and a thread for the reaper. The kernel must also grant
    /// a page under `MADV_WIPEONFORK` (Linux 4.14), by which the cache recognises a forked child.
    pub fn build(self) -> io::Result<Cache<R, M>> {
        let Self {
            registrar,
            monitor,
            options,
        } = self;
        options.widening.check()?;
        if let Some(pool) = &options.pool {
            pool.check_process().map_err(io::Error::other)?;
        }
        let max_bytes = options.max_bytes.unwrap_or_else(default_max_bytes);
        let capacity = options.max_entries + SPARE;
        let max_entries = options.max_entries as usize;
        let budget = Budget::new(max_entries, max_bytes, options.pool.clone());
        let page_size = memory::page_size();
        let table = Table::new(budget, capacity as usize, page_size);
        let generation = monitor.drain(&mut |_| {})?;
        let core = Arc::new(Core {
            drained: ForkMark::new(!generation)?,
            counter: Counter::of(&monitor),
            monitor,
            hints: Hints::new(options.max_entries)?,
            slab: Slab::new(capacity, generation)?,
            registrar,
            page_size,
            widening: options.widening,
            revoke_remote_keys: options.revoke_remote_keys,
            fresh: Fresh::default(),
            pool: options.pool,
            table: CachePadded::new(Lock::new(table)),
            deregistered: Condvar::new(),
            settled: Condvar::new(),
            reaper: OnceLock::new(),
        });
        #[cfg(not(loom))]
        if let Some(pool) = &core.pool {
            let member = Arc::downgrade(&core);
            pool.join(member);
        }
        let reaper = match options.background_reaper {
            true => Reaper::start(&core)?,
            false => None,
        };
        Ok(Cache::new(core, reaper))
    }
}

/// Returns the number of bytes that `RLIMIT_MEMLOCK` allows, or half of the memory that the process
/// can have, if that half is less. The process can have the machine's memory, or as much as its
/// cgroups allow.
fn default_max_bytes() -> usize {
    let machine = memory::physical();
    let at_most = |limit: Option<u64>| limit.map_or(usize::MAX, |it| it as usize);
    let memory = machine.min(at_most(limits::cgroup_memory()));
    at_most(limits::memlock()).min(memory / 2)
}
