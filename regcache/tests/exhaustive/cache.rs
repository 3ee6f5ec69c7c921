//! The cache: the steps of a lookup, of a guard's drop and of a deferred deregistration.
//!
//! No other thread runs during a step. A step is one load, one compare-and-swap, or one call of the
//! driver or the device. Several changes under the lock are one step, if no thread can see them
//! without the lock. If a part of the model has a counterpart in `regcache/src/core`, both have the
//! same name.

use crate::fault::Fault;
use crate::kernel::bit;
use crate::model::{ATTEMPTS, Protocol, Say, Sight};
use crate::state::{AfterDead, At, Goal, Guard, Phase, Pin, State, Then, Violation};

impl Protocol {
    pub(crate) fn go(&self, state: &mut State, thread: usize, choice: Option<u8>, say: Say<'_>) {
        let lookup = state.threads[thread].lookup.unwrap_or_default();
        let page = lookup.page;
        let next = match state.threads[thread].at {
            At::Idle => At::Idle,
            At::Change(change) => return self.change(state, thread, change, say),

            At::Compare { generation } => {
                let drained = state.cache.drained;
                say(format_args!("loads drained {drained}"));
                if generation == drained {
                    At::Probe
                } else {
                    At::CompareMarks { generation }
                }
            }
            At::CompareMarks { generation } => {
                let marked = state.cache.marked;
                say(format_args!("loads the generation of the marks {marked}"));
                if generation == marked {
                    At::ProbeUnmarked
                } else {
                    At::Enter(Goal::Find)
                }
            }
            At::ProbeUnmarked => match choice {
                None => {
                    say(format_args!("the hints lead to no entry"));
                    At::Enter(Goal::Find)
                }
                Some(slot) if self.fault == Some(Fault::MarkCheckedLast) => {
                    say(format_args!("the hints lead to slot {slot}"));
                    if state.slot(slot).live {
                        say(format_args!("  takes a reference"));
                        state.slot(slot).references += 1;
                        At::CheckMark { slot }
                    } else {
                        At::Enter(Goal::Find)
                    }
                }
                Some(slot) => {
                    let marked = state.slot(slot).marked && self.fault != Some(Fault::MarkIgnored);
                    say(format_args!(
                        "the hints lead to slot {slot}: marked {marked}"
                    ));
                    if marked {
                        self.saw(Sight::MarkMet);
                        At::Enter(Goal::Find)
                    } else {
                        At::TakeUnmarked { slot }
                    }
                }
            },
            At::TakeUnmarked { slot } => {
                if state.slot(slot).live {
                    say(format_args!("takes a reference to slot {slot}"));
                    if state.cache.slots.iter().any(|slot| slot.marked) {
                        self.saw(Sight::HitBesideMarks);
                    }
                    self.use_entry(state, thread, slot, say)
                } else {
                    say(format_args!("slot {slot} is not live"));
                    At::Enter(Goal::Find)
                }
            }
            At::CheckMark { slot } => {
                let entry = state.slot(slot);
                let marked = entry.marked;
                say(format_args!("checks the mark of slot {slot}: {marked}"));
                if marked {
                    At::Release { slot }
                } else {
                    entry.references -= 1;
                    self.use_entry(state, thread, slot, say)
                }
            }
            At::Probe => match choice {
                None => {
                    say(format_args!("the hints lead to no live entry"));
                    At::Enter(Goal::Find)
                }
                Some(slot) if self.fault == Some(Fault::ReferenceAfterLiveness) => {
                    say(format_args!("the hints lead to slot {slot}, which is live"));
                    At::Take { slot }
                }
                Some(slot) => {
                    say(format_args!(
                        "the hints lead to slot {slot}, which is live: takes a reference"
                    ));
                    self.use_entry(state, thread, slot, say)
                }
            },
            At::Take { slot } => {
                say(format_args!("takes a reference to slot {slot}"));
                self.use_entry(state, thread, slot, say)
            }
            At::Release { slot } => {
                say(format_args!("releases slot {slot}"));
                self.release(state, slot, Then::Slow, At::Enter(Goal::Find), say)
            }

            At::Enter(goal) => {
                state.cache.lock = Some(thread as u8);
                if let Goal::Publish { slot, .. } = goal
                    && self.fault == Some(Fault::MarkClearedLate)
                {
                    state.slot(slot).phase = Phase::Pending { invalidated: false };
                }
                let generation = state.kernel.generation;
                say(format_args!("takes the lock, generation {generation}"));
                if generation == state.cache.drained {
                    At::Current(goal)
                } else if generation == state.cache.marked {
                    At::Marked(goal)
                } else {
                    At::Drain {
                        goal,
                        before: generation,
                        held_back: 0,
                    }
                }
            }
            At::Drain {
                goal,
                before,
                held_back,
            } => self.drain(state, goal, before, held_back, say),
            At::Drained {
                goal,
                generation,
                held_back,
            } => {
                say(format_args!(
                    "stores the generation of the marks {generation}"
                ));
                state.cache.marked = generation;
                if held_back == 0 {
                    At::Marked(goal)
                } else {
                    At::Mark { goal, held_back }
                }
            }
            At::Mark { goal, held_back } => {
                let slot = held_back.trailing_zeros() as u8;
                self.invalidate(state, slot, say);
                match held_back & !bit(slot) {
                    0 => At::Marked(goal),
                    held_back => At::Mark { goal, held_back },
                }
            }
            At::Marked(goal) => {
                if let Some(slot) = choice {
                    self.begin_to_unlink(goal, slot)
                } else {
                    let left = state.cache.slots.iter().any(|slot| slot.marked);
                    if left {
                        self.saw(Sight::MarkedLeft);
                    }
                    if !left || self.fault == Some(Fault::DrainedWhileMarked) {
                        state.cache.drained = state.cache.marked;
                        say(format_args!("stores drained {}", state.cache.drained));
                    } else {
                        say(format_args!("leaves the marked entries to others"));
                    }
                    At::Current(goal)
                }
            }
            At::Kill { goal, slot } => {
                self.unlink(state, slot, say);
                if state.slot(slot).marked {
                    At::ClearMark { goal, slot }
                } else {
                    At::Marked(goal)
                }
            }
            At::ClearMark { goal, slot } => {
                say(format_args!("clears the mark of slot {slot}"));
                let entry = state.slot(slot);
                entry.marked = false;
                if entry.live {
                    At::Kill { goal, slot }
                } else {
                    At::Marked(goal)
                }
            }

            // A marked entry that is found in the index is unlinked.
            At::Current(goal)
                if self.fault != Some(Fault::MarkedFound) && state.finds_marked(page) =>
            {
                let slot = state.find(page).unwrap_or_default();
                say(format_args!("finds the marked slot {slot} in the index"));
                self.begin_to_unlink(goal, slot)
            }
            At::Current(Goal::Find) => {
                if let Some(slot) = choice {
                    say(format_args!(
                        "waits for the registration of slot {slot}, unlocks"
                    ));
                    self.saw(Sight::WaitedForOther);
                    state.cache.lock = None;
                    At::Wait { slot }
                } else if state.find(page).is_some() {
                    self.find(state, thread, page, AfterDead::Return, say)
                } else if lookup.attempts == ATTEMPTS {
                    say(format_args!("gives up caching the page, unlocks"));
                    state.cache.lock = None;
                    At::Uncached
                } else {
                    if let Some(lookup) = &mut state.threads[thread].lookup {
                        lookup.attempts += 1;
                    }
                    self.reserve(state, page, say)
                }
            }
            At::Current(Goal::Again { slot }) => {
                let vacate = |then| At::Vacate {
                    slot,
                    then: Then::NextDead(then),
                };
                if state.find(page).is_some() {
                    self.find(state, thread, page, AfterDead::Return, say);
                    vacate(AfterDead::Return)
                } else if lookup.attempts == ATTEMPTS {
                    say(format_args!("gives up caching the page, unlocks"));
                    state.cache.lock = None;
                    vacate(AfterDead::Uncached)
                } else if self.fault == Some(Fault::WaitsForItself) {
                    say(format_args!(
                        "waits for the registration of slot {slot}, unlocks"
                    ));
                    state.cache.lock = None;
                    At::Wait { slot }
                } else {
                    say(format_args!("clears the mark of slot {slot}, unlocks"));
                    if let Some(lookup) = &mut state.threads[thread].lookup {
                        lookup.attempts += 1;
                    }
                    if state.threads.iter().any(|it| it.at == At::Wait { slot }) {
                        self.saw(Sight::TriedAgain);
                    }
                    state.slot(slot).phase = Phase::Pending { invalidated: false };
                    state.cache.lock = None;
                    At::NextDead(AfterDead::Register(slot))
                }
            }
            // Another thread makes the next step.
            At::Wait { slot } => At::Wait { slot },
            At::Reenter => {
                say(format_args!("takes the lock"));
                state.cache.lock = Some(thread as u8);
                self.reserve(state, page, say)
            }
            At::Admit { slot, pin } => self.admit(state, thread, slot, pin, say),
            At::ChooseVictim { slot, pin } => match choice {
                Some(victim) => {
                    say(format_args!("slot {victim} is idle"));
                    At::Evict { victim, slot, pin }
                }
                None => {
                    say(format_args!("no entry is idle, unlocks"));
                    state.cache.lock = None;
                    self.saw(Sight::Uncached);
                    self.hand_out(state, thread, Guard::Own(pin), say);
                    At::Unwatch {
                        slot,
                        then: Then::NextDead(AfterDead::Return),
                    }
                }
            },
            At::Evict { victim, slot, pin } => {
                say(format_args!("evicts slot {victim}"));
                self.saw(Sight::Evicted);
                if state.slot(victim).references > 1 {
                    self.saw(Sight::EvictionRaced);
                }
                self.unlink(state, victim, say);
                At::Admit { slot, pin }
            }
            At::Watch { slot, pin: None }
                if lookup.attempts > 1 && self.fault == Some(Fault::RetryNotWatched) =>
            {
                say(format_args!("places no watch"));
                At::Register { slot, awaited: 0 }
            }
            At::Watch { slot, pin } => {
                say(format_args!("watches page {page} for slot {slot}"));
                let awaited = self.watch(state, page, slot);
                if awaited != 0 {
                    say(format_args!("  waits for the change in flight"));
                    self.saw(Sight::Waited);
                }
                match pin {
                    None => At::Register { slot, awaited },
                    Some(pin) => At::Enter(Goal::Publish { slot, pin }),
                }
            }
            At::Register { slot, .. } => {
                let pin = self.register(state, page, say);
                match pin {
                    None => {
                        state.threads[thread].lookup = None;
                        At::Unwatch {
                            slot,
                            then: Then::NextDead(AfterDead::Return),
                        }
                    }
                    pin if self.fault == Some(Fault::WatchAfterRegistration) => {
                        At::Watch { slot, pin }
                    }
                    Some(pin) => At::Enter(Goal::Publish { slot, pin }),
                }
            }
            At::Current(Goal::Publish { slot, pin }) => self.publish(state, thread, slot, pin, say),
            At::Uncached => {
                if let Some(pin) = self.register(state, page, say) {
                    self.saw(Sight::Uncached);
                    self.hand_out(state, thread, Guard::Own(pin), say);
                }
                state.threads[thread].lookup = None;
                At::NextDead(AfterDead::Return)
            }

            At::TakeOut { slot, then } => {
                let used = state
                    .threads
                    .iter()
                    .any(|t| t.guard == Some(Guard::Cached(slot)) || t.at == At::Release { slot });
                if used {
                    state.violation = Some(Violation::InUse);
                }
                match state.slot(slot).content.take() {
                    Some((_, pin)) => self.deregister(state, pin, say),
                    None => state.violation = Some(Violation::Twice),
                }
                At::Unwatch { slot, then }
            }
            At::Deregister { slot, pin, then } => {
                self.deregister(state, pin, say);
                At::Unwatch { slot, then }
            }
            At::Unwatch { slot, then } => {
                say(format_args!("ends the watch of slot {slot}"));
                Self::unwatch(state, slot);
                match then {
                    Then::Again => At::Enter(Goal::Again { slot }),
                    then => At::Vacate { slot, then },
                }
            }
            At::Vacate { slot, then } => {
                say(format_args!("slot {slot} is vacant"));
                if matches!(state.slot(slot).phase, Phase::Pending { .. }) {
                    self.saw(Sight::WaitedInVain);
                    if self.fault != Some(Fault::GivenUpSilently) {
                        self.wake(state, slot, say);
                    }
                }
                *state.slot(slot) = Default::default();
                match then {
                    Then::Idle => At::Idle,
                    Then::Slow | Then::Again => At::Enter(Goal::Find),
                    Then::NextDead(then) => At::NextDead(then),
                }
            }
            At::NextDead(then) => match choice {
                Some(slot) => {
                    say(format_args!("takes dead slot {slot}"));
                    state.slot(slot).phase = Phase::Unlinked {
                        dead: self.fault == Some(Fault::BuriedTwice),
                    };
                    At::TakeOut {
                        slot,
                        then: Then::NextDead(then),
                    }
                }
                None => {
                    let dead = Phase::Unlinked { dead: true };
                    if state.cache.slots.iter().any(|slot| slot.phase == dead) {
                        say(format_args!("leaves the dead slots to others"));
                        self.saw(Sight::DeadLeft);
                    } else {
                        say(format_args!("no slot is dead"));
                    }
                    match then {
                        AfterDead::Return => At::Idle,
                        AfterDead::Reserve => At::Reenter,
                        AfterDead::Uncached => At::Uncached,
                        AfterDead::Register(slot) => self.begin_to_register(slot),
                    }
                }
            },
        };
        state.threads[thread].at = next;
    }

