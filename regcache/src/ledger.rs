//! [`Ledger`]: everything that the cache's lock guards.
//!
//! For each slot of the slab, what it is used for; which slots are vacant; the index; the budget;
//! and the dead: entries whose content is to be taken out by whoever gets to it first, outside the
//! lock. Nothing here registers, deregisters or asks the monitor.

use crate::budget::{Budget, Found};
use crate::entry::Entry;
use crate::index::Index;
use crate::monitor::Cookie;
use crate::slab::{Slab, Slot};
use crate::{Access, VaRange};

/// What a slot is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing.
    Vacant,
    /// A registration that is being made; `hit` if its memory has changed meanwhile.
    Pending { hit: bool },
    /// A live entry, in the index. `enlisted` is its time in the budget's order.
    Linked { enlisted: u64 },
    /// A dead entry, out of the index, whose content has not been destroyed yet.
    Unlinked { next_dead: Option<Slot> },
}

#[derive(Debug)]
struct Record<A> {
    phase: Phase,
    cookie: Cookie,
    range: VaRange,
    access: A,
    bytes: usize,
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Ledger<A> {
    records: Vec<Record<A>>,
    vacant: Vec<Slot>,
    index: Index<A>,
    budget: Budget,
    dead: Option<Slot>,
    serial: u32,
    hits_of_the_gone: u64,
}

impl<A: Access> Ledger<A> {
    pub(crate) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            records: Vec::new(),
            vacant: Vec::new(),
            index: Index::new(),
            budget: Budget::new(max_entries, max_bytes),
            dead: None,
            serial: 0,
            hits_of_the_gone: 0,
        }
    }

    pub(crate) fn could_hold(&self, bytes: usize) -> bool {
        self.budget.could_hold(bytes)
    }

    /// The entry to serve `range` with `access`, with a reference for the caller.
    pub(crate) fn find<'s, T>(
        &self,
        slab: &'s Slab<T>,
        range: VaRange,
        access: A,
    ) -> Option<(Slot, &'s Entry<T>)> {
        let slot = self.index.find(range, access)?;
        let record = self.record(slot);
        // So by the index's invariant, if `Access` keeps its promises.
        if !(record.range.contains(&range) && record.access.serves(access)) {
            return None;
        }
        let entry = slab.get(slot)?;
        entry.acquire().then_some((slot, entry))
    }

    /// Sets a slot and room aside for a registration, if there is room.
    pub(crate) fn reserve(
        &mut self,
        range: VaRange,
        access: A,
        bytes: usize,
    ) -> Option<(Slot, Cookie)> {
        if !self.budget.reserve(bytes) {
            return None;
        }
        // Never used twice: a slot comes back after its watch has gone, and then with another
        // serial (2^32 misses of one cache would have to happen between a watch and its report for
        // that to be wrong).
        self.serial = self.serial.wrapping_add(1);
        let (slot, fresh) = match self.vacant.pop() {
            Some(slot) => (slot, false),
            // Slots in use are bounded by the budget's entries, which are bounded by u32.
            None => (Slot(self.records.len() as u32), true),
        };
        let cookie = Cookie(u64::from(self.serial) << 32 | u64::from(slot.0));
        let record = Record {
            phase: Phase::Pending { hit: false },
            cookie,
            range,
            access,
            bytes,
        };
        if fresh {
            self.records.push(record);
        } else {
            self.records[slot.0 as usize] = record;
        }
        Some((slot, cookie))
    }

    /// True if the memory of a pending registration has changed.
    pub(crate) fn was_hit(&self, slot: Slot) -> bool {
        self.record(slot).phase == Phase::Pending { hit: true }
    }

    /// Enters a pending registration into the index, after all that it contains was taken out.
    /// Returns how many those were. The entry must be published before the lock is released.
    pub(crate) fn link<T>(&mut self, slab: &Slab<T>, slot: Slot, now: u64) -> u64 {
        let (range, access) = (self.record(slot).range, self.record(slot).access);
        let contained: Vec<_> = self.index.contained(range, access).collect();
        for &smaller in &contained {
            self.unlink(slab, smaller);
        }
        self.index.insert(range, access, slot);
        self.budget.enlist(slot, now);
        self.record_mut(slot).phase = Phase::Linked { enlisted: now };
        contained.len() as u64
    }

    /// Notes that the memory under a watch has changed. True if an entry was given up for it.
    pub(crate) fn invalidate<T>(&mut self, slab: &Slab<T>, cookie: Cookie) -> bool {
        let slot = Slot(cookie.0 as u32);
        let Some(record) = self.records.get_mut(slot.0 as usize) else {
            return false;
        };
        if record.cookie != cookie {
            return false;
        }
        match record.phase {
            Phase::Pending { .. } => {
                record.phase = Phase::Pending { hit: true };
                false
            }
            Phase::Linked { .. } => {
                self.unlink(slab, slot);
                true
            }
            Phase::Vacant | Phase::Unlinked { .. } => false,
        }
    }

    /// Takes idle entries out, the least recently used first, until another one of `bytes` has room,
    /// and returns how many; none are taken out if that cannot be reached.
    pub(crate) fn make_room<T>(&mut self, slab: &Slab<T>, bytes: usize, now: u64) -> Option<u64> {
        let mut victims = Vec::new();
        let mut freed = 0;
        while !self.budget.would_hold(bytes, victims.len(), freed) {
            let Some(slot) = self.oldest_idle(slab, now) else {
                for slot in victims {
                    self.budget.enlist(slot, self.enlisted(slot));
                }
                return None;
            };
            freed += self.record(slot).bytes;
            victims.push(slot);
        }
        for &slot in &victims {
            self.unlink(slab, slot);
        }
        Some(victims.len() as u64)
    }

    /// Takes the least recently used idle entry out, and returns the bytes that it pins.
    pub(crate) fn evict<T>(&mut self, slab: &Slab<T>, now: u64) -> Option<usize> {
        let slot = self.oldest_idle(slab, now)?;
        self.unlink(slab, slot);
        Some(self.record(slot).bytes)
    }

    /// The least recently used idle entry, struck from the budget's order.
    fn oldest_idle<T>(&mut self, slab: &Slab<T>, now: u64) -> Option<Slot> {
        let Self {
            records, budget, ..
        } = self;
        budget.victim(now, |slot, enlisted| {
            let found = match slab.get(slot) {
                Some(entry) if entry.is_in_use() => Found::Busy,
                Some(entry) if entry.last_used() > enlisted => Found::UsedAt(entry.last_used()),
                Some(_) => Found::Idle,
                None => Found::Busy,
            };
            let enlisted = match found {
                Found::Busy => now,
                Found::UsedAt(time) => time,
                Found::Idle => enlisted,
            };
            records[slot.0 as usize].phase = Phase::Linked { enlisted };
            found
        })
    }

    fn enlisted(&self, slot: Slot) -> u64 {
        match self.record(slot).phase {
            Phase::Linked { enlisted } => enlisted,
            _ => 0,
        }
    }

    /// Reports may have been lost: takes all entries out, and counts pending ones as hit.
    pub(crate) fn distrust<T>(&mut self, slab: &Slab<T>) {
        for record in &mut self.records {
            if let Phase::Pending { hit } = &mut record.phase {
                *hit = true;
            }
        }
        self.unlink_all(slab);
    }

    /// Takes all entries out.
    pub(crate) fn unlink_all<T>(&mut self, slab: &Slab<T>) {
        for i in 0..self.records.len() {
            if matches!(self.records[i].phase, Phase::Linked { .. }) {
                self.unlink(slab, Slot(i as u32));
            }
        }
    }

    /// Takes a linked entry out of index and order and kills it. If nobody uses it, it is among the
    /// dead now; if not, the last guard will see to it.
    fn unlink<T>(&mut self, slab: &Slab<T>, slot: Slot) {
        let record = &mut self.records[slot.0 as usize];
        let Phase::Linked { enlisted } = record.phase else {
            return;
        };
        let Some(entry) = slab.get(slot) else { return };
        self.index.remove(record.range, record.access);
        self.budget.strike(slot, enlisted);
        record.phase = Phase::Unlinked {
            next_dead: self.dead,
        };
        // SAFETY: linked entries are live, and the phase above makes this the only kill.
        if unsafe { entry.kill() } {
            self.dead = Some(slot);
        }
    }

    /// True if there is something to bury.
    pub(crate) fn has_dead(&self) -> bool {
        self.dead.is_some()
    }

    /// One of the dead, which the caller must take the content of.
    pub(crate) fn pop_dead(&mut self) -> Option<Slot> {
        let slot = self.dead?;
        if let Phase::Unlinked { next_dead } = self.record(slot).phase {
            self.dead = next_dead;
        }
        Some(slot)
    }

    /// Gives up a slot that [`reserve`](Self::reserve) gave, its registration having been destroyed
    /// or never made. `hits` are those that its entry has served.
    pub(crate) fn vacate(&mut self, slot: Slot, hits: u64) {
        let record = self.record_mut(slot);
        record.phase = Phase::Vacant;
        let bytes = record.bytes;
        self.budget.release(bytes);
        self.vacant.push(slot);
        self.hits_of_the_gone += hits;
    }

    /// Lookups served by all entries, past and present.
    pub(crate) fn hits<T>(&self, slab: &Slab<T>) -> u64 {
        let present: u64 = (0..self.records.len())
            .filter(|&i| {
                matches!(
                    self.records[i].phase,
                    Phase::Linked { .. } | Phase::Unlinked { .. }
                )
            })
            .filter_map(|i| slab.get(Slot(i as u32)))
            .map(Entry::hits)
            .sum();
        self.hits_of_the_gone + present
    }

    /// Entries and bytes held.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.records.len() - self.vacant.len(), self.budget.bytes())
    }

    fn record(&self, slot: Slot) -> &Record<A> {
        &self.records[slot.0 as usize]
    }

    fn record_mut(&mut self, slot: Slot) -> &mut Record<A> {
        &mut self.records[slot.0 as usize]
    }
}
