//! The slow path of a lookup: hits that the hints did not find, and misses.
//!
//! A miss makes room; *watches, then registers*; and drains. The miss then publishes the
//! registration, unless the watch was invalidated meanwhile. `design.rs` argues why a miss must
//! watch before it registers.
//!
//! One lookup may take several attempts. [`Outcome`] lists the reasons for another attempt.

use std::io;
use std::mem;
use std::ptr::NonNull;
use std::time::Duration;

use crate::core::completion::Completion;
use crate::core::entry::Entry;
use crate::core::guard::Guard;
use crate::core::slab::{EntryId, Slot};
use crate::core::slots::Request;
use crate::core::table::Table;
use crate::core::{Content, Core};
use crate::error::{Error, is_exhaustion};
use crate::monitor::{Cookie, Monitor};
use crate::range::VaRange;
use crate::registrar::Registrar;
use crate::sys::sync::{Arc, MutexGuard, lock};

/// The number of attempts to cache a registration of one range. If all attempts fail because the
/// memory keeps changing, the lookup returns an uncached registration.
const MAX_ATTEMPTS: u32 = 8;

/// The maximum time that a lookup on an exhausted device waits until another thread has
/// deregistered an entry.
const RECLAIM_TIMEOUT: Duration = Duration::from_secs(1);

/// The methods that look for a hit.
impl<R: Registrar, M: Monitor> Core<R, M> {
    /// Returns a guard of the entry at `slot`, if that entry is live and serves the request.
    pub(crate) fn hit(&self, slot: Slot, range: VaRange, access: R::Access) -> Option<Guard<R, M>> {
        let entry = self.slab.get(slot)?;
        if !entry.acquire_retained() {
            return None;
        }
        let guard = Guard::owning(NonNull::from(entry));
        if guard.content().serves(range, access) {
            entry.touch();
            return Some(guard);
        }
        guard.decline();
        None
    }

    /// Searches the index for an entry that serves the request. Returns a guard of the entry, and
    /// notes a hint that leads later lookups to the entry's slot.
    fn find(
        &self,
        table: &mut Table<R::Access>,
        range: VaRange,
        access: R::Access,
    ) -> Option<Guard<R, M>> {
        let revocable = self.is_revocable(access);
        let (slot, entry, whole) = table.find(&self.slab, range, access, revocable)?;
        if !revocable {
            self.hints.note_found(range.start(), slot, whole);
        }
        entry.touch();
        Some(Guard::owning(NonNull::from(entry)))
    }
}

/// Serves a lookup that the hints did not serve. Returns a guard of an entry in the index, or of a
/// new registration.
pub(crate) fn lookup<R: Registrar, M: Monitor>(
    core: &Arc<Core<R, M>>,
    range: VaRange,
    access: R::Access,
) -> Result<Guard<R, M>, Error> {
    let bytes = core.pinned(range);
    let mut lookup = Lookup {
        core,
        range,
        access,
        bytes,
        quota: bytes,
        attempts: 0,
        may_widen: true,
    };
    loop {
        match lookup.attempt()? {
            Outcome::Served(guard) => return Ok(guard),
            Outcome::Uncacheable => return uncached(core, range, access, lookup.quota),
            Outcome::Changed | Outcome::TooWide => {}
            Outcome::TooWideForDevice | Outcome::Reclaimed => lookup.attempts -= 1,
        }
    }
}

/// A lookup that takes the slow path.
struct Lookup<'c, R: Registrar, M: Monitor> {
    core: &'c Arc<Core<R, M>>,
    range: VaRange,
    access: R::Access,
    /// The number of bytes that a registration of the lookup's range pins.
    bytes: usize,
    /// The number of bytes that may still be reclaimed for this lookup.
    quota: usize,
    attempts: u32,
    /// True until a wider registration was tried. The lookup tries it only once, because a wider
    /// range may have holes, and other threads may change its memory.
    may_widen: bool,
}

/// The end of one attempt.
enum Outcome<G> {
    /// The lookup is served.
    Served(G),
    /// The registration cannot be cached.
    Uncacheable,
    /// The memory changed while it was being registered. The lookup tries again.
    Changed,
    /// The cache has no room for the wider range, or the monitor refused to watch it. The lookup
    /// tries again with the range itself.
    TooWide,
    /// The device refused a wider range. The lookup tries again with the range itself, and this
    /// attempt is not counted.
    TooWideForDevice,
    /// The device or the monitor was exhausted, and something was reclaimed. The lookup tries
    /// again, and this attempt is not counted.
    Reclaimed,
}

