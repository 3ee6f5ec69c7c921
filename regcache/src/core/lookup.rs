//! What a lookup does that is not a hit: the miss of the protocol at the head of `cache.rs`.

use std::io;
use std::mem;
use std::ptr::NonNull;
use std::time::Duration;

use crate::cache::{Content, Core, Place};
use crate::completion::Completion;
use crate::core::entry::Entry;
use crate::core::slab::Slot;
use crate::core::table::Ledger;
use crate::error::is_exhaustion;
use crate::guard::Guard;
use crate::monitor::{Cookie, Monitor};
use crate::sys::sync::{Arc, MutexGuard, lock};
use crate::{Error, Registrar, VaRange};

/// Registrations of one range that may be spoilt, by its memory changing while they are made,
/// before the lookup is answered with one that is not kept.
const MAX_ATTEMPTS: u32 = 8;

/// How long a lookup that the device has no room for waits at most until another thread has destroyed a
/// registration.
const RELIEF_TIMEOUT: Duration = Duration::from_secs(1);

/// A miss, and a hit that the hints did not know.
pub(crate) fn miss<R: Registrar, M: Monitor>(
    core: &Arc<Core<R, M>>,
    range: VaRange,
    access: R::Access,
) -> Result<Guard<R, M>, Error> {
    let bytes = core.pinned(range);
    let mut relief = bytes;
    let mut attempts = 0;
    // A wider registration is tried once: it may have holes, and others change it as well.
    let mut wide = true;
    loop {
        let mut ledger = core.lock_current()?;
        if let Some(guard) = core.find(&mut ledger, range, access) {
            core.unlock(ledger);
            return Ok(guard);
        }
        if !ledger.could_hold(bytes) {
            core.unlock(ledger);
            // What is more than the cache may hold is no reason to give up what it holds.
            return uncached(core, range, access, 0);
        }
        if attempts == MAX_ATTEMPTS {
            core.unlock(ledger);
            tracing::debug!(?range, "changes faster than it can be registered");
            return uncached(core, range, access, relief);
        }
        attempts += 1;
        let whole = if mem::take(&mut wide) {
            core.widened(&ledger, range, access)
        } else {
            range
        };
        let Some(mut reservation) = Reservation::new(core, ledger, whole, access) else {
            if whole == range {
                return uncached(core, range, access, relief);
            }
            continue;
        };
        let seen = reservation.moves;
        if let Err(error) = reservation.watch() {
            drop(reservation);
            if whole != range {
                continue;
            }
            // As for the device: its idle ones make room for this one.
            if is_exhaustion(&error) && relieve(core, &mut relief, seen) {
                attempts -= 1;
                continue;
            }
            tracing::debug!(?whole, %error, "cannot be watched");
            return uncached(core, range, access, relief);
        }
        match core.registrar.register(whole, access) {
            Ok(registration) => {
                if let Some(guard) = reservation.publish(registration, range)? {
                    return Ok(guard);
                }
            }
            Err(source) => {
                drop(reservation);
                if whole != range {
                    tracing::trace!(?whole, %source, "only what was asked for is registered");
                } else if !(is_exhaustion(&source) && relieve(core, &mut relief, seen)) {
                    return Err(core.refusal(range, access, source));
                }
                attempts -= 1;
            }
        }
    }
}

/// A registration that is not kept. For it up to `relief` bytes of idle ones are given up, if the
/// device says that it is exhausted.
fn uncached<R: Registrar, M: Monitor>(
    core: &Arc<Core<R, M>>,
    range: VaRange,
    access: R::Access,
    mut relief: usize,
) -> Result<Guard<R, M>, Error> {
    let registration = loop {
        let seen = lock(&core.ledger).moves();
        match core.registrar.register(range, access) {
            Ok(registration) => break registration,
            Err(source) if is_exhaustion(&source) && relieve(core, &mut relief, seen) => {}
            Err(source) => return Err(core.refusal(range, access, source)),
        }
    };
    let number = lock(&core.ledger).alone(range);
    let entry = Box::new(Entry::vacant());
    let content = Content {
        range,
        access,
        registration,
        place: Place::Alone(number),
        core: Arc::clone(core),
    };
    // SAFETY: new, and not shared yet.
    unsafe { entry.occupy(content) };
    let entry = NonNull::from(Box::leak(entry));
    Ok(Guard::owning(entry))
}