    /// Checks the entry to which the thread has taken a reference, and returns the next step. The
    /// entry may be for another page than the page of the lookup.
    fn use_entry(&self, state: &mut State, thread: usize, slot: u8, say: Say<'_>) -> At {
        let page = state.threads[thread].lookup.unwrap_or_default().page;
        let entry = state.slot(slot);
        entry.references += 1;
        match entry.content {
            None => {
                say(format_args!("  the entry is vacant"));
                state.violation = Some(Violation::Vacant);
                At::Idle
            }
            Some((its, _)) if its != page && self.fault != Some(Fault::EntryNotAsked) => {
                say(format_args!("  the entry is for page {its}"));
                self.saw(Sight::OtherEntry);
                At::Release { slot }
            }
            Some(_) => {
                self.saw(Sight::Hit);
                self.hand_out(state, thread, Guard::Cached(slot), say);
                At::Idle
            }
        }
    }

    /// Ends a lookup with a guard, and records a violation if the guard's registration is stale,
    /// deregistered or of another page.
    fn hand_out(&self, state: &mut State, thread: usize, guard: Guard, say: Say<'_>) {
        let this = &mut state.threads[thread];
        this.guard = Some(guard);
        let lookup = this.lookup.take().unwrap_or_default();
        let pin = match guard {
            Guard::Cached(slot) => state.slot(slot).content.map(|it| it.1),
            Guard::Own(pin) => Some(pin),
        };
        let Some(pin) = pin.and_then(|pin| state.pins[usize::from(pin)]) else {
            say(format_args!("  the registration was deregistered"));
            state.violation = Some(Violation::InUse);
            return;
        };
        say(format_args!(
            "  the lookup returns a registration of page {}, version {}",
            pin.page, pin.version
        ));
        if pin.page != lookup.page {
            state.violation = Some(Violation::WrongRange);
        } else if pin.version < lookup.floor {
            say(format_args!(
                "  STALE: the lookup may return no version before {}",
                lookup.floor
            ));
            state.violation = Some(Violation::Stale);
        }
    }

