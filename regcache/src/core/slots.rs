//! [`Slots`]: the phase of each slot of the slab, and the registration in the slot.
//!
//! ```text
//!              reserve             link                 unlink
//!   Vacant ─────────────▶ Pending ────────▶ Linked ───────────────▶ Unlinked
//!     ▲                      │                                          │
//!     └──────────────────────┴────────────── vacate ────────────────────┘
//! ```
//!
//! - A *vacant* slot has no registration.
//! - A *pending* slot is reserved for a registration that is being made. If the memory changes
//!   meanwhile, the slot is marked as invalidated. Then the registration is dropped and made again,
//!   for the same slot and with a new watch. Other lookups wait for a pending registration that
//!   will serve them.
//! - A *linked* slot holds an entry that lookups find: the entry is in an index, and in the list of
//!   live entries.
//! - An *unlinked* slot holds an entry that no lookup finds and that is not deregistered yet.
//!
//! Only this file changes the phase of a slot, and only under the lock of the table.

use std::mem;

use crate::core::slot::{EntryId, Slot};
use crate::monitor::Cookie;
use crate::range::VaRange;
use crate::registrar::Access;
use crate::sys::prefetch::prefetch;

/// The number of slots from which on a cache gives memory back. Their records and entries take
/// about half a megabyte.
const LARGE: usize = 4096;

/// The phase of a slot; the head of this file shows the transitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The slot has no registration.
    Vacant,
    /// A registration for the slot is being made. `invalidated` is true if the registration's
    /// memory has changed since the slot was reserved.
    Pending { invalidated: bool },
    /// The entry is in its index and in the list of live entries.
    Linked,
    /// The entry is out of the index and not deregistered yet. `held` is true if guards kept the
    /// entry alive when it was unlinked. In that case the entry is on the list of draining entries.
    /// Otherwise the thread that unlinks the entry deregisters it, or puts it on the list of dead
    /// entries. A thread that begins to deregister the entry moves it to the list of draining ones.
    Unlinked { held: bool },
}

/// One slot's phase, and the registration that the slot is for.
#[derive(Debug)]
pub(crate) struct Record<A> {
    phase: Phase,
    pub(crate) cookie: Cookie,
    pub(crate) range: VaRange,
    pub(crate) access: A,
    /// True if the drop of the last guard has to revoke the registration.
    pub(crate) revocable: bool,
}

/// The registration that a slot is to be reserved for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<A> {
    pub(crate) range: VaRange,
    pub(crate) access: A,
    pub(crate) revocable: bool,
}

/// The phases and registrations of all slots; see the head of this file.
#[derive(Debug)]
pub(crate) struct Slots<A> {
    /// The records of all slots that were ever used. The index of a record is its slot.
    records: Vec<Record<A>>,
    vacant: Vec<Slot>,
    pending: Vec<Making>,
    serial: u32,
    /// The largest number of slots that were in use before one of them became vacant, since
    /// [`give_back`](Slots::give_back) was called last.
    peak: usize,
    /// The number of reservations ever made.
    reservations: u64,
    /// The number of slots of the slab.
    capacity: usize,
    page_size: usize,
}

/// A pending slot, and the number of its reservation. No other reservation has the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Making {
    pub(crate) slot: Slot,
    number: u64,
}

impl<A> Record<A> {
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }
}

impl<A: Access> Slots<A> {
    pub(crate) fn new(capacity: usize, page_size: usize) -> Self {
        Self {
            records: Vec::new(),
            vacant: Vec::new(),
            pending: Vec::new(),
            serial: 0,
            peak: 0,
            reservations: 0,
            capacity,
            page_size,
        }
    }

    /// Returns the record of a slot that may have been vacant for long.
    pub(crate) fn get(&self, slot: Slot) -> Option<&Record<A>> {
        self.records.get(slot.0 as usize)
    }

    /// Returns the record of a slot that is not vacant, or was not when the lock was taken.
    pub(crate) fn at(&self, slot: Slot) -> &Record<A> {
        &self.records[slot.0 as usize]
    }