/// Has the device, or the monitor, get room: gives up an idle entry, or waits for one that was given up
/// before, and takes its bytes off `relief`. False if that is 0 already, or there is no such entry, and nothing
/// has come or gone since the ledger's moves were `seen`, which was before the device was asked.
fn relieve<R: Registrar, M: Monitor>(
    core: &Arc<Core<R, M>>,
    relief: &mut usize,
    seen: u64,
) -> bool {
    if *relief == 0 {
        return false;
    }
    let (place, bytes) = {
        let mut ledger = lock(&core.ledger);
        let outgoing = ledger.evict(&core.slab).or_else(|| ledger.any_going());
        match outgoing {
            Some(outgoing) => outgoing,
            // There may be room now, or another's registration that serves.
            None if ledger.moves() != seen => (None, core.page_size),
            None => return false,
        }
    };
    *relief = relief.saturating_sub(bytes);
    core.bury();
    // Another thread may have been faster, and be destroying it.
    Completion::of(core, Vec::from_iter(place)).wait(RELIEF_TIMEOUT);
    true
}

impl<R: Registrar, M: Monitor> Core<R, M> {
    /// What to register for `range`.
    fn widened(&self, ledger: &Ledger<R::Access>, range: VaRange, access: R::Access) -> VaRange {
        // Somebody else's memory has no business under a key that a peer was given for some transfer.
        if self.is_fleeting(access) {
            return range;
        }
        let whole = self
            .widening
            .widen(range, |block| ledger.neighbours(block, access));
        if ledger.could_hold(self.pinned(whole)) {
            whole
        } else {
            range
        }
    }
}

/// A slot and room for a registration that is being made, and then its watch. Given back when
/// dropped.
struct Reservation<'c, R: Registrar, M: Monitor> {
    core: &'c Arc<Core<R, M>>,
    range: VaRange,
    access: R::Access,
    slot: Slot,
    cookie: Cookie,
    watched: bool,
    /// The ledger's count of links when the range was not found.
    links: u64,
    /// Its moves when the slot was set aside.
    moves: u64,
}

impl<'c, R: Registrar, M: Monitor> Reservation<'c, R, M> {
    /// Makes room. `None` if there is none to be had.
    fn new(
        core: &'c Arc<Core<R, M>>,
        mut ledger: MutexGuard<'c, Ledger<R::Access>>,
        range: VaRange,
        access: R::Access,
    ) -> Option<Self> {
        let bytes = core.pinned(range);
        let fleeting = core.is_fleeting(access);
        let links = ledger.links();
        loop {
            if let Some((slot, cookie)) = ledger.reserve(range, access, fleeting, bytes) {
                let reservation = Self {
                    core,
                    range,
                    access,
                    slot,
                    cookie,
                    watched: false,
                    links,
                    moves: ledger.moves(),
                };
                // What a drain has just given up goes before the device is asked for anything.
                core.unlock(ledger);
                return Some(reservation);
            }
            if !ledger.has_dead() {
                ledger.make_room(&core.slab, bytes)?;
            }
            // Room comes back when the dead are buried, ours and those that others have left.
            drop(ledger);
            core.bury();
            ledger = lock(&core.ledger);
        }
    }

    fn watch(&mut self) -> io::Result<()> {
        self.core.monitor.watch(self.range, self.cookie)?;
        self.watched = true;
        Ok(())
    }

    /// Enters the registration into the cache, unless its memory has changed since the watch was
    /// placed: then destroys it and returns `None`. If another thread was faster with what `wanted`
    /// needs, returns a guard of that one's.
    fn publish(
        self,
        registration: R::Registration,
        wanted: VaRange,
    ) -> Result<Option<Guard<R, M>>, Error> {
        let core = self.core;
        let mut ledger = match core.lock_current() {
            Ok(ledger) => ledger,
            Err(error) => {
                core.deregister(registration);
                return Err(error);
            }
        };
        let hit = ledger.was_hit(self.slot);
        let other = if hit || ledger.links() == self.links {
            None
        } else {
            core.find(&mut ledger, self.range, self.access)
        };
        if hit || other.is_some() {
            ledger.counts.retries += u64::from(other.is_none());
            core.unlock(ledger);
            core.deregister(registration);
            return Ok(other);
        }
        ledger.link(&core.slab, self.slot);
        let fleeting = core.is_fleeting(self.access);
        if !fleeting {
            core.hints.note(wanted.start(), self.slot, self.range);
        }
        let entry = core.slab.get(self.slot).expect("within the capacity");
        let content = Content {
            range: self.range,
            access: self.access,
            registration,
            place: Place::Slab(self.slot, self.cookie),
            core: Arc::clone(core),
        };
        // SAFETY: the slot was reserved vacant, and is this reservation's alone.
        unsafe { entry.publish(content, fleeting) };
        let guard = Guard::owning(NonNull::from(entry));
        let range = self.range;
        // The entry's now, whatever the rest comes to.
        mem::forget(self);
        core.unlock(ledger);
        tracing::trace!(?range, "registered");
        Ok(Some(guard))
    }
}

impl<R: Registrar, M: Monitor> Drop for Reservation<'_, R, M> {
    fn drop(&mut self) {
        if self.watched {
            self.core.unwatch(self.cookie);
        }
        let mut ledger = lock(&self.core.ledger);
        ledger.vacate(self.slot);
        self.core.tell_waiting(&ledger);
    }
}
