//! The slow path of a lookup: hits that the hints did not find, and misses.
//!
//! A miss reserves a slot; *watches, then registers*; drains; and makes room. The miss then
//! publishes the registration, unless the watch was invalidated meanwhile. `design.rs` argues why a
//! miss must watch before it registers.
//!
//! Room is made last, when the registration is known to be good. So a lookup that fails evicts
//! nothing. Only the device or the monitor can require room earlier, and `reclaim.rs` makes it.
//!
//! # One registration in the making for each range
//!
//! A lookup may find that another lookup is making a registration that will serve it. In that case
//! the lookup waits until that registration is no longer in the making. It then starts over, and
//! searches the index after a drain of its own. So the wait needs no argument for soundness: the
//! lookup gets the entry on the same conditions as any other lookup that begins now.
//!
//! The wait ends. The lookup waits for at most [`MAX_WAITS`] registrations, and for a limited time.
//! After that it makes a registration itself. It waits only while it has no slot, no watch and no
//! registration of its own. So no two lookups wait for each other.
//!
//! One lookup may take several attempts. It keeps its slot over all attempts for the same range, so
//! that other lookups wait for the last one. Each attempt has a new watch, because `watch` also
//! checks that the kernel reports changes of the memory (rule M6 of [`Monitor`]).

use std::io;
use std::mem;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use crate::core::batch::Batch;
use crate::core::entry::Entry;
use crate::core::guard::Guard;
use crate::core::lock::Locked;
use crate::core::reclaim::Reclaim;
use crate::core::slot::Slot;
use crate::core::slots::{Making, Request};
use crate::core::table::Table;
use crate::core::{Content, Core};
use crate::error::{Error, is_exhaustion};
use crate::monitor::{Cookie, Monitor};
use crate::range::VaRange;
use crate::registrar::{Access, Registrar};
use crate::sys::cancel::Uncancelled;
use crate::sys::sync::Arc;

/// The number of attempts to cache a registration of one range. If all attempts fail because the
/// memory keeps changing, the lookup returns an uncached registration.
const MAX_ATTEMPTS: u32 = 8;

/// The number of registrations of other lookups that one lookup waits for.
const MAX_WAITS: u32 = 2;

/// Returns the maximum time that a lookup waits for a registration of `bytes` bytes, which another
/// lookup is making: a second, and a second for each GiB.
fn patience(bytes: usize) -> Duration {
    Duration::from_secs(1 + (bytes >> 30) as u64)
}

/// Chooses whether the registration that a lookup makes is retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Retained,
    Uncached,
}

/// The methods that look for a hit.
impl<R: Registrar, M: Monitor> Core<R, M> {
    /// Returns a guard of the entry at `slot`, if that entry is live and serves the request.
    pub(crate) fn hit(&self, slot: Slot, range: VaRange, access: R::Access) -> Option<Guard<R, M>> {
        let entry = self.slab.get(slot)?;
        if !entry.acquire_retained() {
            return None;
        }
        Guard::serving(entry, range, access)
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
        entry.touch_shared();
        Some(Guard::owning(NonNull::from(entry)))
    }
}

/// Serves a lookup that the hints did not serve. Returns a guard of an entry in the index, or of a
/// new registration.
pub(crate) fn lookup<R: Registrar, M: Monitor>(
    core: &Arc<Core<R, M>>,
    range: VaRange,
    access: R::Access,
    keep: Keep,
) -> Result<Guard<R, M>, Error> {
    let _uncancelled = Uncancelled::begin_if(core.reaches_cancellation_point());
    let bytes = range.pinned(core.page_size);
    let mut lookup = Lookup {
        core,
        range,
        access,
        keep,
        bytes,
        reclaim: Reclaim::with_quota(bytes),
        attempts: 0,
        may_widen: true,
        waits: MAX_WAITS,
        wait_until: None,
        reservation: None,
    };
    loop {
        match lookup.attempt()? {
            Outcome::Served(guard) => return Ok(guard),
            Outcome::Uncacheable => return lookup.uncached(),
            Outcome::Again => {}
        }
    }
}