    pub(crate) fn drop_guard(&self, state: &mut State, thread: usize, say: Say<'_>) {
        let next = match state.threads[thread].guard.take() {
            None => At::Idle,
            Some(Guard::Own(pin)) => {
                say(format_args!("drops its guard"));
                self.deregister(state, pin, say);
                At::Idle
            }
            Some(Guard::Cached(slot)) => {
                say(format_args!("drops its guard of slot {slot}"));
                self.release(state, slot, Then::Idle, At::Idle, say)
            }
        };
        state.threads[thread].at = next;
    }

    /// Releases a reference, and returns the next step. If this was the last reference to an
    /// unlinked entry that is not on the list of dead entries, the next step deregisters the entry.
    fn release(&self, state: &mut State, slot: u8, last: Then, otherwise: At, say: Say<'_>) -> At {
        let entry = state.slot(slot);
        entry.references -= 1;
        let dead = entry.phase == Phase::Unlinked { dead: true };
        if entry.references > 0 || entry.live || dead {
            return otherwise;
        }
        say(format_args!(
            "  this was the last reference to an unlinked entry"
        ));
        self.saw(Sight::LastGuard);
        At::TakeOut { slot, then: last }
    }

    fn drain(
        &self,
        state: &mut State,
        goal: Goal,
        before: u8,
        mut held_back: u8,
        say: Say<'_>,
    ) -> At {
        if let Some(slot) = Self::read(state) {
            say(format_args!(
                "reads that the watch of slot {slot} was invalidated"
            ));
            if self.fault == Some(Fault::GenerationBeforeMarks) {
                held_back |= bit(slot);
            } else {
                self.invalidate(state, slot, say);
            }
            return At::Drain {
                goal,
                before,
                held_back,
            };
        }
        let generation = if state.kernel.last_owed {
            say(format_args!("reads LAST"));
            state.kernel.last_owed = false;
            state.kernel.generation
        } else {
            say(format_args!("there is nothing to read"));
            before
        };
        At::Drained {
            goal,
            generation,
            held_back,
        }
    }

