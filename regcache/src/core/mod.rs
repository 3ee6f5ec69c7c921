//! [`Core`]: the state that a cache, its guards and its reaper share.
//!
//! The files of this folder, from the top down:
//!
//! - `lookup.rs` has the slow path of a lookup, and `reclaim.rs` makes room for it on a full
//!   device;
//! - `at_once.rs` has the shortest hits;
//! - this file destroys registrations: [`Core::deregister`] is the only caller of
//!   [`Registrar::deregister`];
//! - `guard.rs`, `completion.rs` and `reaper.rs` use the core of this file. The drop of a guard and
//!   the reaper are two of the places that lead to [`Core::deregister`];
//! - `table.rs` has all state that the cache's lock (`lock.rs`) protects, and uses `slots.rs` and
//!   `index.rs`;
//! - `range_map.rs`, `blocks.rs`, `eviction.rs`, `batch.rs`, `hints.rs`, `budget.rs`, `pool.rs`,
//!   `widen.rs` and `fresh.rs` have parts of the table and of the core;
//! - `slab.rs` has the array of all entries, `entry.rs` a single entry, `spread.rs` the counts of
//!   an entry that many threads use at once, and `marks.rs` the marks of the entries that a drain
//!   has found;
//! - `slot.rs` has the names of places and registrations.

pub(crate) mod at_once;
pub(crate) mod batch;
pub(crate) mod blocks;
pub(crate) mod budget;
pub(crate) mod completion;
pub(crate) mod entry;
pub(crate) mod eviction;
pub(crate) mod fresh;
pub(crate) mod guard;
pub(crate) mod hints;
pub(crate) mod index;
pub(crate) mod lock;
pub(crate) mod lookup;
pub(crate) mod marks;
pub(crate) mod pool;
pub(crate) mod range_map;
pub(crate) mod reaper;
pub(crate) mod reclaim;
pub(crate) mod slab;
pub(crate) mod slot;
pub(crate) mod slots;
pub(crate) mod spread;
pub(crate) mod table;
pub(crate) mod uncached;
pub(crate) mod widen;

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::ptr::NonNull;
use std::sync::OnceLock;
// These are also std's under loom, because the kernel writes to the counter.
use std::sync::atomic::{AtomicU64, fence};

use crossbeam_utils::CachePadded;
use tracing::level_filters::LevelFilter;

use crate::core::batch::{Batch, PIECE};
use crate::core::entry::Entry;
use crate::core::fresh::Fresh;
use crate::core::hints::Hints;
use crate::core::lock::{Lock, Locked};
use crate::core::pool::{Member, Pool};
use crate::core::slab::Slab;
use crate::core::slot::{EntryId, Slot};
use crate::core::table::{Cursor, Table};
use crate::core::widen::Widening;
use crate::error::{Error, RegisterError};
use crate::monitor::{Cookie, Monitor};
use crate::range::VaRange;
use crate::registrar::{Access, Registrar};
#[cfg(feature = "snapshot")]
use crate::snapshot::Snapshot;
use crate::sys::cancel::Uncancelled;
use crate::sys::fork::ForkMark;
use crate::sys::sync::{Arc, Condvar, Ordering};
use crate::sys::worker::Wake;

/// The maximum number of marked entries that one lookup unlinks. So a small drain is over when the
/// lookup that made it returns. Under loom, lookups leave all marked entries to others, so that
/// other lookups meet marked entries.
const UNLINKED_BY_LOOKUP: usize = if cfg!(loom) { 0 } else { 64 };

/// The maximum number of dead entries that a miss deregisters, each time that it releases the lock,
/// if there is no reaper. A miss makes one registration, so the dead entries become fewer with each
/// miss.
const DEREGISTERED_BY_MISS: usize = 4;

/// The number of entries whose memory is given back at once, if they are vacant.
const RETURNED: usize = 1024;

/// The content of an entry. The fields that a hit reads come first, so that they share a cache line
/// with the entry's state.
#[repr(C)]
pub(crate) struct Content<R: Registrar, M: Monitor> {
    pub(crate) range: VaRange,
    pub(crate) access: R::Access,
    /// The serial number in the cookie of a cached registration, or the number of an uncached one.
    /// Together with the place of the entry, it is the name of the registration.
    pub(crate) number: u32,
    pub(crate) registration: R::Registration,
    pub(crate) core: Arc<Core<R, M>>,
}