/// Returns a guard of an entry in the index, if an entry there serves the request.
pub(crate) fn find_cached<R: Registrar, M: Monitor>(
    core: &Core<R, M>,
    range: VaRange,
    access: R::Access,
) -> Option<Guard<R, M>> {
    let _uncancelled = Uncancelled::begin_if(core.reaches_cancellation_point());
    // If the monitor failed, all entries are marked.
    let mut table = core.lock_current().ok()?;
    let found = core.find(&mut table, range, access);
    core.unlock(table);
    found
}

/// A lookup that takes the slow path.
struct Lookup<'c, R: Registrar, M: Monitor> {
    core: &'c Arc<Core<R, M>>,
    range: VaRange,
    access: R::Access,
    keep: Keep,
    /// The number of bytes that a registration of the lookup's range pins.
    bytes: usize,
    reclaim: Reclaim,
    /// The number of attempts that failed because the memory changed.
    attempts: u32,
    /// True until a wider registration was tried. The lookup tries it only once, because a wider
    /// range may have holes, and other threads may change its memory.
    may_widen: bool,
    /// The number of registrations that the lookup may still wait for.
    waits: u32,
    /// The time at which the lookup stops waiting.
    wait_until: Option<Instant>,
    /// The resources of the current attempt, which the next attempt may use as well. They stay in
    /// this place, because each copy would cost some nanoseconds: it reads words that were written
    /// just before in smaller parts.
    reservation: Option<Reservation<'c, R, M>>,
}

/// The end of one attempt.
enum Outcome<G> {
    /// The lookup is served.
    Served(G),
    /// The registration cannot be cached.
    Uncacheable,
    /// The lookup tries again, because something has changed that made this attempt fail.
    Again,
}

impl<'c, R: Registrar, M: Monitor> Lookup<'c, R, M> {
    fn attempt(&mut self) -> Result<Outcome<Guard<R, M>>, Error> {
        let core = self.core;
        let mut table = match core.lock_current() {
            Ok(table) => table,
            Err(error) => {
                // An uncached registration is made after the lookup began, so it needs no monitor.
                tracing::debug!(%error, "nothing is cached until the monitor answers again");
                return Ok(Outcome::Uncacheable);
            }
        };
        if let Some(victim) = table.expect_eviction(&core.slab, self.bytes) {
            core.hints.prefetch(victim);
        }
        if let Some(guard) = core.find(&mut table, self.range, self.access) {
            core.unlock(table);
            return Ok(Outcome::Served(guard));
        }
        if self.reservation.is_none()
            && self.waits > 0
            && let Some((making, bytes)) =
                table.being_made(self.range, self.access, core.is_revocable(self.access))
        {
            self.wait_for(table, making, bytes);
            return Ok(Outcome::Again);
        }
        if self.keep == Keep::Uncached {
            core.unlock(table);
            return Ok(Outcome::Uncacheable);
        }
        if !table.could_hold(self.bytes) {
            core.unlock(table);
            // A range larger than the cache's limit must not evict other entries.
            self.reclaim = Reclaim::with_quota(0);
            return Ok(Outcome::Uncacheable);
        }
        if self.attempts == MAX_ATTEMPTS {
            core.unlock(table);
            tracing::debug!(range = ?self.range, "the memory changes faster than it can be registered");
            return Ok(Outcome::Uncacheable);
        }
        if let Some(reservation) = &mut self.reservation {
            reservation.renew(&mut table);
            core.unlock(table);
        } else {
            let whole = if mem::take(&mut self.may_widen) {
                core.widened(&table, self.range, self.access)
            } else {
                self.range
            };
            let (link_version, room_version) = (table.link_version(), table.room_version());
            let Some((slot, cookie)) = reserve(core, table, whole, self.access) else {
                return Ok(Outcome::Uncacheable);
            };
            self.reservation = Some(Reservation {
                core,
                range: whole,
                access: self.access,
                slot,
                cookie,
                watched: false,
                published: false,
                prepared: None,
                link_version,
                room_version,
            });
        }
        self.register()
    }