    /// Returns the first of the two steps that unlink a marked entry.
    fn begin_to_unlink(&self, goal: Goal, slot: u8) -> At {
        if self.fault == Some(Fault::MarkClearedFirst) {
            At::ClearMark { goal, slot }
        } else {
            At::Kill { goal, slot }
        }
    }

    /// Handles a report of the watch of `slot`: marks a pending slot or a linked entry.
    fn invalidate(&self, state: &mut State, slot: u8, say: Say<'_>) {
        match &mut state.slot(slot).phase {
            Phase::Pending { invalidated } => {
                *invalidated = true;
                say(format_args!("  marks the registration being made"));
                self.saw(Sight::PendingHit);
            }
            Phase::Linked => {
                state.slot(slot).marked = true;
                say(format_args!("  marks the entry"));
                self.saw(Sight::Invalidated);
            }
            Phase::Vacant | Phase::Unlinked { .. } => {}
        }
    }

    /// Removes an entry from the index, and clears `live`.
    fn unlink(&self, state: &mut State, slot: u8, say: Say<'_>) {
        say(format_args!("  kills slot {slot}"));
        let at_once = self.fault == Some(Fault::DestroyedInUse);
        let entry = state.slot(slot);
        entry.live = false;
        entry.references -= 1;
        entry.phase = Phase::Unlinked {
            dead: entry.references == 0 || at_once,
        };
    }