impl<'c, R: Registrar, M: Monitor> Lookup<'c, R, M> {
    fn attempt(&mut self) -> Result<Outcome<Guard<R, M>>, Error> {
        let core = self.core;
        let mut table = core.lock_current()?;
        if let Some(guard) = core.find(&mut table, self.range, self.access) {
            core.unlock(table);
            return Ok(Outcome::Served(guard));
        }
        if !table.could_hold(self.bytes) {
            core.unlock(table);
            // A range larger than the cache's limit must not evict other entries.
            self.quota = 0;
            return Ok(Outcome::Uncacheable);
        }
        if self.attempts == MAX_ATTEMPTS {
            core.unlock(table);
            tracing::debug!(range = ?self.range, "the memory changes faster than it can be registered");
            return Ok(Outcome::Uncacheable);
        }
        self.attempts += 1;
        let whole = if mem::take(&mut self.may_widen) {
            core.widened(&table, self.range, self.access)
        } else {
            self.range
        };
        match Reservation::new(core, table, whole, self.access) {
            Some(reservation) => self.register(reservation),
            None if whole == self.range => Ok(Outcome::Uncacheable),
            None => Ok(Outcome::TooWide),
        }
    }

    /// Watches the range, registers it and publishes the registration.
    fn register(
        &mut self,
        mut reservation: Reservation<'c, R, M>,
    ) -> Result<Outcome<Guard<R, M>>, Error> {
        let core = self.core;
        let (whole, version) = (reservation.range, reservation.room_version);
        let is_wider = whole != self.range;
        if let Err(error) = reservation.watch() {
            drop(reservation);
            if is_wider {
                return Ok(Outcome::TooWide);
            }
            // The monitor is exhausted. An evicted entry ends its watch, which makes room for this
            // one.
            if is_exhaustion(&error) && reclaim(core, &mut self.quota, version) {
                return Ok(Outcome::Reclaimed);
            }
            tracing::debug!(?whole, %error, "the range cannot be watched, so it is not cached");
            return Ok(Outcome::Uncacheable);
        }
        match core.registrar.register(whole, self.access) {
            Ok(registration) => {
                let published = reservation.publish(registration, self.range)?;
                Ok(published.map_or(Outcome::Changed, Outcome::Served))
            }
            Err(source) => {
                drop(reservation);
                if is_wider {
                    tracing::trace!(?whole, %source, "only the range asked for is registered");
                    return Ok(Outcome::TooWideForDevice);
                }
                if is_exhaustion(&source) && reclaim(core, &mut self.quota, version) {
                    return Ok(Outcome::Reclaimed);
                }
                Err(core.refusal(self.range, self.access, source))
            }
        }
    }
}

/// Makes an uncached registration. If the device is exhausted, the function reclaims up to `quota`
/// bytes and retries.
fn uncached<R: Registrar, M: Monitor>(
    core: &Arc<Core<R, M>>,
    range: VaRange,
    access: R::Access,
    mut quota: usize,
) -> Result<Guard<R, M>, Error> {
    let registration = loop {
        let version = lock(&core.table).room_version();
        match core.registrar.register(range, access) {
            Ok(registration) => break registration,
            Err(source) if is_exhaustion(&source) && reclaim(core, &mut quota, version) => {}
            Err(source) => return Err(core.refusal(range, access, source)),
        }
    };
    let number = lock(&core.table).add_uncached(range);
    let entry = Box::new(Entry::vacant());
    let content = Content {
        range,
        access,
        registration,
        id: EntryId::Uncached(number),
        core: Arc::clone(core),
    };
    // SAFETY: the entry is new and vacant, and no other thread has access to it yet.
    unsafe { entry.occupy(content) };
    let entry = NonNull::from(Box::leak(entry));
    Ok(Guard::owning(entry))
}

/// Makes room on an exhausted device or monitor. Evicts an idle entry, or waits until an unlinked
/// entry is deregistered. The bytes of that entry are subtracted from the `quota`.
///
/// Returns false if a retry would fail again. A retry fails if the quota is used up. A retry also
/// fails if both of these hold: the cache has no entry to evict or to wait for, and no registration
/// was linked or deregistered since the caller read `version` (see `Table::room_version`).
fn reclaim<R: Registrar, M: Monitor>(
    core: &Arc<Core<R, M>>,
    quota: &mut usize,
    version: u64,
) -> bool {
    if *quota == 0 {
        return false;
    }
    let (id, bytes) = {
        let mut table = lock(&core.table);
        let outgoing = table.evict(&core.slab).or_else(|| table.any_outgoing());
        match outgoing {
            Some(outgoing) => outgoing,
            // The version has changed. So another thread may have made room, or a registration that
            // serves the request. A retry is worthwhile.
            None if table.room_version() != version => (None, core.page_size),
            None => return false,
        }
    };
    *quota = quota.saturating_sub(bytes);
    core.deregister_dead();
    // Another thread may be deregistering the entry, so this thread waits until the entry is gone.
    Completion::of(core, Vec::from_iter(id)).wait(RECLAIM_TIMEOUT);
    true
}

