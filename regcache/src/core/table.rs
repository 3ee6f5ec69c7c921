//! [`Ledger`]: everything that the cache's lock guards.
//!
//! For each slot of the slab, what it is used for; which slots are vacant; the indexes; the budget;
//! and in which order entries go (`lines.rs`). The content of the dead is taken out outside the lock.
//! Nothing here registers, deregisters or asks the monitor.
//!
//! There are two indexes. An entry that is *fleeting* goes with its last guard, as remote access does
//! if its keys are to be revoked; it serves only others of its kind, lest a guard for something
//! else keep it.

use std::collections::BTreeMap;

use crate::cache::Place;
use crate::core::budget::Budget;
use crate::core::entry::Entry;
use crate::core::eviction::{Found, Line, Lines};
use crate::core::index::Index;
use crate::core::slab::{Slab, Slot};
use crate::monitor::Cookie;
use crate::stats::Stats;
use crate::{Access, VaRange};

/// What a slot is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing.
    Vacant,
    /// A registration that is being made; `hit` if its memory has changed meanwhile.
    Pending { hit: bool },
    /// An entry in its index, and in the line of the live.
    Linked,
    /// Out of the index, with its content still to be destroyed: `held` by guards, and among the leaving; or
    /// among the dead, and then the leaving.
    Unlinked { held: bool },
}