    fn begin_to_register(&self, slot: u8) -> At {
        if self.fault == Some(Fault::WatchAfterRegistration) {
            At::Register { slot, awaited: 0 }
        } else {
            At::Watch { slot, pin: None }
        }
    }

    /// Under the lock, reserves a slot and releases the lock. If no slot is vacant, returns the
    /// step that makes room.
    fn reserve(&self, state: &mut State, page: u8, say: Say<'_>) -> At {
        let dead = Phase::Unlinked { dead: true };
        let some_wait = state.cache.slots.iter().any(|slot| slot.phase == dead);
        if let Some(slot) = state.find_vacant(self.slots()) {
            say(format_args!("reserves slot {slot}, unlocks"));
            if state.pins.iter().flatten().count() > 0 {
                self.saw(Sight::Recycled);
            }
            let record = state.slot(slot);
            record.phase = Phase::Pending { invalidated: false };
            record.page = page;
            state.cache.lock = None;
            return if some_wait {
                self.saw(Sight::StaleFirst);
                At::NextDead(AfterDead::Register(slot))
            } else {
                self.begin_to_register(slot)
            };
        }
        if some_wait {
            say(format_args!(
                "no slot is vacant, but some entries are dead, unlocks"
            ));
            state.cache.lock = None;
            return At::NextDead(AfterDead::Reserve);
        }
        say(format_args!("no slot is vacant, unlocks"));
        self.saw(Sight::NoSlot);
        state.cache.lock = None;
        At::Uncached
    }

    /// Under the lock, returns a guard of the page's entry and releases the lock.
    fn find(
        &self,
        state: &mut State,
        thread: usize,
        page: u8,
        then: AfterDead,
        say: Say<'_>,
    ) -> At {
        if let Some(slot) = state.find(page) {
            say(format_args!("finds slot {slot} in the index, unlocks"));
            self.saw(Sight::FoundBehindLock);
            state.slot(slot).references += 1;
            state.cache.lock = None;
            self.hand_out(state, thread, Guard::Cached(slot), say);
        }
        At::NextDead(then)
    }