impl<R: Registrar, M: Monitor> Content<R, M> {
    #[inline]
    pub(crate) fn serves(&self, range: VaRange, access: R::Access) -> bool {
        self.range.contains(&range) && self.access.serves(access)
    }
}

/// The word that has the generation of a core's monitor.
pub(crate) struct Counter(NonNull<AtomicU64>);

// SAFETY: the word is an atomic, which any thread may load.
unsafe impl Send for Counter {}
// SAFETY: as above.
unsafe impl Sync for Counter {}

impl Counter {
    /// Returns the counter of a monitor. The monitor must live as long as the result. If the
    /// monitor has none, the counter shows a generation that no drain returns.
    pub(crate) fn of(monitor: &impl Monitor) -> Self {
        static NONE: AtomicU64 = AtomicU64::new(1 << 63);
        Self(monitor.counter().unwrap_or(NonNull::from(&NONE)))
    }

    #[inline(always)]
    fn generation(&self) -> u64 {
        // SAFETY: the word exists as long as the monitor (`Monitor::counter`), and the monitor as
        // long as this counter. Nobody but the kernel writes to the word.
        let generation = unsafe { self.0.as_ref() }.load(Ordering::Relaxed);
        // As in the `generation` of the monitor.
        fence(Ordering::Acquire);
        generation
    }
}

/// The state that a cache, its guards and its reaper share.
pub(crate) struct Core<R: Registrar, M: Monitor> {
    pub(crate) monitor: M,
    pub(crate) counter: Counter,
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
    pub(crate) fresh: Fresh,
    pub(crate) pool: Option<Pool>,
    /// The state that the lock protects. The padding keeps this state out of the cache lines that a
    /// hit reads.
    pub(crate) table: CachePadded<Lock<Table<R::Access>>>,
    /// The condition that is signalled after a deregistration, if any thread waits for one.
    pub(crate) deregistered: Condvar,
    /// The condition that is signalled when a registration is no longer in the making, if any
    /// thread waits for one.
    pub(crate) settled: Condvar,
    /// The reaper of this core, if there is one.
    pub(crate) reaper: OnceLock<Wake>,
}

