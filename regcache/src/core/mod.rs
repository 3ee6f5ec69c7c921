//! [`Core`]: the state that a cache, its guards and its reaper share.
//!
//! The files of this folder, from the top down:
//!
//! - `lookup.rs` has the slow path of a lookup;
//! - this file destroys registrations: [`Core::deregister`] is the only caller of
//!   [`Registrar::deregister`];
//! - `guard.rs`, `completion.rs` and `reaper.rs` use the core of this file. The drop of a guard and
//!   the reaper are two of the places that lead to [`Core::deregister`];
//! - `table.rs` has all state that the cache's lock protects, and uses `slots.rs` and `index.rs`;
//! - `range_map.rs`, `eviction.rs`, `hints.rs`, `budget.rs` and `widen.rs` have parts of the table
//!   and of the core;
//! - `slab.rs` has the array of all entries, and `entry.rs` a single entry.

pub(crate) mod budget;
pub(crate) mod completion;
pub(crate) mod entry;
pub(crate) mod eviction;
pub(crate) mod guard;
pub(crate) mod hints;
pub(crate) mod index;
pub(crate) mod lookup;
pub(crate) mod range_map;
pub(crate) mod reaper;
pub(crate) mod slab;
pub(crate) mod slots;
pub(crate) mod table;
pub(crate) mod uncached;
pub(crate) mod widen;

use std::io;
use std::panic::{self, AssertUnwindSafe};

use crossbeam_utils::CachePadded;

use crate::core::hints::Hints;
use crate::core::slab::{EntryId, Slab};
use crate::core::table::Table;
use crate::core::widen::Widening;
use crate::error::{Error, RegisterError};
use crate::monitor::{Cookie, Monitor};
use crate::range::VaRange;
use crate::registrar::{Access, Registrar};
use crate::sys::fork::ForkMark;
use crate::sys::sync::{Arc, Condvar, Mutex, MutexGuard, Ordering, lock};

/// The content of an entry. The fields that a hit reads come first, so that they share a cache line
/// with the entry's state.
#[repr(C)]
pub(crate) struct Content<R: Registrar, M: Monitor> {
    pub(crate) range: VaRange,
    pub(crate) access: R::Access,
    pub(crate) registration: R::Registration,
    pub(crate) id: EntryId,
    pub(crate) core: Arc<Core<R, M>>,
}

impl<R: Registrar, M: Monitor> Content<R, M> {
    #[inline]
    pub(crate) fn serves(&self, range: VaRange, access: R::Access) -> bool {
        self.range.contains(&range) && self.access.serves(access)
    }
}

/// The state that a cache, its guards and its reaper share.
pub(crate) struct Core<R: Registrar, M: Monitor> {
    pub(crate) monitor: M,
    /// The generation up to which all invalidated entries were unlinked (`design.rs`). The bits are
    /// stored inverted. So the word is never 0 in this process, and always 0 in a forked child. The
    /// word is written under the lock.
    pub(crate) drained: ForkMark,
    pub(crate) hints: Hints,
    pub(crate) slab: Slab<Content<R, M>>,
    pub(crate) registrar: R,
    pub(crate) page_size: usize,
    pub(crate) widening: Widening,
    pub(crate) revoke_remote_keys: bool,
    /// The state that the lock protects. The padding keeps this state out of the cache lines that a
    /// hit reads.
    pub(crate) table: CachePadded<Mutex<Table<R::Access>>>,
    /// The condition that is signalled after a deregistration, if any thread waits for one.
    pub(crate) deregistered: Condvar,
}

