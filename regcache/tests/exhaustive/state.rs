//! Everything that there is in the model, small enough to visit every combination that can come
//! about.

/// Sizes of the arrays below; a scenario may use less.
pub(crate) const PAGES: usize = 2;
pub(crate) const SLOTS: usize = 2;
pub(crate) const THREADS: usize = 3;
/// One in each slot, and one that a thread has not published.
const REGISTRATIONS: usize = SLOTS + THREADS;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State {
    /// Threads and pages of the scenario.
    pub(crate) in_use: (u8, u8),
    pub(crate) kernel: Kernel,
    /// What the device has pinned.
    pub(crate) pins: [Option<Pin>; REGISTRATIONS],
    pub(crate) cache: Cache,
    pub(crate) threads: [Thread; THREADS],
    pub(crate) violation: Option<Violation>,
}

/// Memory, and the driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Kernel {
    pub(crate) pages: [Page; PAGES],
    pub(crate) generation: u8,
    /// Something was reported since the last LAST.
    pub(crate) last_owed: bool,
    /// By the slot that is the cookie.
    pub(crate) watches: [Option<Watch>; SLOTS],
    /// Invalidations that were left to the worker.
    pub(crate) deferred: [bool; PAGES],
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Page {
    pub(crate) mapped: bool,
    /// Which physical page is there, or was there last.
    pub(crate) version: u8,
    /// The version that a lookup that begins now may not be older than: every change that made
    /// an older one go has returned, or a mapping call that was given its address has.
    pub(crate) floor: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Watch {
    pub(crate) page: u8,
    pub(crate) hit: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pin {
    pub(crate) page: u8,
    pub(crate) version: u8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Cache {
    pub(crate) drained: u8,
    /// Who has the ledger's lock.
    pub(crate) lock: Option<u8>,
    pub(crate) slots: [Slot; SLOTS],
}

/// An entry and its record in the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot {
    pub(crate) phase: Phase,
    pub(crate) page: u8,
    pub(crate) live: bool,
    pub(crate) references: u8,
    /// The page and the registration, by its place among the pins.
    pub(crate) content: Option<(u8, u8)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Phase {
    #[default]
    Vacant,
    Pending {
        hit: bool,
    },
    Linked,
    /// `queued` if it waits to be buried.
    Unlinked {
        queued: bool,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Thread {
    /// Operations that it has still to begin.
    pub(crate) left: u8,
    pub(crate) guard: Option<Guard>,
    /// Until its answer is found.
    pub(crate) lookup: Option<Lookup>,
    pub(crate) at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Guard {
    /// A reference to this slot's entry.
    Cached(u8),
    /// A registration that is not cached.
    Own(u8),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lookup {
    pub(crate) page: u8,
    /// The page's `floor` when the lookup began.
    pub(crate) floor: u8,
    pub(crate) attempts: u8,
}

/// What a thread does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum At {
    #[default]
    Idle,
    /// In the kernel.
    Change(Change),
    /// Hit: compare what was loaded of the generation with `drained`.
    Compare { generation: u8 },
    /// Hit: take a reference to an entry that the hints name.
    Probe,
    /// Hit, with a fault: take a reference to the entry that was live.
    Take { slot: u8 },
    /// Hit: give back the reference to an entry that does not serve.
    Release { slot: u8 },
    /// Take the lock, and look at the generation.
    Enter(Goal),
    /// Have the lock; read one report.
    Drain {
        goal: Goal,
        /// The generation before.
        before: u8,
        /// With a fault: reported and not yet killed, one bit a slot.
        held_back: u8,
    },
    /// Have the lock; all is reported: store `drained`.
    Drained {
        goal: Goal,
        generation: u8,
        held_back: u8,
    },
    /// Have the lock, with a fault: kill what was held back.
    Kill { goal: Goal, held_back: u8 },
    /// Have the lock, and all that was hit is out.
    Current(Goal),
    /// Have the lock; choose an idle entry to give up.
    ChooseVictim,
    /// Have the lock; give it up.
    Evict { victim: u8 },
    /// Take the lock, to reserve a slot.
    Reenter,
    /// Ask the driver to watch; with a fault, after registering.
    Watch { slot: u8, pin: Option<u8> },
    /// Register, when the invalidations `awaited` are over: one bit a thread.
    Register { slot: u8, awaited: u8 },
    /// Register what will not be cached.
    Uncached,
    /// Destroy the registration in a dead entry.
    TakeOut { slot: u8, then: Then },
    /// Destroy a registration that was not published.
    Deregister { slot: u8, pin: u8, then: Then },
    /// End the slot's watch.
    Unwatch { slot: u8, then: Then },
    /// Take the lock and give the slot back.
    Vacate { slot: u8, then: Then },
    /// Take the lock and look for something to bury.
    Bury(Buried),
}

/// munmap, or a discard: the mapping stays, another page comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Change {
    pub(crate) page: u8,
    pub(crate) unmaps: bool,
    pub(crate) stage: Stage,
    /// Watches that it has hit, one bit a slot.
    pub(crate) struck: u8,
    /// Those of them that were reported since.
    pub(crate) reported: u8,
    /// The first version after it.
    pub(crate) next: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    /// `invalidate_range_start`.
    Start,
    /// The page table entry goes.
    Zap,
    /// With a fault: the report.
    Report,
    /// `invalidate_range_end`, and the call returns.
    End,
}

/// What the lock is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Goal {
    Find,
    Publish { slot: u8, pin: u8 },
}

/// What comes when a registration has been destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Then {
    /// It was a guard's drop.
    Idle,
    /// The lookup goes on behind the lock.
    Slow,
    Bury(Buried),
}

/// What comes when all are buried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Buried {
    Return,
    Reserve,
    /// A registration is made for this slot.
    Register(u8),
}

/// What must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Violation {
    /// A lookup returned a registration that was made before the change.
    Stale,
    /// A lookup returned a registration of another range.
    WrongRange,
    /// A reader looked into an entry that is vacant.
    Vacant,
    /// A registration was destroyed that somebody uses.
    InUse,
    /// A registration was destroyed twice.
    Twice,
}

impl State {
    /// The change that a thread is in the middle of.
    pub(crate) fn change(&mut self, thread: usize) -> Option<&mut Change> {
        match &mut self.threads[thread].at {
            At::Change(change) => Some(change),
            _ => None,
        }
    }

    /// The entry of a page in the index.
    pub(crate) fn find(&self, page: u8) -> Option<u8> {
        let is_it = |slot: &Slot| slot.phase == Phase::Linked && slot.page == page;
        self.cache.slots.iter().position(is_it).map(|i| i as u8)
    }

    /// The first of `slots` that is vacant.
    pub(crate) fn find_vacant(&self, slots: usize) -> Option<u8> {
        let mut slots = self.cache.slots[..slots].iter();
        let vacant = slots.position(|slot| slot.phase == Phase::Vacant)?;
        Some(vacant as u8)
    }

    pub(crate) fn slot(&mut self, slot: u8) -> &mut Slot {
        &mut self.cache.slots[usize::from(slot)]
    }

    /// All threads are done.
    pub(crate) fn is_over(&self) -> bool {
        let done = |t: &Thread| t.left == 0 && t.guard.is_none() && t.at == At::Idle;
        self.threads.iter().all(done) && !self.kernel.deferred.contains(&true)
    }

    /// There is nothing but what the cache keeps, and that is idle and watched.
    pub(crate) fn is_balanced(&self) -> bool {
        let mut pins = [false; REGISTRATIONS];
        for (slot, watch) in self.cache.slots.iter().zip(&self.kernel.watches) {
            match (slot.phase, slot.content) {
                (Phase::Vacant, None) if watch.is_none() && slot.references == 0 => {}
                (Phase::Linked, Some((page, pin)))
                    if slot.live
                        && slot.references == 1
                        && watch.is_some_and(|w| w.page == page) =>
                {
                    pins[usize::from(pin)] = true;
                }
                _ => return false,
            }
        }
        self.cache.lock.is_none() && self.pins.iter().map(Option::is_some).eq(pins)
    }
}