    /// Begins to load the record of a slot.
    pub(crate) fn prefetch(&self, slot: Slot) {
        if let Some(record) = self.get(slot) {
            prefetch(record);
        }
    }

    /// Returns the number of bytes that the registration at a slot pins.
    pub(crate) fn bytes(&self, slot: Slot) -> usize {
        self.at(slot).range.pinned(self.page_size)
    }

    fn at_mut(&mut self, slot: Slot) -> &mut Record<A> {
        &mut self.records[slot.0 as usize]
    }

    /// Returns the slot whose watch has this cookie. Returns `None` if that watch's registration is
    /// gone.
    pub(crate) fn watched_by(&self, cookie: Cookie) -> Option<Slot> {
        let slot = Slot(cookie.place());
        let record = self.records.get(slot.0 as usize)?;
        (record.cookie == cookie).then_some(slot)
    }

    /// Turns a vacant slot into a pending one. Returns the slot and the cookie for its watch, or
    /// `None` if no slot is vacant.
    ///
    /// A slot becomes vacant only after its watch has ended, and each cookie has a new serial
    /// number. So no cookie names two watches, unless the serial number wraps. The number wraps
    /// after 2^32 misses of one cache. A cookie would be mistaken only if so many misses come
    /// between a watch and its report, or during one wait for a deregistration.
    pub(crate) fn reserve(&mut self, request: Request<A>) -> Option<(Slot, Cookie)> {
        let (slot, fresh) = match self.vacant.pop() {
            Some(slot) => (slot, false),
            None if self.records.len() == self.capacity => return None,
            // The cast loses no bits, because a slab has at most 2^24 slots.
            None => (Slot(self.records.len() as u32), true),
        };
        let cookie = self.next_cookie(slot);
        let record = Record {
            phase: Phase::Pending { invalidated: false },
            cookie,
            range: request.range,
            access: request.access,
            revocable: request.revocable,
        };
        self.reservations += 1;
        self.pending.push(Making {
            slot,
            number: self.reservations,
        });
        if fresh {
            self.records.push(record);
        } else {
            self.records[slot.0 as usize] = record;
        }
        Some((slot, cookie))
    }

    /// Returns the number of reservations ever made, and the number of slots in use. Without a
    /// reservation, the second number falls with each slot that becomes vacant.
    pub(crate) fn vacancies(&self) -> (u64, usize) {
        (self.reservations, self.in_use())
    }

    /// Returns true if most of the memory for slots is not needed any more.
    pub(crate) fn is_sparse(&self) -> bool {
        self.records.len() >= LARGE && self.in_use() <= self.peak / 4
    }

    /// Returns true if the slot is vacant.
    pub(crate) fn is_vacant(&self, slot: Slot) -> bool {
        self.get(slot).is_none_or(|it| it.phase == Phase::Vacant)
    }

    /// Frees the records after the last slot that is in use. From now on, the lowest vacant slot is
    /// used first.
    pub(crate) fn give_back(&mut self) {
        let last = self
            .records
            .iter()
            .rposition(|it| it.phase != Phase::Vacant);
        let used = last.map_or(0, |at| at + 1);
        self.records.truncate(used);
        self.records.shrink_to_fit();
        let slots = (0..used as u32).rev().map(Slot);
        self.vacant = slots.filter(|&slot| self.is_vacant(slot)).collect();
        self.peak = self.in_use();
    }

    fn next_cookie(&mut self, slot: Slot) -> Cookie {
        self.serial = self.serial.wrapping_add(1);
        Cookie::of(slot.0, self.serial)
    }

    /// Prepares a pending slot for another attempt: clears its mark, and returns the cookie for its
    /// next watch. The watch of the last attempt has ended, and its registration is deregistered.
    pub(crate) fn renew(&mut self, slot: Slot) -> Cookie {
        let cookie = self.next_cookie(slot);
        let record = self.at_mut(slot);
        record.phase = Phase::Pending { invalidated: false };
        record.cookie = cookie;
        cookie
    }