impl<R: Registrar, M: Monitor> Core<R, M> {
    /// Returns true if every entry that the generation reports as invalidated is already unlinked.
    /// Returns false in a forked child.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        !self.monitor.generation() == self.drained.load(Ordering::Acquire)
    }

    /// Returns true in a process that was forked from the one that built the cache.
    pub(crate) fn in_child(&self) -> bool {
        self.drained.in_child()
    }

    /// Takes the lock, and drains the monitor if the generation has changed. Returns the locked
    /// table. If the monitor fails, unlinks all entries and deregisters those that are idle.
    #[inline]
    pub(crate) fn lock_current(&self) -> Result<MutexGuard<'_, Table<R::Access>>, Error> {
        let table = lock(&self.table);
        if self.is_current() {
            return Ok(table);
        }
        self.lock_drained(table)
    }

    #[cold]
    fn lock_drained<'l>(
        &'l self,
        mut table: MutexGuard<'l, Table<R::Access>>,
    ) -> Result<MutexGuard<'l, Table<R::Access>>, Error> {
        match self.drain(&mut table) {
            Ok(()) => Ok(table),
            Err(error) => {
                self.unlock(table);
                Err(error)
            }
        }
    }

    fn drain(&self, table: &mut Table<R::Access>) -> Result<(), Error> {
        let mut reports = 0;
        let generation = self.monitor.drain(&mut |cookie| {
            reports += u64::from(table.invalidate(&self.slab, cookie));
        });
        let generation = generation.map_err(|source| {
            // A lost report may have named any entry, so all entries are unlinked.
            table.unlink_all(&self.slab);
            Error::Monitor {
                monitor: self.monitor.name(),
                source,
            }
        })?;
        table.counts.spurious += u64::from(reports == 0);
        self.drained.store(!generation, Ordering::Release);
        Ok(())
    }

    /// Drains the monitor, and deregisters the entries that the reports name.
    pub(crate) fn reap(&self) -> Result<(), Error> {
        self.unlock(self.lock_current()?);
        Ok(())
    }

    /// Returns true if the drop of its last guard revokes a registration with this access.
    pub(crate) fn is_revocable(&self, access: R::Access) -> bool {
        self.revoke_remote_keys && access.is_remote()
    }

    /// Releases the lock, and then deregisters the dead entries.
    pub(crate) fn unlock(&self, table: MutexGuard<'_, Table<R::Access>>) {
        let dead = table.has_dead();
        drop(table);
        if dead {
            self.deregister_dead();
        }
    }

    /// Deregisters the dead entries. The lock is not held during a deregistration.
    pub(crate) fn deregister_dead(&self) {
        loop {
            let Some(slot) = lock(&self.table).pop_dead() else {
                return;
            };
            let Some(entry) = self.slab.get(slot) else {
                return;
            };
            // SAFETY: an entry is on the list of dead entries only if `kill` required its caller to
            // take the content. `pop_dead` returns the entry to one thread only.
            self.deregister_entry(unsafe { entry.take() });
        }
    }

    /// Deregisters a registration, given the content that was taken out of its entry. Makes the
    /// slot vacant.
    pub(crate) fn deregister_entry(&self, content: Content<R, M>) {
        tracing::trace!(range = ?content.range, "deregistering");
        self.deregister(content.registration);
        if let EntryId::Cached(_, cookie) = content.id {
            self.unwatch(cookie);
        }
        let mut table = lock(&self.table);
        match content.id {
            EntryId::Cached(slot, _) => {
                self.hints.forget(slot, content.range);
                table.vacate(slot);
            }
            EntryId::Uncached(number) => table.remove_uncached(number),
        }
        self.notify_waiting(&table);
    }

    /// Wakes the threads that wait for a deregistration.
    pub(crate) fn notify_waiting(&self, table: &Table<R::Access>) {
        if table.waiting > 0 {
            self.deregistered.notify_all();
        }
    }

    pub(crate) fn deregister(&self, registration: R::Registration) {
        // The caller may be a lookup of other memory, and more registrations may be left to
        // deregister. So this method does not propagate an error or a panic.
        let deregister = AssertUnwindSafe(|| self.registrar.deregister(registration));
        match panic::catch_unwind(deregister) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::error!(%error, "the device refused to deregister a registration");
            }
            Err(_) => {
                tracing::error!("the registrar panicked while it deregistered a registration");
            }
        }
        lock(&self.table).counts.leaked += 1;
    }

    pub(crate) fn unwatch(&self, cookie: Cookie) {
        if let Err(error) = self.monitor.unwatch(cookie) {
            tracing::error!(?cookie, %error, "the monitor refused to end a watch");
        }
    }

    pub(crate) fn refusal(&self, range: VaRange, access: R::Access, source: io::Error) -> Error {
        RegisterError::diagnose(range, access.writes(), source).into()
    }

    /// Returns the number of bytes that a registration of `range` pins: the sizes of all pages that
    /// the range touches.
    pub(crate) fn pinned(&self, range: VaRange) -> usize {
        // The compiler does not know the page size, so a division would be slow. A mask is fast.
        let within = self.page_size - 1;
        let (first, last) = (range.start() & !within, (range.end() - 1) | within);
        (last - first).saturating_add(1)
    }
}