#[derive(Debug)]
struct Record<A> {
    phase: Phase,
    cookie: Cookie,
    range: VaRange,
    access: A,
    fleeting: bool,
    bytes: usize,
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Ledger<A> {
    records: Vec<Record<A>>,
    vacant: Vec<Slot>,
    pending: Vec<Slot>,
    index: Index<A>,
    fleeting: Index<A>,
    budget: Budget,
    lines: Lines,
    /// What has happened, and what is unreleased.
    pub(crate) counts: Stats,
    serial: u32,
    links: u64,
    gone: u64,
    /// Registrations that are not kept, and so in no slot: a number for each, and its range.
    alone: BTreeMap<u64, VaRange>,
    last_alone: u64,
    /// Threads that want to know when a registration is gone.
    pub(crate) waiting: usize,
}

impl<A: Access> Ledger<A> {
    pub(crate) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            records: Vec::new(),
            vacant: Vec::new(),
            pending: Vec::new(),
            index: Index::new(),
            fleeting: Index::new(),
            budget: Budget::new(max_entries, max_bytes),
            lines: Lines::new(),
            counts: Stats::default(),
            serial: 0,
            links: 0,
            gone: 0,
            alone: BTreeMap::new(),
            last_alone: 0,
            waiting: 0,
        }
    }

    pub(crate) fn could_hold(&self, bytes: usize) -> bool {
        self.budget.could_hold(bytes)
    }

    /// The entry to serve `range` with `access`, with a reference for the caller, and its range.
    pub(crate) fn find<'s, T>(
        &mut self,
        slab: &'s Slab<T>,
        range: VaRange,
        access: A,
        fleeting: bool,
    ) -> Option<(Slot, &'s Entry<T>, VaRange)> {
        loop {
            let slot = self.index_of_mut(fleeting).find(range, access)?;
            let record = self.record(slot);
            // So by the index's invariant, if `Access` keeps its promises.
            if !(record.range.contains(&range) && record.access.serves(access)) {
                return None;
            }
            let whole = record.range;
            let entry = slab.get(slot)?;
            if entry.acquire() {
                return Some((slot, entry, whole));
            }
            // It is live, and has no more references to give (`entry.rs`, point 4).
            self.unlink(slab, slot);
        }
    }

    /// How many registrations were ever entered into an index. What was not found is not there as long
    /// as this does not move.
    pub(crate) fn links(&self) -> u64 {
        self.links
    }

    /// How many registrations were ever entered into an index, or destroyed after. What there was no room for
    /// has no room as long as this does not move.
    pub(crate) fn moves(&self) -> u64 {
        self.links + self.gone
    }

    /// The ranges registered for `access` that overlap `range` or touch it.
    pub(crate) fn neighbours(&self, range: VaRange, access: A) -> impl Iterator<Item = VaRange> {
        let slots = self.index.neighbours(range, access);
        slots.map(|slot| self.record(slot).range)
    }

    fn index_of_mut(&mut self, fleeting: bool) -> &mut Index<A> {
        if fleeting {
            &mut self.fleeting
        } else {
            &mut self.index
        }
    }

    /// Sets a slot and room aside for a registration, if there is room.
    pub(crate) fn reserve(
        &mut self,
        range: VaRange,
        access: A,
        fleeting: bool,
        bytes: usize,
    ) -> Option<(Slot, Cookie)> {
        if !self.budget.reserve(bytes) {
            return None;
        }
        // Never used twice: a slot comes back after its watch has gone, and then with another
        // serial (2^32 misses of one cache would have to happen between a watch and its report, or
        // while somebody waits for a registration to go, for that to be wrong).
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
            fleeting,
            bytes,
        };
        self.pending.push(slot);
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

    /// Enters a pending registration into its index, after all that it contains was taken out. The entry
    /// must be published before the lock is released.
    pub(crate) fn link<T>(&mut self, slab: &Slab<T>, slot: Slot) {
        let &Record {
            range,
            access,
            fleeting,
            ..
        } = self.record(slot);
        while let Some(smaller) = self.index_of_mut(fleeting).contained(range, access) {
            self.unlink(slab, smaller);
            self.counts.merges += 1;
        }
        self.index_of_mut(fleeting).insert(range, access, slot);
        self.lines.push(Line::Live, slot);
        self.links += 1;
        self.no_longer_pending(slot);
        self.record_mut(slot).phase = Phase::Linked;
        self.counts.misses += 1;
    }

    fn no_longer_pending(&mut self, slot: Slot) {
        if let Some(i) = self.pending.iter().rposition(|&its| its == slot) {
            self.pending.swap_remove(i);
        }
    }

    /// Notes that the memory under a watch has changed: an entry is given up, a registration that is
    /// being made will be made again. False if it was given up before.
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
                true
            }
            Phase::Linked => {
                self.unlink(slab, slot);
                self.counts.invalidations += 1;
                true
            }
            Phase::Vacant | Phase::Unlinked { .. } => false,
        }
    }

    /// Takes out all entries that overlap `range`, has registrations of it that are being made start
    /// over, and returns how to tell when those given up are gone, if they are not yet.
    pub(crate) fn give_up<T>(&mut self, slab: &Slab<T>, range: VaRange) -> Vec<Place> {
        self.unlink_over(slab, range, |_| true);
        self.leaving(|its| its.overlaps(&range))
    }

    /// Takes out the entries that would serve `range` with some access, and has registrations that would
    /// start over.
    pub(crate) fn distrust<T>(&mut self, slab: &Slab<T>, range: VaRange) {
        let given_up = self.unlink_over(slab, range, |its| its.contains(&range));
        self.counts.invalidations += given_up;
    }

    /// Takes out those entries that overlap `range` and are `meant`, has such registrations that are
    /// being made start over, and returns how many were taken out.
    fn unlink_over<T>(
        &mut self,
        slab: &Slab<T>,
        range: VaRange,
        meant: impl Fn(&VaRange) -> bool,
    ) -> u64 {
        let linked = [&self.index, &self.fleeting];
        let mut linked: Vec<_> = linked.iter().flat_map(|it| it.overlapping(range)).collect();
        linked.retain(|&slot| meant(&self.record(slot).range));
        for &slot in &linked {
            self.unlink(slab, slot);
        }
        for i in 0..self.pending.len() {
            let record = self.record_mut(self.pending[i]);
            if record.range.overlaps(&range) && meant(&record.range) {
                record.phase = Phase::Pending { hit: true };
            }
        }
        linked.len() as u64
    }

    /// What of these ranges is there and not cached: given up and not gone, being made again, or never
    /// kept.
    pub(crate) fn leaving(&self, of: impl Fn(&VaRange) -> bool) -> Vec<Place> {
        let (dead, leaving) = (self.lines.all(Line::Dead), self.lines.all(Line::Leaving));
        let pending = self.pending.iter().copied();
        let hit = pending.filter(|&slot| self.was_hit(slot));
        let records = dead
            .chain(leaving)
            .chain(hit)
            .map(|slot| (slot, self.record(slot)));
        let slots = records.filter(|(_, record)| of(&record.range));
        let alone = self.alone.iter().filter(|(_, its)| of(its));
        slots
            .map(|(slot, record)| Place::Slab(slot, record.cookie))
            .chain(alone.map(|(&number, _)| Place::Alone(number)))
            .collect()
    }

    /// A registration is made that is not kept. Returns the number to end it by.
    pub(crate) fn alone(&mut self, range: VaRange) -> u64 {
        self.last_alone += 1;
        self.alone.insert(self.last_alone, range);
        self.counts.misses += 1;
        self.counts.uncached += 1;
        self.last_alone
    }

    /// The registration of this number is gone.
    pub(crate) fn alone_no_more(&mut self, number: u64) {
        self.alone.remove(&number);
        self.gone += 1;
    }

    /// True if what was there is gone.
    pub(crate) fn is_gone(&self, place: Place) -> bool {
        match place {
            Place::Slab(slot, cookie) => {
                let record = self.record(slot);
                record.cookie != cookie || record.phase == Phase::Vacant
            }
            Place::Alone(number) => !self.alone.contains_key(&number),
        }
    }

    /// Takes a fleeting entry out, if nobody uses it.
    pub(crate) fn let_go<T>(&mut self, slab: &Slab<T>, slot: Slot, cookie: Cookie) {
        let idle = slab.get(slot).is_some_and(|entry| !entry.is_in_use());
        if idle && self.record(slot).cookie == cookie {
            self.unlink(slab, slot);
        }
    }

    /// Takes idle entries out, those least needed first, until another one of `bytes` has room;
    /// none are, and it is `None`, if that cannot be reached.
    pub(crate) fn make_room<T>(&mut self, slab: &Slab<T>, bytes: usize) -> Option<()> {
        let mut victims = Vec::new();
        let mut freed = 0;
        while !self.budget.would_hold(bytes, victims.len(), freed) {
            let Some(slot) = self.victim(slab) else {
                for slot in victims.into_iter().rev() {
                    self.lines.put_back(slot);
                }
                return None;
            };
            freed += self.record(slot).bytes;
            victims.push(slot);
        }
        for slot in victims {
            self.give_up_victim(slab, slot);
        }
        Some(())
    }

    /// Takes the idle entry that is least needed out. Returns how to tell when it is gone, unless somebody has
    /// got hold of it meanwhile, and the bytes that it pins.
    pub(crate) fn evict<T>(&mut self, slab: &Slab<T>) -> Option<(Option<Place>, usize)> {
        let slot = self.victim(slab)?;
        self.give_up_victim(slab, slot);
        Some((self.going(slot), self.record(slot).bytes))
    }

    /// One that was given up and that nobody uses: some thread destroys it, or is about to. As
    /// [`evict`](Self::evict) returns it.
    pub(crate) fn any_going(&self) -> Option<(Option<Place>, usize)> {
        let (dead, leaving) = (self.lines.all(Line::Dead), self.lines.all(Line::Leaving));
        dead.chain(leaving).find_map(|slot| {
            let place = self.going(slot)?;
            Some((Some(place), self.record(slot).bytes))
        })
    }

    fn going(&self, slot: Slot) -> Option<Place> {
        let record = self.record(slot);
        let going = record.phase == Phase::Unlinked { held: false };
        going.then_some(Place::Slab(slot, record.cookie))
    }

    fn give_up_victim<T>(&mut self, slab: &Slab<T>, slot: Slot) {
        self.lines.put_back(slot);
        self.unlink(slab, slot);
        self.counts.evictions += 1;
    }

    /// The idle entry that is least needed, out of the line of the live.
    fn victim<T>(&mut self, slab: &Slab<T>) -> Option<Slot> {
        self.lines.victim(|slot| match slab.get(slot) {
            Some(entry) if !entry.is_in_use() && !entry.was_used() => Found::Idle,
            _ => Found::Used,
        })
    }

    /// Reports may have been lost, or all is to go: takes all entries out, and has registrations that
    /// are being made start over.
    pub(crate) fn give_up_all<T>(&mut self, slab: &Slab<T>) {
        for i in 0..self.pending.len() {
            self.record_mut(self.pending[i]).phase = Phase::Pending { hit: true };
        }
        while let Some(slot) = self.lines.head(Line::Live)
            && self.unlink(slab, slot)
        {}
    }

    /// Takes an entry out of index and order and kills it; false if it is not linked. If nobody uses it, it
    /// is among the dead now; if not, the last guard will see to it.
    fn unlink<T>(&mut self, slab: &Slab<T>, slot: Slot) -> bool {
        let &Record {
            phase,
            range,
            access,
            fleeting,
            bytes,
            ..
        } = self.record(slot);
        if phase != Phase::Linked {
            return false;
        }
        let Some(entry) = slab.get(slot) else {
            return false;
        };
        self.index_of_mut(fleeting).remove(range, access);
        self.lines.remove(Line::Live, slot);
        // SAFETY: linked entries are live, and the phase below makes this the only kill.
        let held = !unsafe { entry.kill() };
        self.record_mut(slot).phase = Phase::Unlinked { held };
        if held {
            self.lines.push(Line::Leaving, slot);
            self.counts.unreleased += 1;
            self.counts.unreleased_bytes += bytes;
        } else {
            self.lines.push(Line::Dead, slot);
        }
        true
    }

    /// True if there is something to bury.
    pub(crate) fn has_dead(&self) -> bool {
        self.lines.head(Line::Dead).is_some()
    }

    /// One of the dead, which the caller must take the content of.
    pub(crate) fn pop_dead(&mut self) -> Option<Slot> {
        let slot = self.lines.head(Line::Dead)?;
        self.lines.remove(Line::Dead, slot);
        self.lines.push(Line::Leaving, slot);
        Some(slot)
    }

    /// Gives up a slot that [`reserve`](Self::reserve) gave, its registration having been destroyed
    /// or never made.
    pub(crate) fn vacate(&mut self, slot: Slot) {
        let record = self.record_mut(slot);
        let bytes = record.bytes;
        match std::mem::replace(&mut record.phase, Phase::Vacant) {
            Phase::Pending { .. } => self.no_longer_pending(slot),
            Phase::Unlinked { held } => {
                self.lines.remove(Line::Leaving, slot);
                self.gone += 1;
                if held {
                    self.counts.unreleased -= 1;
                    self.counts.unreleased_bytes -= bytes;
                }
            }
            Phase::Linked | Phase::Vacant => {}
        }
        self.budget.release(bytes);
        self.vacant.push(slot);
    }

    /// How many slots were ever used.
    pub(crate) fn slots(&self) -> u32 {
        self.records.len() as u32
    }

    /// All but the hits.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            entries: self.records.len() - self.vacant.len(),
            bytes: self.budget.bytes(),
            ..self.counts
        }
    }

    fn record(&self, slot: Slot) -> &Record<A> {
        &self.records[slot.0 as usize]
    }

    fn record_mut(&mut self, slot: Slot) -> &mut Record<A> {
        &mut self.records[slot.0 as usize]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_entry_without_references_to_give_makes_way_for_another_that_serves() {
        let slab: Slab<u8> = Slab::new(8).unwrap();
        let mut ledger: Ledger<()> = Ledger::new(8, 1 << 20);
        let range =
            |s: usize, e: usize| VaRange::new(std::ptr::without_provenance(s), e - s).unwrap();
        let enter = |ledger: &mut Ledger<()>, r| {
            let found = ledger.find(&slab, r, (), false);
            assert!(found.is_none());
            let (slot, _) = ledger.reserve(r, (), false, 1).unwrap();
            ledger.link(&slab, slot);
            // SAFETY: reserved, so vacant and nobody else's.
            unsafe { slab.get(slot).unwrap().publish(0, false) };
            slot
        };
        let a = enter(&mut ledger, range(10, 20));
        let b = enter(&mut ledger, range(12, 22));
        slab.get(b).unwrap().saturate();
        let (found, ..) = ledger.find(&slab, range(13, 19), (), false).unwrap();
        assert_eq!(found, a);
    }
}