    /// Wakes the threads that wait for a registration.
    fn wake(&self, state: &mut State, slot: u8, say: Say<'_>) {
        for (i, thread) in state.threads.iter_mut().enumerate() {
            if thread.at == (At::Wait { slot }) {
                say(format_args!("  wakes thread {i}"));
                thread.at = At::Enter(Goal::Find);
            }
        }
    }

    /// Publishes a registration if there is room. Otherwise returns the step that makes room.
    fn admit(&self, state: &mut State, thread: usize, slot: u8, pin: u8, say: Say<'_>) -> At {
        if state.charged() >= self.scenario.slots && self.fault != Some(Fault::NoRoomMade) {
            say(format_args!("there is no room"));
            return At::ChooseVictim { slot, pin };
        }
        say(format_args!("publishes slot {slot}, unlocks"));
        let page = state.threads[thread].lookup.unwrap_or_default().page;
        let entry = state.slot(slot);
        entry.phase = Phase::Linked;
        entry.live = true;
        entry.references = 2;
        entry.content = Some((page, pin));
        state.cache.lock = None;
        if self.fault != Some(Fault::PublishedSilently) {
            self.wake(state, slot, say);
        }
        self.hand_out(state, thread, Guard::Cached(slot), say);
        At::NextDead(AfterDead::Return)
    }

    /// Publishes a registration, unless its slot was marked as invalidated, and returns the next
    /// step. The thread holds the lock and has drained the reports.
    fn publish(&self, state: &mut State, thread: usize, slot: u8, pin: u8, say: Say<'_>) -> At {
        let page = state.threads[thread].lookup.unwrap_or_default().page;
        let invalidated = state.slot(slot).phase == Phase::Pending { invalidated: true };
        if invalidated && self.fault == Some(Fault::LockKept) {
            say(format_args!(
                "the registration was invalidated meanwhile: tries again"
            ));
            return At::Deregister {
                slot,
                pin,
                then: Then::Slow,
            };
        }
        if invalidated && self.fault == Some(Fault::SpoiltForgotten) {
            say(format_args!(
                "the registration was invalidated meanwhile: unlocks, tries again"
            ));
            state.cache.lock = None;
            return At::Unwatch {
                slot,
                then: Then::Again,
            };
        }
        if invalidated && self.fault != Some(Fault::MarkNotLookedAt) {
            say(format_args!(
                "the registration was invalidated meanwhile: unlocks, tries again"
            ));
            state.cache.lock = None;
            return At::Deregister {
                slot,
                pin,
                then: Then::Again,
            };
        }
        if let Some(other) = state.find(page) {
            say(format_args!(
                "finds slot {other} of a faster thread, unlocks"
            ));
            self.saw(Sight::OtherWasFaster);
            state.cache.lock = None;
            state.slot(other).references += 1;
            self.hand_out(state, thread, Guard::Cached(other), say);
            return At::Deregister {
                slot,
                pin,
                then: Then::NextDead(AfterDead::Return),
            };
        }
        At::Admit { slot, pin }
    }

    /// Registers a page, and returns the index of its pin in `pins`. Returns `None` if the page is
    /// not mapped.
    fn register(&self, state: &mut State, page: u8, say: Say<'_>) -> Option<u8> {
        let mapped = &state.kernel.pages[usize::from(page)];
        if !mapped.mapped {
            say(format_args!("cannot register page {page}: EFAULT"));
            self.saw(Sight::NotMapped);
            return None;
        }
        let version = mapped.version;
        say(format_args!(
            "registers page {page}: pins version {version}"
        ));
        // `pins` always has a free element, because each slot and each other thread has at
        // most one registration.
        let pin = state.pins.iter().position(Option::is_none)?;
        state.pins[pin] = Some(Pin { page, version });
        Some(pin as u8)
    }

    fn deregister(&self, state: &mut State, pin: u8, say: Say<'_>) {
        match state.pins[usize::from(pin)].take() {
            Some(it) => say(format_args!(
                "deregisters page {}, version {}",
                it.page, it.version
            )),
            None => state.violation = Some(Violation::Twice),
        }
    }
}