    /// Returns a registration in the making that will serve the request, and the bytes that it
    /// pins.
    pub(crate) fn being_made(
        &self,
        range: VaRange,
        access: A,
        revocable: bool,
    ) -> Option<(Making, usize)> {
        let serves = |making: &&Making| {
            let record = self.at(making.slot);
            record.range.contains(&range)
                && record.access.serves(access)
                && record.revocable == revocable
        };
        let making = *self.pending.iter().find(serves)?;
        Some((making, self.bytes(making.slot)))
    }

    /// Returns true if the registration is still being made.
    pub(crate) fn is_pending(&self, making: Making) -> bool {
        self.pending.contains(&making)
    }

    /// Returns the number of pending slots.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Returns the number of bytes that the registrations in the making pin.
    pub(crate) fn pending_bytes(&self) -> usize {
        let bytes = self.pending.iter().map(|it| self.bytes(it.slot));
        bytes.sum()
    }

    /// Marks a pending slot as invalidated, so that its registration is made again.
    pub(crate) fn invalidate(&mut self, slot: Slot) {
        self.at_mut(slot).phase = Phase::Pending { invalidated: true };
    }

    /// Marks as invalidated the pending slots for whose ranges `meant` returns true.
    pub(crate) fn invalidate_pending(&mut self, meant: impl Fn(&VaRange) -> bool) {
        for i in 0..self.pending.len() {
            let record = self.at_mut(self.pending[i].slot);
            if meant(&record.range) {
                record.phase = Phase::Pending { invalidated: true };
            }
        }
    }

    /// Returns true if the pending slot is marked as invalidated.
    pub(crate) fn was_invalidated(&self, slot: Slot) -> bool {
        self.at(slot).phase == Phase::Pending { invalidated: true }
    }

    /// Returns the pending slots that are marked as invalidated.
    pub(crate) fn invalidated(&self) -> impl Iterator<Item = Slot> {
        let pending = self.pending.iter().map(|it| it.slot);
        pending.filter(|&slot| self.was_invalidated(slot))
    }

    /// Turns a pending slot into a linked one.
    pub(crate) fn link(&mut self, slot: Slot) {
        self.remove_pending(slot);
        self.at_mut(slot).phase = Phase::Linked;
    }

    /// Turns a linked slot into an unlinked one.
    pub(crate) fn unlink(&mut self, slot: Slot, held: bool) {
        self.at_mut(slot).phase = Phase::Unlinked { held };
    }

    /// Turns a pending or unlinked slot into a vacant one. Returns the previous phase and the
    /// number of bytes that the registration pinned.
    pub(crate) fn vacate(&mut self, slot: Slot) -> (Phase, usize) {
        self.peak = self.peak.max(self.in_use());
        let bytes = self.bytes(slot);
        let before = mem::replace(&mut self.at_mut(slot).phase, Phase::Vacant);
        if matches!(before, Phase::Pending { .. }) {
            self.remove_pending(slot);
        }
        self.vacant.push(slot);
        (before, bytes)
    }

    fn remove_pending(&mut self, slot: Slot) {
        if let Some(i) = self.pending.iter().rposition(|it| it.slot == slot) {
            self.pending.swap_remove(i);
        }
    }

    /// Returns the id of the registration at a slot.
    pub(crate) fn id(&self, slot: Slot) -> EntryId {
        EntryId::Cached(slot, self.at(slot).cookie)
    }

    /// Returns true if the registration that had this slot and this cookie no longer exists.
    pub(crate) fn is_gone(&self, slot: Slot, cookie: Cookie) -> bool {
        let exists = |record: &Record<A>| record.cookie == cookie && record.phase != Phase::Vacant;
        !self.get(slot).is_some_and(exists)
    }

    /// Returns the number of slots of the slab.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the number of slots that were ever used.
    pub(crate) fn ever_used(&self) -> usize {
        self.records.len()
    }

    /// Returns the number of slots that are not vacant.
    pub(crate) fn in_use(&self) -> usize {
        self.records.len() - self.vacant.len()
    }
}