impl<R: Registrar, M: Monitor> Core<R, M> {
    /// Returns the range to register for a lookup of `range`: a wider one, if widening is on.
    fn widened(&self, table: &Table<R::Access>, range: VaRange, access: R::Access) -> VaRange {
        // A revocable registration is not widened: a key that a peer gets for one transfer must not
        // reach other memory.
        if self.is_revocable(access) {
            return range;
        }
        let whole = self
            .widening
            .widen(range, |block| table.neighbours(block, access));
        if table.could_hold(self.pinned(whole)) {
            whole
        } else {
            range
        }
    }
}

/// The resources of a registration that is being made: a pending slot, room in the budget and a
/// watch. Dropping the reservation releases all three.
struct Reservation<'c, R: Registrar, M: Monitor> {
    core: &'c Arc<Core<R, M>>,
    range: VaRange,
    access: R::Access,
    slot: Slot,
    cookie: Cookie,
    watched: bool,
    /// The table's link version at the time when the index had no entry for the range.
    link_version: u64,
    /// The table's room version when the slot was reserved.
    room_version: u64,
}

impl<'c, R: Registrar, M: Monitor> Reservation<'c, R, M> {
    /// Makes room and reserves a slot. Returns `None` if entries in use leave no room.
    fn new(
        core: &'c Arc<Core<R, M>>,
        mut table: MutexGuard<'c, Table<R::Access>>,
        range: VaRange,
        access: R::Access,
    ) -> Option<Self> {
        let bytes = core.pinned(range);
        let request = Request {
            range,
            access,
            revocable: core.is_revocable(access),
            bytes,
        };
        let link_version = table.link_version();
        loop {
            if let Some((slot, cookie)) = table.reserve(request) {
                let reservation = Self {
                    core,
                    range,
                    access,
                    slot,
                    cookie,
                    watched: false,
                    link_version,
                    room_version: table.room_version(),
                };
                // This call deregisters the entries that the drain has killed. So the device has
                // their room before the registration.
                core.unlock(table);
                return Some(reservation);
            }
            if !table.has_dead() {
                table.make_room(&core.slab, bytes)?;
            }
            // Room becomes free when the dead entries are deregistered. The dead entries include
            // those that other threads have unlinked.
            drop(table);
            core.deregister_dead();
            table = lock(&core.table);
        }
    }

    fn watch(&mut self) -> io::Result<()> {
        self.core.monitor.watch(self.range, self.cookie)?;
        self.watched = true;
        Ok(())
    }

    /// Puts the registration into the cache, and returns its guard. If the memory has changed since
    /// the watch was placed, deregisters the registration and returns `None`. If another thread has
    /// meanwhile linked a registration that serves the request, deregisters this one and returns a
    /// guard of the other thread's.
    fn publish(
        self,
        registration: R::Registration,
        wanted: VaRange,
    ) -> Result<Option<Guard<R, M>>, Error> {
        let core = self.core;
        let mut table = match core.lock_current() {
            Ok(table) => table,
            Err(error) => {
                core.deregister(registration);
                return Err(error);
            }
        };
        let invalidated = table.was_invalidated(self.slot);
        let other = if invalidated || table.link_version() == self.link_version {
            None
        } else {
            core.find(&mut table, self.range, self.access)
        };
        if invalidated || other.is_some() {
            table.counts.retries += u64::from(other.is_none());
            core.unlock(table);
            core.deregister(registration);
            return Ok(other);
        }
        table.link(&core.slab, self.slot);
        let revocable = core.is_revocable(self.access);
        if !revocable {
            core.hints.note(wanted.start(), self.slot, self.range);
        }
        let guard = self.fill(registration, revocable);
        core.unlock(table);
        tracing::trace!(range = ?guard.range(), "registered");
        Ok(Some(guard))
    }

    /// Moves the registration into its entry. The entry owns the slot and the watch from now on.
    fn fill(self, registration: R::Registration, revocable: bool) -> Guard<R, M> {
        let core = self.core;
        let entry = core.slab.get(self.slot).expect("within the capacity");
        let content = Content {
            range: self.range,
            access: self.access,
            registration,
            id: EntryId::Cached(self.slot, self.cookie),
            core: Arc::clone(core),
        };
        // SAFETY: the slot was vacant when it was reserved, and no other thread uses a reserved
        // slot.
        unsafe { entry.publish(content, revocable) };
        mem::forget(self);
        Guard::owning(NonNull::from(entry))
    }
}

impl<R: Registrar, M: Monitor> Drop for Reservation<'_, R, M> {
    fn drop(&mut self) {
        if self.watched {
            self.core.unwatch(self.cookie);
        }
        let mut table = lock(&self.core.table);
        table.vacate(self.slot);
        self.core.notify_waiting(&table);
    }
}
