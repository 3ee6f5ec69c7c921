//! [`Builder`]: what a cache can be told, and what it does when it is not.

use std::io;

use crossbeam_utils::CachePadded;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

use crate::Registrar;
use crate::cache::{Cache, Core};
use crate::core::hints::Hints;
use crate::core::reaper::Reaper;
use crate::core::slab::{Slab, Slot};
use crate::core::table::Ledger;
use crate::core::widen::Widening;
use crate::monitor::{Auto, Monitor, auto};
use crate::sys::fork::ForkMark;
use crate::sys::sync::{Arc, Condvar, Mutex};

const DEFAULT_MAX_ENTRIES: u32 = 65_536;

/// What any cache can hold: 16 777 216.
const MAX_ENTRIES: u32 = 1 << Slot::BITS;

/// Builds a [`Cache`]; see [`Cache::builder`].
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

/// Stands for [`auto`] until [`Builder::build`].
#[derive(Debug)]
pub struct DefaultMonitor(());

impl<R: Registrar> Cache<R> {
    /// Starts building a cache over `registrar`.
    ///
    /// Unless told otherwise it uses the best sound monitor that there is ([`auto`]), holds up to
    /// 65 536 registrations, and pins as much memory as `RLIMIT_MEMLOCK` allows, at most half of the
    /// machine's. What the application frees is released within milliseconds, by a thread of the
    /// cache's own.
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
    /// Uses this monitor, which the cache becomes the only reader of. One monitor for several caches
    /// is a [`Shared`](crate::monitor::Shared).
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
    /// As the other [`build`](Builder::build).
    pub fn build(self) -> io::Result<Cache<R, Auto>> {
        self.monitor(auto()).build()
    }
}

impl<R, M> Builder<R, M> {
    /// Holds at most so many registrations, and never more than 16 777 216. With 0 nothing is cached.
    #[must_use]
    pub fn max_entries(mut self, entries: u32) -> Self {
        self.options.max_entries = entries.min(MAX_ENTRIES);
        self
    }

    /// Pins at most so many bytes by registrations that are kept, whole pages counted. A range larger
    /// than this is not kept, and not counted.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.options.max_bytes = Some(bytes);
        self
    }

    /// Registers whole blocks of `bytes`, a power of two, aligned: a range is widened to those it
    /// lies in, so that lookups of other parts of a block are hits. 1, the default, registers what
    /// was asked for. Where the block cannot be registered, the range is.
    ///
    /// No registration becomes stale by this: what is registered is watched, all of it. What it does
    /// is
    ///
    /// - up to the page size (4096), nothing is pinned that would not be: the device pins whole pages
    ///   anyway, and the bytes of a page share its mapping. But the registration *allows access* to
    ///   the rest of the page, to a peer as well if the access is remote;
    /// - beyond it, also neighbouring pages are pinned, counted, accessible and watched: they may be
    ///   somebody else's, and when they go the registration goes.
    #[must_use]
    pub fn granularity(mut self, bytes: usize) -> Self {
        self.options.widening.granularity = bytes;
        self
    }

    /// On a miss, registers a range in one piece with the registrations of the same access that it
    /// overlaps or touches, as long as that makes no more than `bytes`. 0, the default, does not.
    ///
    /// Good for memory that is looked up piece by piece. Each piece that joins has the whole
    /// registered again, so that `bytes` bounds what a miss can cost.
    #[must_use]
    pub fn merge_up_to(mut self, bytes: usize) -> Self {
        self.options.widening.merge_up_to = bytes;
        self
    }

    /// Deregisters memory that was registered for remote access ([`Access::is_remote`]) when its last
    /// guard is dropped, so that a key handed to a peer ends there. Not the default: such
    /// registrations are kept like others.
    ///
    /// [`Access::is_remote`]: crate::Access::is_remote
    #[must_use]
    pub fn revoke_remote_keys(mut self, revoke: bool) -> Self {
        self.options.revoke_remote_keys = revoke;
        self
    }

    /// Whether the cache has a thread that waits for the monitor to report something and then
    /// releases what became stale. The default, where the monitor has a
    /// [descriptor](Monitor::descriptor) to wait on. Without it, freed memory stays pinned until the
    /// next lookup that is a miss or finds the generation moved, or the application calls
    /// [`Cache::reap`] from an event loop of its own.
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
    /// [`io::ErrorKind::InvalidInput`] if the granularity is not a power of two. What the kernel
    /// says, if it does not give a page under `MADV_WIPEONFORK` (Linux 4.14), by which the cache
    /// knows a forked child, or address space for the entries, or the thread that reaps.
    pub fn build(self) -> io::Result<Cache<R, M>> {
        let Self {
            registrar,
            monitor,
            options,
        } = self;
        options.widening.check()?;
        let max_bytes = options.max_bytes.unwrap_or_else(default_max_bytes);
        let ledger = Ledger::new(options.max_entries as usize, max_bytes);
        let core = Arc::new(Core {
            drained: ForkMark::new(!monitor.drain(&mut |_| {})?)?,
            monitor,
            hints: Hints::new(options.max_entries)?,
            slab: Slab::new(options.max_entries)?,
            registrar,
            page_size: system_value(SysconfVar::PAGE_SIZE, 4096),
            widening: options.widening,
            revoke_remote_keys: options.revoke_remote_keys,
            ledger: CachePadded::new(Mutex::new(ledger)),
            vacated: Condvar::new(),
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

/// What `RLIMIT_MEMLOCK` allows, or half of the memory if that is less.
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