    /// Waits until the registration is no longer in the making, for a limited time.
    fn wait_for(&mut self, mut table: Locked<'c, Table<R::Access>>, making: Making, bytes: usize) {
        self.waits -= 1;
        let until = *self
            .wait_until
            .get_or_insert_with(|| Instant::now() + patience(bytes));
        table.counts.waits += 1;
        table.awaiting += 1;
        while table.is_pending(making) {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                self.waits = 0;
                break;
            }
            table = table.wait_for(&self.core.settled, rest);
        }
        table.awaiting -= 1;
    }

    /// Watches the range, registers it and publishes the registration.
    fn register(&mut self) -> Result<Outcome<Guard<R, M>>, Error> {
        let core = self.core;
        let Some(reservation) = &mut self.reservation else {
            return Ok(Outcome::Again);
        };
        let (whole, version) = (reservation.range, reservation.room_version);
        let is_wider = whole != self.range;
        if let Err(error) = reservation.watch() {
            if is_wider {
                self.reservation = None;
                return Ok(Outcome::Again);
            }
            // The monitor is exhausted. An evicted entry ends its watch, which makes room for this
            // one.
            if is_exhaustion(&error) && self.reclaim.reclaim(core, version) {
                return Ok(Outcome::Again);
            }
            tracing::debug!(?whole, %error, "the range cannot be watched, so it is not cached");
            return Ok(Outcome::Uncacheable);
        }
        match core.registrar.register(whole, self.access) {
            Ok(registration) => match reservation.publish(registration, self.range) {
                Published::Guard(guard) => Ok(Outcome::Served(guard)),
                Published::Uncacheable => Ok(Outcome::Uncacheable),
                Published::Changed => {
                    self.attempts += 1;
                    if is_wider {
                        self.reservation = None;
                    }
                    Ok(Outcome::Again)
                }
            },
            Err(source) if is_wider => {
                tracing::trace!(?whole, %source, "only the range asked for is registered");
                self.reservation = None;
                Ok(Outcome::Again)
            }
            Err(source) => {
                if is_exhaustion(&source) && self.reclaim.reclaim(core, version) {
                    reservation.unwatch();
                    return Ok(Outcome::Again);
                }
                Err(core.refusal(self.range, self.access, source))
            }
        }
    }

    /// Makes an uncached registration.
    fn uncached(mut self) -> Result<Guard<R, M>, Error> {
        let core = self.core;
        self.reservation = None;
        let announcement = Announcement::new(core, self.range);
        let registration = loop {
            let version = core.lock().room_version();
            match core.registrar.register(self.range, self.access) {
                Ok(registration) => break registration,
                Err(source) if is_exhaustion(&source) && self.reclaim.reclaim(core, version) => {}
                Err(source) => return Err(core.refusal(self.range, self.access, source)),
            }
        };
        let number = announcement.redeem();
        Ok(uncached_guard(
            core,
            number,
            self.range,
            self.access,
            registration,
        ))
    }
}

/// An uncached registration that is being made. Dropping the announcement removes it from the
/// table.
struct Announcement<'c, R: Registrar, M: Monitor> {
    core: &'c Core<R, M>,
    number: u32,
}

impl<'c, R: Registrar, M: Monitor> Announcement<'c, R, M> {
    fn new(core: &'c Core<R, M>, range: VaRange) -> Self {
        let number = core.lock().add_uncached(range);
        Self { core, number }
    }

    /// Counts the registration, which was made, and returns its number.
    fn redeem(self) -> u32 {
        let number = self.number;
        let mut table = self.core.lock();
        table.uncached_was_made();
        self.core.notify_awaiting(&table);
        drop(table);
        mem::forget(self);
        number
    }
}

impl<R: Registrar, M: Monitor> Drop for Announcement<'_, R, M> {
    fn drop(&mut self) {
        let mut table = self.core.lock();
        table.uncached_was_refused(self.number);
        self.core.notify_waiting(&table);
        self.core.notify_awaiting(&table);
    }
}