impl<R: Registrar, M: Monitor> Core<R, M> {
    /// Returns true if every entry that the generation reports as invalidated is already unlinked
    /// (`design.rs`). Returns false in a forked child.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        !self.monitor.generation() == self.drained.load(Ordering::Acquire)
    }

    /// Does the same as [`is_current`](Self::is_current), but returns false if the monitor has no
    /// counter.
    #[inline(always)]
    pub(crate) fn is_current_at_once(&self) -> bool {
        !self.counter.generation() == self.drained.load(Ordering::Acquire)
    }

    /// Returns true in a process that was forked from the one that built the cache.
    pub(crate) fn in_child(&self) -> bool {
        self.drained.in_child()
    }

    /// Returns true if the slow path of a lookup may reach a cancellation point of
    /// `pthread_cancel`. Messages and the other caches of the pool may reach one too. The few other
    /// places that reach one disable cancellation themselves.
    #[inline]
    pub(crate) fn reaches_cancellation_point(&self) -> bool {
        R::CANCELLATION_POINT
            || M::CANCELLATION_POINT
            || self.pool.is_some()
            || LevelFilter::current() != LevelFilter::OFF
    }

    /// Takes the lock.
    #[inline]
    pub(crate) fn lock(&self) -> Locked<'_, Table<R::Access>> {
        self.table.lock()
    }

    /// Takes the lock, and drains the monitor if the generation has changed. Returns the locked
    /// table. If the monitor fails, marks all entries.
    #[inline]
    pub(crate) fn lock_current(&self) -> Result<Locked<'_, Table<R::Access>>, Error> {
        let mut table = self.lock();
        if !self.is_current() {
            self.make_current(&mut table)?;
        }
        Ok(table)
    }

    #[cold]
    fn make_current(&self, table: &mut Table<R::Access>) -> Result<(), Error> {
        self.drain_changed(table)?;
        self.unlink_marked(table, UNLINKED_BY_LOOKUP);
        Ok(())
    }

    /// Drains the monitor if the generation has changed.
    fn drain_changed(&self, table: &mut Table<R::Access>) -> Result<(), Error> {
        if self.monitor.generation() == self.slab.marks.generation() {
            return Ok(());
        }
        self.drain(table)
    }

    /// Marks every entry that the monitor reports as invalidated.
    fn drain(&self, table: &mut Table<R::Access>) -> Result<(), Error> {
        let mut reports = 0;
        let generation = self.monitor.drain(&mut |cookie| {
            if let Some(range) = table.mark(&self.slab, cookie) {
                reports += 1;
                self.hints.prefetch(range);
            }
        });
        let generation = generation.map_err(|source| {
            // A lost report may have named any entry.
            table.mark_all(&self.slab);
            Error::Monitor {
                monitor: self.monitor.name(),
                source,
            }
        })?;
        let has_changed = generation != self.slab.marks.generation();
        table.counts.spurious += u64::from(reports == 0 && has_changed);
        self.slab.marks.set_generation(generation);
        Ok(())
    }

    /// Unlinks up to `most` marked entries.
    fn unlink_marked(&self, table: &mut Table<R::Access>, most: usize) {
        table.unlink_marked(&self.slab, most);
        self.note_drained(table);
    }

    /// Stores the generation of the last drain in `drained`, if no marked entry is left.
    fn note_drained(&self, table: &Table<R::Access>) {
        if !table.has_marked() {
            let generation = self.slab.marks.generation();
            self.drained.store(!generation, Ordering::Release);
        }
    }

    /// Drains the monitor, and deregisters the entries that the reports name and all other dead
    /// entries. Drains it even if the generation has not changed: the caller may have polled the
    /// descriptor, and a monitor may make the descriptor readable before it raises the generation.
    pub(crate) fn reap(&self) -> Result<(), Error> {
        let _uncancelled = Uncancelled::begin_if(self.reaches_cancellation_point());
        let mut table = self.lock();
        let drained = self.drain(&mut table);
        let table = self.end_all(table);
        let is_sparse = table.is_sparse();
        drop(table);
        if is_sparse {
            self.give_back();
        }
        drained
    }

    /// Drains the monitor if the generation has changed, in a thread that has no lock.
    pub(crate) fn drain_now(&self) -> Result<(), Error> {
        self.drain_changed(&mut self.lock())
    }

    /// Unlinks the marked entries and deregisters the dead ones, in pieces, until none is left.
    pub(crate) fn unlink_and_deregister(&self) {
        self.end_all(self.lock());
    }

    /// Unlinks a few marked entries and deregisters a few dead ones. Returns true if there are
    /// more.
    pub(crate) fn unlink_and_deregister_some(&self) -> bool {
        let table = self.end_some(self.lock());
        table.has_marked() || table.has_dead()
    }

    /// Does the same as [`unlink_and_deregister`](Self::unlink_and_deregister). Takes the locked
    /// table, and returns it locked.
    fn end_all<'l>(
        &'l self,
        mut table: Locked<'l, Table<R::Access>>,
    ) -> Locked<'l, Table<R::Access>> {
        while table.has_marked() || table.has_dead() {
            table = self.end_some(table);
        }
        // Without a marked entry, this drain is over.
        self.note_drained(&table);
        table
    }

    /// Unlinks a few marked entries and deregisters a few dead ones. Releases the lock meanwhile.
    fn end_some<'l>(
        &'l self,
        mut table: Locked<'l, Table<R::Access>>,
    ) -> Locked<'l, Table<R::Access>> {
        let mut batch = Batch::default();
        table.take_marked_and_dead(&self.slab, &mut batch);
        for &slot in &batch {
            self.hints.prefetch(table.range(slot));
        }
        self.note_drained(&table);
        drop(table);
        self.deregister_batch(&batch);
        self.table.yield_to_waiters();
        let mut table = self.lock();
        self.vacate(&mut table, &batch);
        table
    }

    /// Gives back memory if the cache has few entries left.
    pub(crate) fn give_back_if_sparse(&self) {
        if self.lock().is_sparse() {
            self.give_back();
        }
    }

    /// Gives back memory, in pieces.
    #[cold]
    fn give_back(&self) {
        let (slots, since) = {
            let table = self.lock();
            (table.slots(), table.vacancies())
        };
        for first in (0..slots).step_by(RETURNED) {
            let piece = first..slots.min(first + RETURNED as u32);
            self.lock().give_back_entries(&self.slab, piece);
            self.table.yield_to_waiters();
        }
        let mut table = self.lock();
        table.give_back(&self.slab, since);
        self.hints.give_back();
    }

    /// Returns true if a registration with this access is revoked when its last guard is dropped.
    pub(crate) fn is_revocable(&self, access: R::Access) -> bool {
        self.revoke_remote_keys && access.is_remote()
    }

    /// Releases the lock. If there is something to unlink or to deregister, wakes the reaper.
    #[inline(always)]
    pub(crate) fn unlock(&self, table: Locked<'_, Table<R::Access>>) {
        let left = table.has_dead() || table.has_marked();
        drop(table);
        if left {
            self.wake_reaper();
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn wake_reaper(&self) {
        let _uncancelled = Uncancelled::begin();
        if let Some(reaper) = self.reaper.get() {
            reaper.wake();
        }
    }

    /// Releases the lock in a miss. If there is no reaper, takes a few dead entries and deregisters
    /// them.
    #[inline(always)]
    pub(crate) fn unlock_by_miss(&self, table: Locked<'_, Table<R::Access>>) {
        if table.has_dead() {
            self.unlock_with_dead(table);
        } else {
            self.unlock(table);
        }
    }

    #[cold]
    #[inline(never)]
    fn unlock_with_dead(&self, mut table: Locked<'_, Table<R::Access>>) {
        if self.reaper.get().is_some() {
            return self.unlock(table);
        }
        let mut batch = Batch::default();
        for _ in 0..DEREGISTERED_BY_MISS {
            table.pop_dead(&mut batch);
        }
        drop(table);
        self.deregister_and_vacate(&batch);
    }

    /// Releases the lock in a miss, and deregisters the entry that it has evicted. Also
    /// deregisters dead entries as [`deregister_excess`](Self::deregister_excess) does. The first
    /// piece needs no further lock.
    #[inline(never)]
    pub(crate) fn unlock_and_deregister_excess(
        &self,
        mut table: Locked<'_, Table<R::Access>>,
        evicted: Option<Slot>,
    ) {
        let mut batch: Batch = evicted.into_iter().collect();
        table.pop_excess(&mut batch);
        self.unlock_by_miss(table);
        self.deregister_and_vacate(&batch);
        if batch.is_full() {
            self.deregister_excess();
        }
    }

    /// Deregisters dead entries, in pieces, until the cache is within its limits or has no dead
    /// entries.
    pub(crate) fn deregister_excess(&self) {
        loop {
            let mut batch = Batch::default();
            self.lock().pop_excess(&mut batch);
            if batch.is_empty() {
                return;
            }
            self.deregister_and_vacate(&batch);
        }
    }

    /// Deregisters the entries of a batch and makes their slots vacant.
    pub(crate) fn deregister_and_vacate(&self, batch: &Batch) {
        if !batch.is_empty() {
            self.deregister_batch(batch);
            self.vacate(&mut self.lock(), batch);
        }
    }

    /// Deregisters the entries of a batch. The lock is not held. The caller must call
    /// [`vacate`](Self::vacate) afterwards.
    pub(crate) fn deregister_batch(&self, batch: &Batch) {
        for &slot in batch {
            let Some(entry) = self.slab.get(slot) else {
                continue;
            };
            // SAFETY: an entry is in a batch only if `kill` required its caller to take the
            // content. The table gives the entry to one batch only.
            let content = unsafe { entry.take() };
            let cookie = Cookie::of(slot.0, content.number);
            self.end(content, EntryId::Cached(slot, cookie));
        }
    }

    /// Makes the slots of a batch vacant.
    pub(crate) fn vacate(&self, table: &mut Table<R::Access>, batch: &Batch) {
        for &slot in batch {
            self.hints.forget(slot, table.vacate(slot));
        }
        if !batch.is_empty() {
            self.notify_waiting(table);
        }
    }

    /// Deregisters a registration and ends its watch.
    fn end(&self, content: Content<R, M>, id: EntryId) {
        tracing::trace!(range = ?content.range, "deregistering");
        self.deregister(content.registration);
        if let EntryId::Cached(_, cookie) = id {
            self.unwatch(cookie);
        }
    }

    /// Returns the name of the registration in an entry. `number` is the one in its content.
    pub(crate) fn id(&self, entry: &Entry<Content<R, M>>, number: u32) -> EntryId {
        match self.slab.slot_of(entry) {
            Some(slot) => EntryId::Cached(slot, Cookie::of(slot.0, number)),
            None => EntryId::Uncached(number),
        }
    }

    /// Deregisters a registration, given the content that was taken out of its entry. Makes the
    /// slot vacant.
    pub(crate) fn deregister_entry(&self, content: Content<R, M>, id: EntryId) {
        self.end(content, id);
        let mut table = self.lock();
        match id {
            EntryId::Cached(slot, _) => self.hints.forget(slot, table.vacate(slot)),
            EntryId::Uncached(number) => table.remove_uncached(number),
        }
        self.notify_waiting(&table);
    }

    /// Unlinks all entries, in pieces. Entries that are linked meanwhile may stay.
    pub(crate) fn unlink_all(&self) {
        let slots = self.lock().slots();
        for first in (0..slots).step_by(PIECE) {
            let piece = first..slots.min(first + PIECE as u32);
            self.lock().unlink_slots(&self.slab, piece);
            self.table.yield_to_waiters();
        }
    }

    /// Unlinks the entries that overlap `range`, in pieces. Entries that are linked meanwhile may
    /// stay.
    pub(crate) fn unlink_overlapping(&self, range: VaRange) {
        self.lock().invalidate_pending(range);
        let mut cursor = Some(Cursor::default());
        while let Some(at) = cursor {
            cursor = self.lock().unlink_overlapping(&self.slab, range, at);
            self.table.yield_to_waiters();
        }
    }

    /// Returns a picture of the registrations. It is taken in pieces, so that lookups do not wait
    /// for long.
    #[cfg(feature = "snapshot")]
    pub(crate) fn snapshot(&self) -> Snapshot<R::Access> {
        let mut entries = Vec::new();
        let slots = {
            let table = self.lock();
            table.describe_uncached(&mut entries);
            table.slots()
        };
        for first in (0..slots).step_by(PIECE) {
            let piece = first..slots.min(first + PIECE as u32);
            self.lock().describe_slots(&self.slab, piece, &mut entries);
            self.table.yield_to_waiters();
        }
        Snapshot::new(entries)
    }

    /// Wakes the threads that wait for a deregistration.
    pub(crate) fn notify_waiting(&self, table: &Table<R::Access>) {
        if table.waiting > 0 {
            self.deregistered.notify_all();
        }
    }

    /// Wakes the threads that wait for a registration in the making.
    pub(crate) fn notify_awaiting(&self, table: &Table<R::Access>) {
        if table.awaiting > 0 {
            self.settled.notify_all();
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
        self.lock().counts.leaked += 1;
    }

    pub(crate) fn unwatch(&self, cookie: Cookie) {
        // As in `deregister`, more registrations may be left to deregister.
        let unwatch = AssertUnwindSafe(|| self.monitor.unwatch(cookie));
        match panic::catch_unwind(unwatch) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(?cookie, %error, "the monitor refused to end a watch");
            }
            Err(_) => {
                tracing::error!(?cookie, "the monitor panicked while it ended a watch");
            }
        }
    }

    /// Returns the error for a range that the device has refused. Reads files of the kernel to find
    /// the reason.
    #[cold]
    pub(crate) fn refusal(&self, range: VaRange, access: R::Access, source: io::Error) -> Error {
        let _uncancelled = Uncancelled::begin();
        RegisterError::diagnose(range, access.writes(), source).into()
    }

    /// Evicts idle entries until the new limits are kept, and deregisters them.
    pub(crate) fn set_limits(&self, max_entries: Option<usize>, max_bytes: Option<usize>) {
        let _uncancelled = Uncancelled::begin();
        // If the monitor fails, all entries are marked.
        let _ = self.drain_now();
        self.lock().set_limits(&self.slab, max_entries, max_bytes);
        self.deregister_excess();
    }

    /// Deregisters the entry that `choose` puts into the batch. Returns the result of `choose`.
    fn end_one(&self, choose: impl FnOnce(&mut Table<R::Access>, &mut Batch) -> bool) -> bool {
        let mut batch = Batch::default();
        let chosen = choose(&mut self.lock(), &mut batch);
        self.deregister_and_vacate(&batch);
        chosen
    }
}

impl<R: Registrar, M: Monitor> Member for Core<R, M> {
    fn evict_one(&self) -> bool {
        self.end_one(|table, batch| {
            // If the monitor fails, all entries are marked.
            let _ = self.drain_changed(table);
            table.evict(&self.slab, batch).is_some()
        })
    }

    fn deregister_one(&self) -> bool {
        self.end_one(|table, batch| table.pop_dead(batch).is_some())
    }
}
