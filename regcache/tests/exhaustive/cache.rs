//! The cache: the steps of a lookup, of a guard's drop and of a deferred deregistration.
//!
//! No other thread runs during a step. A step is one load, one compare-and-swap, or one call of the
//! driver or the device. Several changes under the lock are one step, if no thread can see them
//! without the lock. The names are those of `regcache/src/core`.

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
                    At::Enter(Goal::Find)
                }
            }
            At::Probe => match choice {
                None => {
                    say(format_args!("the hints lead to no live entry"));
                    At::Enter(Goal::Find)
                }
                Some(slot) if self.fault == Some(Fault::ReferenceAfterLiveness) => {
                    say(format_args!("the hints lead to slot {slot}: it is live"));
                    At::Take { slot }
                }
                Some(slot) => {
                    say(format_args!(
                        "the hints lead to slot {slot}: it is live, takes a reference"
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
                let generation = state.kernel.generation;
                say(format_args!("takes the lock, generation {generation}"));
                if generation == state.cache.drained {
                    At::Current(goal)
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
                say(format_args!("stores drained {generation}"));
                state.cache.drained = generation;
                if held_back == 0 {
                    At::Current(goal)
                } else {
                    At::Kill { goal, held_back }
                }
            }
            At::Kill { goal, held_back } => {
                let slot = held_back.trailing_zeros() as u8;
                self.invalidate(state, slot, say);
                match held_back & !bit(slot) {
                    0 => At::Current(goal),
                    held_back => At::Kill { goal, held_back },
                }
            }

            At::Current(Goal::Find) => {
                if let Some(slot) = state.find(page) {
                    say(format_args!("finds slot {slot} in the index, unlocks"));
                    self.saw(Sight::FoundBehindLock);
                    state.slot(slot).references += 1;
                    state.cache.lock = None;
                    self.hand_out(state, thread, Guard::Cached(slot), say);
                    At::NextDead(AfterDead::Return)
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
            At::Reenter => {
                say(format_args!("takes the lock"));
                state.cache.lock = Some(thread as u8);
                if state.find_vacant(self.scenario.slots).is_some() {
                    self.saw(Sight::Recycled);
                }
                self.reserve(state, page, say)
            }
            At::ChooseVictim => match choice {
                Some(victim) => {
                    say(format_args!("slot {victim} is idle"));
                    At::Evict { victim }
                }
                None => {
                    say(format_args!("no entry is idle, unlocks"));
                    state.cache.lock = None;
                    At::Uncached
                }
            },
            At::Evict { victim } => {
                say(format_args!("evicts slot {victim}, unlocks"));
                self.saw(Sight::Evicted);
                if state.slot(victim).references > 1 {
                    self.saw(Sight::EvictionRaced);
                }
                self.unlink(state, victim, say);
                state.cache.lock = None;
                At::NextDead(AfterDead::Reserve)
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
                At::Vacate { slot, then }
            }
            At::Vacate { slot, then } => {
                say(format_args!("slot {slot} is vacant"));
                *state.slot(slot) = Default::default();
                match then {
                    Then::Idle => At::Idle,
                    Then::Slow => At::Enter(Goal::Find),
                    Then::NextDead(then) => At::NextDead(then),
                }
            }
            At::NextDead(then) => {
                let dead = Phase::Unlinked { dead: true };
                match state.cache.slots.iter().position(|s| s.phase == dead) {
                    Some(slot) => {
                        say(format_args!("takes dead slot {slot}"));
                        state.cache.slots[slot].phase = Phase::Unlinked {
                            dead: self.fault == Some(Fault::BuriedTwice),
                        };
                        At::TakeOut {
                            slot: slot as u8,
                            then: Then::NextDead(then),
                        }
                    }
                    None => {
                        say(format_args!("no slot is dead"));
                        match then {
                            AfterDead::Return => At::Idle,
                            AfterDead::Reserve => At::Reenter,
                            AfterDead::Register(slot) => self.begin_to_register(slot),
                        }
                    }
                }
            }
        };
        state.threads[thread].at = next;
    }

    /// Checks the entry to which the thread has taken a reference, and returns the next step. The
    /// entry may be for another page than the lookup's.
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

    /// Releases a reference, and returns the next step. After the last reference to a dead entry,
    /// the next step deregisters the entry.
    fn release(&self, state: &mut State, slot: u8, last: Then, otherwise: At, say: Say<'_>) -> At {
        let entry = state.slot(slot);
        entry.references -= 1;
        let dead = entry.phase == Phase::Unlinked { dead: true };
        if entry.references > 0 || entry.live || dead {
            return otherwise;
        }
        say(format_args!(
            "  this was the last reference of a dead entry"
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
            if self.fault == Some(Fault::DrainedBeforeKilled) {
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

    /// Handles a report of the watch of `slot`: marks a pending slot, or unlinks a linked entry.
    fn invalidate(&self, state: &mut State, slot: u8, say: Say<'_>) {
        match &mut state.slot(slot).phase {
            Phase::Pending { invalidated } => {
                *invalidated = true;
                say(format_args!("  marks the registration being made"));
                self.saw(Sight::PendingHit);
            }
            Phase::Linked => {
                self.unlink(state, slot, say);
                self.saw(Sight::Invalidated);
            }
            Phase::Vacant | Phase::Unlinked { .. } => {}
        }
    }

    /// Removes an entry from the index and kills the entry.
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
        if let Some(slot) = state.find_vacant(self.scenario.slots) {
            say(format_args!("reserves slot {slot}, unlocks"));
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
        say(format_args!("no slot is vacant"));
        At::ChooseVictim
    }

    /// Publishes a registration, unless its slot was marked, and returns the next step. The thread
    /// holds the lock and has drained the reports.
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
        state.cache.lock = None;
        if invalidated && self.fault == Some(Fault::SpoiltForgotten) {
            say(format_args!(
                "the registration was invalidated meanwhile: unlocks, tries again"
            ));
            return At::Unwatch {
                slot,
                then: Then::Slow,
            };
        }
        if invalidated && self.fault != Some(Fault::MarkNotLookedAt) {
            say(format_args!(
                "the registration was invalidated meanwhile: unlocks, tries again"
            ));
            return At::Deregister {
                slot,
                pin,
                then: Then::Slow,
            };
        }
        if let Some(other) = state.find(page) {
            say(format_args!(
                "finds slot {other} of a faster thread, unlocks"
            ));
            self.saw(Sight::OtherWasFaster);
            state.slot(other).references += 1;
            self.hand_out(state, thread, Guard::Cached(other), say);
            return At::Deregister {
                slot,
                pin,
                then: Then::NextDead(AfterDead::Return),
            };
        }
        say(format_args!("publishes slot {slot}, unlocks"));
        let entry = state.slot(slot);
        entry.phase = Phase::Linked;
        entry.live = true;
        entry.references = 2;
        entry.content = Some((page, pin));
        self.hand_out(state, thread, Guard::Cached(slot), say);
        At::NextDead(AfterDead::Return)
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
        // `pins` always has a free element, because there are never more registrations than slots
        // and threads together.
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
