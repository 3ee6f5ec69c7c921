//! [`Builder`]: the options of a cache, and their defaults.

use std::io;

use crossbeam_utils::CachePadded;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

use crate::cache::Cache;
use crate::core::Core;
use crate::core::hints::Hints;
use crate::core::reaper::Reaper;
use crate::core::slab::{Slab, Slot};
use crate::core::table::Table;
use crate::core::widen::Widening;
use crate::monitor::{Auto, Monitor, auto};
use crate::registrar::Registrar;
use crate::sys::fork::ForkMark;
use crate::sys::sync::{Arc, Condvar, Mutex};

const DEFAULT_MAX_ENTRIES: u32 = 65_536;

/// The most registrations that any cache holds: 16 777 216.
const MAX_ENTRIES: u32 = 1 << Slot::BITS;

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
///     .granularity(4096)
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
}

/// Stands for the monitor that [`auto`] chooses in [`Builder::build`].
#[derive(Debug)]
pub struct DefaultMonitor(());

impl<R: Registrar> Cache<R> {
    /// Starts building a cache over `registrar`.
    ///
    /// By default the cache
    ///
    /// - uses the best sound monitor of this machine ([`auto`]);
    /// - holds up to 65 536 registrations;
    /// - pins as much memory as `RLIMIT_MEMLOCK` allows, and at most half of the machine's;
    /// - has a thread that deregisters freed memory within milliseconds.
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
            },
        }
    }
}

impl<R: Registrar> Builder<R, DefaultMonitor> {
    /// Uses this monitor, of which the cache becomes the only reader.
    ///
    /// Several caches can have one monitor by [`Shared`](crate::monitor::Shared).
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
    /// As the [`build`](Builder::build) of other monitors.
    pub fn build(self) -> io::Result<Cache<R, Auto>> {
        self.monitor(auto()).build()
    }
}

impl<R, M> Builder<R, M> {
    /// Limits the number of registrations that the cache holds, which is never more than 16 777
    /// 216. With 0 nothing is cached.
    #[must_use]
    pub fn max_entries(mut self, entries: u32) -> Self {
        self.options.max_entries = entries.min(MAX_ENTRIES);
        self
    }

    /// Limits the bytes that cached registrations pin, counted in whole pages. A larger range is
    /// not cached, and not counted.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.options.max_bytes = Some(bytes);
        self
    }

    /// Registers whole aligned blocks of `bytes`, a power of two. A range is widened to the blocks
    /// that it lies in, so that lookups of other parts of a block are hits. If the blocks cannot be
    /// registered, the range alone is. 1, the default, does not widen.
    ///
    /// No registration becomes stale by this, because the whole of it is watched. The effects are:
    ///
    /// - Up to the page size (4096) no other page is pinned. The device pins whole pages anyway,
    ///   and the bytes of a page share its mapping. But the registration *allows access* to the
    ///   rest of the page, also for a peer if the access is remote.
    /// - Beyond the page size, neighbouring pages are pinned, counted, accessible and watched as
    ///   well. They may have another owner, and when they change the registration is invalidated.
    #[must_use]
    pub fn granularity(mut self, bytes: usize) -> Self {
        self.options.widening.granularity = bytes;
        self
    }

    /// Merges the range of a miss with registrations of the same access that it overlaps or
    /// touches. One registration grows up to `bytes`. 0, the default, does not merge.
    ///
    /// This is good for memory that is looked up piece by piece. Each piece that joins registers
    /// the whole again, so `bytes` bounds the cost of a miss.
    #[must_use]
    pub fn merge_up_to(mut self, bytes: usize) -> Self {
        self.options.widening.merge_up_to = bytes;
        self
    }

    /// Deregisters memory with remote access ([`Access::is_remote`]) when its last guard is
    /// dropped, so that a key which a peer has ends there. By default such registrations are
    /// retained like others.
    ///
    /// [`Access::is_remote`]: crate::Access::is_remote
    #[must_use]
    pub fn revoke_remote_keys(mut self, revoke: bool) -> Self {
        self.options.revoke_remote_keys = revoke;
        self
    }

    /// Chooses whether a thread of the cache waits for reports of the monitor, and deregisters
    /// invalidated memory. This is the default if the monitor has a
    /// [descriptor](Monitor::descriptor) to wait on.
    ///
    /// Without the thread, freed memory stays pinned until a lookup misses or sees a new
    /// generation, or the application calls [`Cache::reap`] from its event loop.
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
    /// [`io::ErrorKind::InvalidInput`] if the granularity is not a power of two. Otherwise the
    /// kernel's error. The cache needs a page under `MADV_WIPEONFORK` (Linux 4.14), by which it
    /// recognises a forked child; address space for the entries; and the reaper's thread.
    pub fn build(self) -> io::Result<Cache<R, M>> {
        let Self {
            registrar,
            monitor,
            options,
        } = self;
        options.widening.check()?;
        let max_bytes = options.max_bytes.unwrap_or_else(default_max_bytes);
        let table = Table::new(options.max_entries as usize, max_bytes);
        let core = Arc::new(Core {
            drained: ForkMark::new(!monitor.drain(&mut |_| {})?)?,
            monitor,
            hints: Hints::new(options.max_entries)?,
            slab: Slab::new(options.max_entries)?,
            registrar,
            page_size: system_value(SysconfVar::PAGE_SIZE, 4096),
            widening: options.widening,
            revoke_remote_keys: options.revoke_remote_keys,
            table: CachePadded::new(Mutex::new(table)),
            deregistered: Condvar::new(),
        });
        let reaper = match options.background_reaper {
            true => Reaper::start(&core)?,
            false => None,
        };
        Ok(Cache::new(core, reaper))
    }
}

fn system_value(which: SysconfVar, otherwise: usize) -> usize {
    match sysconf(which) {
        Ok(Some(value)) => usize::try_from(value).unwrap_or(otherwise),
        _ => otherwise,
    }
}

/// Returns the bytes that `RLIMIT_MEMLOCK` allows, or half of the machine's memory if that is less.
fn default_max_bytes() -> usize {
    let memory = system_value(SysconfVar::_PHYS_PAGES, 1 << 18)
        .saturating_mul(system_value(SysconfVar::PAGE_SIZE, 4096));
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((soft, _)) if soft != RLIM_INFINITY => {
            usize::try_from(soft).unwrap_or(usize::MAX).min(memory / 2)
        }
        _ => memory / 2,
    }
}
