//! The state of the model. The state is small, so that the checker can visit every state that can
//! be reached. A *pin* is a registration of the modelled device. A *version* is the number of a
//! physical page. A *fault* is a rule that the model breaks on purpose (`fault.rs`).

/// The maximum numbers of pages, slots and threads, which are sizes of arrays. A scenario may use
/// fewer pages, slots or threads.
pub(crate) const PAGES: usize = 2;
pub(crate) const SLOTS: usize = 3;
pub(crate) const THREADS: usize = 3;
/// The maximum number of registrations. Each slot has at most one registration, and each thread has
/// at most one more that is not published.
const REGISTRATIONS: usize = SLOTS + THREADS;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State {
    /// The numbers of threads and pages of the scenario.
    pub(crate) in_use: (u8, u8),
    pub(crate) kernel: Kernel,
    /// The registrations of the device.
    pub(crate) pins: [Option<Pin>; REGISTRATIONS],
    pub(crate) cache: Cache,
    pub(crate) threads: [Thread; THREADS],
    pub(crate) violation: Option<Violation>,
}

/// The memory and the driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Kernel {
    pub(crate) pages: [Page; PAGES],
    pub(crate) generation: u8,
    /// True if a report was read after the most recent `LAST` event. In that case, the read that
    /// finds no further report returns `LAST`, which carries the generation.
    pub(crate) last_owed: bool,
    /// The watch of each slot. The slot serves as the cookie of its watch.
    pub(crate) watches: [Option<Watch>; SLOTS],
    /// The pages whose reports the driver has left to the worker.
    pub(crate) deferred: [bool; PAGES],
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Page {
    pub(crate) mapped: bool,
    /// The number of the physical page that is mapped, or that was mapped last if none is mapped
    /// now.
    pub(crate) version: u8,
    /// The oldest version that is not stale for a lookup that begins now. An older version is stale
    /// for one of two reasons. The system call that removed the version has ended, or a mapping
    /// call has handed out the address after the version was removed.
    pub(crate) floor: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Watch {
    pub(crate) page: u8,
    pub(crate) invalidated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pin {
    pub(crate) page: u8,
    pub(crate) version: u8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Cache {
    /// The generation up to which all invalidated entries were unlinked.
    pub(crate) drained: u8,
    /// The generation up to which all invalidated entries were marked or unlinked.
    pub(crate) marked: u8,
    /// The thread that holds the table's lock.
    pub(crate) lock: Option<u8>,
    pub(crate) slots: [Slot; SLOTS],
}

/// An entry and its record in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot {
    pub(crate) phase: Phase,
    pub(crate) page: u8,
    pub(crate) live: bool,
    /// True if a report has named the linked entry.
    pub(crate) marked: bool,
    pub(crate) references: u8,
    /// The page of the registration, and the registration's index in `pins`.
    pub(crate) content: Option<(u8, u8)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Phase {
    #[default]
    Vacant,
    Pending {
        invalidated: bool,
    },
    Linked,
    /// `dead` is true if the entry is on the list of dead entries. There it waits until a thread
    /// deregisters it.
    Unlinked {
        dead: bool,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Thread {
    /// The number of operations that the thread has not begun yet.
    pub(crate) left: u8,
    pub(crate) guard: Option<Guard>,
    /// The lookup that the thread has begun and not finished.
    pub(crate) lookup: Option<Lookup>,
    pub(crate) at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Guard {
    /// A reference to this slot's entry.
    Cached(u8),
    /// An uncached registration, by its index in `pins`.
    Own(u8),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lookup {
    pub(crate) page: u8,
    /// The page's `floor` at the time when the lookup began.
    pub(crate) floor: u8,
    pub(crate) attempts: u8,
}

/// The next step of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum At {
    #[default]
    Idle,
    /// The thread is in a system call that changes memory.
    Change(Change),
    /// Hit: compare the loaded generation with `drained`.
    Compare { generation: u8 },
    /// Hit: compare the loaded generation with that of the marks.
    CompareMarks { generation: u8 },
    /// Hit: take a reference to an entry that the hints name.
    Probe,
    /// Hit while entries are marked: check the mark of an entry that the hints name.
    ProbeUnmarked,
    /// Hit while entries are marked: take a reference to the entry, which had no mark.
    TakeUnmarked { slot: u8 },
    /// Hit while entries are marked, with a fault: check the mark of an entry to which the thread
    /// has a reference.
    CheckMark { slot: u8 },
    /// Hit, with a fault: take a reference to an entry that was live in the step before.
    Take { slot: u8 },
    /// Hit: release the reference to an entry for another page.
    Release { slot: u8 },
    /// Take the lock, and load the generation.
    Enter(Goal),
    /// With the lock: read one report.
    Drain {
        goal: Goal,
        /// The generation before the drain.
        before: u8,
        /// With a fault: the slots that were reported and whose entries are not marked yet, one bit
        /// each.
        held_back: u8,
    },
    /// With the lock, after the last report was read: store the generation of the marks.
    Drained {
        goal: Goal,
        generation: u8,
        held_back: u8,
    },
    /// With the lock and a fault: mark the entries that were held back.
    Mark { goal: Goal, held_back: u8 },
    /// With the lock, after all invalidated entries were marked: unlink a marked entry, or leave
    /// the marked entries to others. If no entry is marked, store `drained`.
    Marked(Goal),
    /// With the lock: kill a marked entry.
    Kill { goal: Goal, slot: u8 },
    /// With the lock: clear the mark of an entry, which was killed in the step before.
    ClearMark { goal: Goal, slot: u8 },
    /// With the lock, after all invalidated entries were marked: do what the thread took the lock
    /// for.
    Current(Goal),
    /// Wait until the slot is no longer pending. Another thread makes the next step of this thread.
    Wait { slot: u8 },
    /// With the lock: make room for the registration, and publish it.
    Admit { slot: u8, pin: u8 },
    /// With the lock: choose an idle entry.
    ChooseVictim { slot: u8, pin: u8 },
    /// With the lock: evict the entry.
    Evict { victim: u8, slot: u8, pin: u8 },
    /// Take the lock, to reserve a slot.
    Reenter,
    /// Watch the page. With a fault, this step comes after the registration.
    Watch { slot: u8, pin: Option<u8> },
    /// Register, after the invalidations of the threads in `awaited` are over. Each thread is one
    /// bit.
    Register { slot: u8, awaited: u8 },
    /// Make an uncached registration.
    Uncached,
    /// Deregister the registration of an unlinked entry.
    TakeOut { slot: u8, then: Then },
    /// Deregister a registration that was not published.
    Deregister { slot: u8, pin: u8, then: Then },
    /// End the slot's watch.
    Unwatch { slot: u8, then: Then },
    /// Take the lock and make the slot vacant.
    Vacate { slot: u8, then: Then },
    /// Take the lock and look for a dead entry.
    NextDead(AfterDead),
}

/// A munmap or a discard. After a discard the mapping stays, and another physical page is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Change {
    pub(crate) page: u8,
    pub(crate) unmaps: bool,
    pub(crate) stage: Stage,
    /// The slots whose watches the change has invalidated, one bit each.
    pub(crate) struck: u8,
    /// The slots in `struck` whose watches were reported before the end of the change, one bit
    /// each.
    pub(crate) reported: u8,
    /// The oldest version that is not stale after the change.
    pub(crate) next: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    /// `invalidate_range_start`.
    Start,
    /// The page table entry is removed.
    Zap,
    /// With a fault: the driver makes the report.
    Report,
    /// `invalidate_range_end`, and the call returns.
    End,
}

/// The reason for taking the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Goal {
    Find,
    /// Find an entry, or make another attempt for the pending slot.
    Again {
        slot: u8,
    },
    Publish {
        slot: u8,
        pin: u8,
    },
}

/// The continuation after a deregistration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Then {
    /// The guard's drop is over.
    Idle,
    /// The lookup continues on its slow path.
    Slow,
    /// The lookup makes another attempt for the same slot.
    Again,
    NextDead(AfterDead),
}

/// The continuation when no dead entry is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum AfterDead {
    Return,
    Reserve,
    /// Make an uncached registration.
    Uncached,
    /// Register for this slot.
    Register(u8),
}

/// A violation of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Violation {
    /// A lookup returned a registration of a version older than the page's `floor`.
    Stale,
    /// A lookup returned a registration of another range.
    WrongRange,
    /// A reader read the content of a vacant entry.
    Vacant,
    /// A registration in use was deregistered.
    InUse,
    /// A registration was deregistered twice.
    Twice,
}

impl State {
    /// Returns the change that a thread has begun and not finished, if there is one.
    pub(crate) fn change(&mut self, thread: usize) -> Option<&mut Change> {
        match &mut self.threads[thread].at {
            At::Change(change) => Some(change),
            _ => None,
        }
    }

    /// Returns the slot of the page's entry in the index.
    pub(crate) fn find(&self, page: u8) -> Option<u8> {
        let is_it = |slot: &Slot| slot.phase == Phase::Linked && slot.page == page;
        self.cache.slots.iter().position(is_it).map(|i| i as u8)
    }

    /// Returns true if the page's entry in the index is marked.
    pub(crate) fn finds_marked(&self, page: u8) -> bool {
        let slot = self.find(page).map(usize::from);
        slot.is_some_and(|slot| self.cache.slots[slot].marked)
    }

    /// Returns the first vacant slot among the first `slots` slots.
    pub(crate) fn find_vacant(&self, slots: usize) -> Option<u8> {
        let mut slots = self.cache.slots[..slots].iter();
        let vacant = slots.position(|slot| slot.phase == Phase::Vacant)?;
        Some(vacant as u8)
    }

    /// Returns the number of entries that the limit counts: those that are linked, and those that
    /// are unlinked and held.
    pub(crate) fn charged(&self) -> usize {
        let counts = |slot: &&Slot| match slot.phase {
            Phase::Vacant | Phase::Pending { .. } => false,
            Phase::Linked => true,
            Phase::Unlinked { .. } => slot.references > 0,
        };
        self.cache.slots.iter().filter(counts).count()
    }

    /// Returns the pending slot of the page.
    pub(crate) fn being_made(&self, page: u8) -> Option<u8> {
        let is_it = |slot: &Slot| matches!(slot.phase, Phase::Pending { .. }) && slot.page == page;
        self.cache.slots.iter().position(is_it).map(|i| i as u8)
    }

    pub(crate) fn slot(&mut self, slot: u8) -> &mut Slot {
        &mut self.cache.slots[usize::from(slot)]
    }

    /// Returns true if no thread has an operation, a guard or a step left, and the worker has no
    /// report left.
    pub(crate) fn is_over(&self) -> bool {
        let done = |t: &Thread| t.left == 0 && t.guard.is_none() && t.at == At::Idle;
        self.threads.iter().all(done) && !self.kernel.deferred.contains(&true)
    }

    /// Returns true if only cached and dead registrations are left, and all of them are idle and
    /// watched.
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
                // The reaper deregisters such an entry.
                (Phase::Unlinked { dead: true }, Some((_, pin)))
                    if slot.references == 0 && watch.is_some() =>
                {
                    pins[usize::from(pin)] = true;
                }
                _ => return false,
            }
        }
        self.cache.lock.is_none() && self.pins.iter().map(Option::is_some).eq(pins)
    }
}