/// Returns a guard of an uncached registration.
fn uncached_guard<R: Registrar, M: Monitor>(
    core: &Arc<Core<R, M>>,
    number: u32,
    range: VaRange,
    access: R::Access,
    registration: R::Registration,
) -> Guard<R, M> {
    let entry = Box::new(Entry::vacant());
    let content = Content {
        range,
        access,
        registration,
        number,
        core: Arc::clone(core),
    };
    // SAFETY: the entry is new and vacant, and no other thread has access to it yet.
    unsafe { entry.occupy(content) };
    let entry = NonNull::from(Box::leak(entry));
    Guard::owning(entry)
}

impl<R: Registrar, M: Monitor> Core<R, M> {
    /// Returns the range to register for a lookup of `range`: a wider one, if widening is on.
    fn widened(&self, table: &Table<R::Access>, range: VaRange, access: R::Access) -> VaRange {
        // A revocable registration is not widened: a key that a peer gets for one transfer must not
        // reach other memory.
        if self.is_revocable(access) {
            return range;
        }
        let default = if access.is_remote() {
            1
        } else {
            self.page_size
        };
        let neighbours = |block| table.neighbours(block, access);
        let whole = self.widening.widen(range, default, neighbours);
        if whole == range || table.could_hold(whole.pinned(self.page_size)) {
            whole
        } else {
            range
        }
    }
}

/// The hold that the registrar has on a range from before the watch until after the registration
/// (see `Registrar::prepare`).
struct Prepared<'c, R: Registrar, M: Monitor> {
    core: &'c Core<R, M>,
    range: VaRange,
}

impl<R: Registrar, M: Monitor> Drop for Prepared<'_, R, M> {
    fn drop(&mut self) {
        self.core.registrar.finish(self.range);
    }
}

/// The resources of a registration that is being made: a pending slot, a watch and the registrar's
/// hold on the range. Dropping the reservation releases all three, unless the registration was
/// published.
struct Reservation<'c, R: Registrar, M: Monitor> {
    core: &'c Arc<Core<R, M>>,
    range: VaRange,
    access: R::Access,
    slot: Slot,
    cookie: Cookie,
    watched: bool,
    /// True if the entry owns the slot and the watch.
    published: bool,
    prepared: Option<Prepared<'c, R, M>>,
    /// The table's link version at the time when the index had no entry for the range.
    link_version: u64,
    /// The table's room version at the beginning of the attempt.
    room_version: u64,
}

/// The end of an attempt to publish a registration.
enum Published<R: Registrar, M: Monitor> {
    /// The registration was published or is uncached, or another one serves the lookup.
    Guard(Guard<R, M>),
    /// The registration was deregistered, because the memory has changed since the watch was
    /// placed. The slot can be used for the next attempt.
    Changed,
    /// The registration was deregistered, because the monitor failed.
    Uncacheable,
}

/// Reserves a slot, and releases the lock. Returns `None` if no slot is vacant.
fn reserve<'c, R: Registrar, M: Monitor>(
    core: &'c Core<R, M>,
    mut table: Locked<'c, Table<R::Access>>,
    range: VaRange,
    access: R::Access,
) -> Option<(Slot, Cookie)> {
    let request = Request {
        range,
        access,
        revocable: core.is_revocable(access),
    };
    loop {
        if let Some(reserved) = table.reserve(&core.slab, request) {
            core.unlock_by_miss(table);
            return Some(reserved);
        }
        if !table.has_dead() {
            return None;
        }
        // The slots of the dead entries become vacant when the entries are deregistered.
        let mut batch = Batch::default();
        while table.pop_dead(&mut batch).is_some() {}
        drop(table);
        core.deregister_batch(&batch);
        table = core.lock();
        core.vacate(&mut table, &batch);
    }
}

impl<'c, R: Registrar, M: Monitor> Reservation<'c, R, M> {
    /// Prepares the slot for another attempt. The caller has drained the monitor, and has found no
    /// entry for the range.
    fn renew(&mut self, table: &mut Table<R::Access>) {
        self.cookie = table.renew(self.slot);
        self.link_version = table.link_version();
        self.room_version = table.room_version();
        // The registration of the last attempt is gone.
        self.core.notify_waiting(table);
    }

    fn watch(&mut self) -> io::Result<()> {
        let core = self.core;
        let range = self.range;
        if self.prepared.is_none() && core.registrar.prepare(range) {
            self.prepared = Some(Prepared { core, range });
        }
        core.fresh
            .populate(range, core.page_size, self.access.writes());
        core.monitor.watch(range, self.cookie)?;
        self.watched = true;
        Ok(())
    }

    fn unwatch(&mut self) {
        if mem::take(&mut self.watched) {
            self.core.unwatch(self.cookie);
        }
    }

    /// Ends the watch, and makes the slot vacant.
    #[cold]
    #[inline(never)]
    fn give_up(&mut self) {
        self.unwatch();
        let mut table = self.core.lock();
        table.vacate(self.slot);
        self.core.notify_waiting(&table);
        self.core.notify_awaiting(&table);
    }

    /// Puts the registration into the cache, and returns its guard. If another thread has meanwhile
    /// linked a registration that serves the request, deregisters this one and returns a guard of
    /// the other thread's. If entries in use leave no room, returns the registration uncached.
    fn publish(&mut self, registration: R::Registration, wanted: VaRange) -> Published<R, M> {
        let core = self.core;
        let share = core.pool.as_ref().map(|pool| {
            let bytes = self.range.pinned(core.page_size);
            pool.reserve(bytes, &**core)
        });
        let Ok(mut table) = core.lock_current() else {
            core.deregister(registration);
            return Published::Uncacheable;
        };
        if table.was_invalidated(self.slot) {
            table.counts.retries += 1;
            core.fresh.was_retried();
            core.unlock(table);
            core.deregister(registration);
            self.unwatch();
            return Published::Changed;
        }
        if table.link_version() != self.link_version
            && let Some(other) = core.find(&mut table, self.range, self.access)
        {
            core.unlock(table);
            core.deregister(registration);
            return Published::Guard(other);
        }
        let is_full = matches!(share, Some(None));
        let mut evicted = None;
        if is_full || !table.admit(&core.slab, self.slot, &mut evicted) {
            let number = table.add_uncached(self.range);
            table.uncached_was_made();
            core.unlock(table);
            tracing::debug!(range = ?self.range, "entries in use leave no room to cache the range");
            return Published::Guard(uncached_guard(
                core,
                number,
                self.range,
                self.access,
                registration,
            ));
        }
        // The hold ends after the lock is released, at the end of this method.
        let _prepared = self.prepared.take();
        if let Some(Some(share)) = share {
            share.hand_over();
        }
        table.link(&core.slab, self.slot);
        let revocable = core.is_revocable(self.access);
        if !revocable {
            core.hints.note(wanted.start(), self.slot, self.range);
        }
        let guard = self.fill(registration, revocable);
        core.notify_awaiting(&table);
        if evicted.is_some() || table.has_dead() {
            core.unlock_and_deregister_excess(table, evicted);
        } else {
            core.unlock(table);
        }
        tracing::trace!(range = ?guard.range(), "registered");
        Published::Guard(guard)
    }

    /// Moves the registration into its entry. The entry owns the slot and the watch from now on.
    fn fill(&mut self, registration: R::Registration, revocable: bool) -> Guard<R, M> {
        let core = self.core;
        let entry = core.slab.get(self.slot).expect("within the capacity");
        let content = Content {
            range: self.range,
            access: self.access,
            registration,
            number: self.cookie.serial(),
            core: Arc::clone(core),
        };
        // SAFETY: the slot was vacant when it was reserved, and no other thread uses a reserved
        // slot.
        unsafe { entry.publish(content, revocable) };
        self.published = true;
        Guard::owning(NonNull::from(entry))
    }
}

impl<R: Registrar, M: Monitor> Drop for Reservation<'_, R, M> {
    #[inline]
    fn drop(&mut self) {
        if !self.published {
            self.give_up();
        }
    }
}
