//! The state machine that the checker explores: its actions and its properties.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use stateright::{Model, Property};

use crate::fault::Fault;
use crate::state::{
    AfterDead, At, Cache, Change, Goal, Kernel, Lookup, Page, Phase, Slot, Stage, State, THREADS,
    Thread, Violation,
};

/// The names of the properties that the checker verifies.
pub(crate) const STALE: &str = "no lookup returns a stale registration";
pub(crate) const OTHER_RANGE: &str = "no lookup returns a registration of another range";
pub(crate) const IN_USE: &str = "no registration is deregistered while it is in use";
pub(crate) const TWICE: &str = "no registration is deregistered twice";
pub(crate) const LEAKS: &str = "no registration leaks";
pub(crate) const LIMIT: &str = "the cache holds no more entries than its limit";
pub(crate) const STUCK: &str = "some thread can always go on";

/// A scenario, and the fault that is injected into it.
#[derive(Debug)]
pub(crate) struct Protocol {
    pub(crate) scenario: Scenario,
    pub(crate) fault: Option<Fault>,
    /// The events that have happened, one bit for each [`Sight`].
    sights: AtomicU32,
}

/// The bounds of the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) threads: usize,
    /// The number of operations that each thread begins. Drops of guards are not counted.
    pub(crate) operations: u8,
    pub(crate) pages: u8,
    /// The cache's limit on entries. The slab has one slot more, for a registration in the making.
    pub(crate) slots: usize,
}

/// The number of attempts of a miss. If all attempts fail, the miss returns an uncached
/// registration.
pub(crate) const ATTEMPTS: u8 = 2;

/// A function that is called with a description of each step.
pub(crate) type Say<'a> = &'a mut dyn FnMut(fmt::Arguments<'_>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A thread begins an operation.
    Begin(usize, Operation),
    /// A thread makes its next step. If the step has a choice of slots, the thread chooses the
    /// given slot.
    Go(usize, Option<u8>),
    /// The worker makes a report that the driver has left to it. Only `Fault::DeferredReport` leads
    /// to this action.
    Worker(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Lookup(u8),
    Unmap(u8),
    Discard(u8),
    Map(u8),
    Drop,
}

/// An event that must happen in at least one state of the model. If the event never happens, the
/// model does not cover the case that the event stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sight {
    Hit,
    HitBesideMarks,
    MarkMet,
    MarkedLeft,
    DeadLeft,
    FoundBehindLock,
    Recycled,
    OtherEntry,
    HandedOver,
    PendingHit,
    Invalidated,
    LastGuard,
    StaleFirst,
    Evicted,
    EvictionRaced,
    Uncached,
    NotMapped,
    OtherWasFaster,
    ReportedAgain,
    Waited,
    WaitedForOther,
    WaitedInVain,
    TriedAgain,
    NoSlot,
}

impl Sight {
    pub(crate) const ALL: [(Self, &'static str); 24] = [
        (Self::Hit, "a hit"),
        (Self::HitBesideMarks, "a hit while another entry was marked"),
        (Self::MarkMet, "a reader that met a marked entry"),
        (
            Self::MarkedLeft,
            "a thread that left a marked entry to others",
        ),
        (Self::DeadLeft, "a thread that left a dead entry to others"),
        (Self::FoundBehindLock, "an entry found under the lock"),
        (Self::Recycled, "a slot used again"),
        (
            Self::OtherEntry,
            "a reader that reached an entry for another range, and gave it back",
        ),
        (
            Self::HandedOver,
            "an address handed out before the munmap that freed it had returned",
        ),
        (
            Self::PendingHit,
            "an invalidation of a registration that was being made",
        ),
        (
            Self::Invalidated,
            "an invalidation of a cached registration",
        ),
        (
            Self::LastGuard,
            "a last guard that deregistered an unlinked entry",
        ),
        (
            Self::StaleFirst,
            "a miss that deregistered a stale entry before it registered",
        ),
        (Self::Evicted, "an eviction"),
        (
            Self::EvictionRaced,
            "an eviction of an entry that a reader has just acquired",
        ),
        (Self::Uncached, "a registration that was not cached"),
        (Self::NotMapped, "a lookup of memory that was not mapped"),
        (Self::OtherWasFaster, "two threads registering one range"),
        (Self::ReportedAgain, "a report before the change was over"),
        (Self::Waited, "a watch that waited for a change in flight"),
        (
            Self::WaitedForOther,
            "a lookup that waited for another lookup's registration",
        ),
        (
            Self::WaitedInVain,
            "a lookup that waited for a registration that failed",
        ),
        (
            Self::TriedAgain,
            "a second attempt for a slot for which a lookup waits",
        ),
        (Self::NoSlot, "a miss that found no vacant slot"),
    ];
}

impl Protocol {
    pub(crate) fn new(scenario: Scenario, fault: Option<Fault>) -> Self {
        Self {
            scenario,
            fault,
            sights: AtomicU32::new(0),
        }
    }

    /// Returns the number of slots of the slab.
    pub(crate) fn slots(&self) -> usize {
        self.scenario.slots + 1
    }

    pub(crate) fn saw(&self, sight: Sight) {
        let bit = 1 << sight as u32;
        if self.sights.load(Ordering::Relaxed) & bit == 0 {
            self.sights.fetch_or(bit, Ordering::Relaxed);
        }
    }

    pub(crate) fn sights(&self) -> u32 {
        self.sights.load(Ordering::Relaxed)
    }

    /// Makes the steps of an action, and describes each step to `say`.
    pub(crate) fn act(&self, state: &mut State, action: Action, say: Say<'_>) {
        match action {
            Action::Worker(page) => self.worker(state, page, say),
            Action::Go(thread, choice) => self.go(state, thread, choice, say),
            Action::Begin(thread, operation) => {
                let this = &mut state.threads[thread];
                this.left -= u8::from(operation != Operation::Drop);
                match operation {
                    Operation::Lookup(page) => {
                        let generation = state.kernel.generation;
                        let floor = state.kernel.pages[usize::from(page)].floor;
                        say(format_args!(
                            "begins a lookup of page {page}, for which versions before {floor} are \
                             stale: loads generation {generation}"
                        ));
                        this.lookup = Some(Lookup {
                            page,
                            floor,
                            attempts: 0,
                        });
                        this.at = At::Compare { generation };
                    }
                    Operation::Unmap(page) => {
                        self.change(state, thread, begin(page, true), say);
                    }
                    Operation::Discard(page) => {
                        self.change(state, thread, begin(page, false), say);
                    }
                    Operation::Map(page) => self.map(state, page, say),
                    Operation::Drop => self.drop_guard(state, thread, say),
                }
            }
        }
    }
}

fn begin(page: u8, unmaps: bool) -> Change {
    Change {
        page,
        unmaps,
        stage: Stage::Start,
        struck: 0,
        reported: 0,
        next: 0,
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let thread = |i| Thread {
            left: if i < self.scenario.threads {
                self.scenario.operations
            } else {
                0
            },
            ..Thread::default()
        };
        let page = |i| Page {
            mapped: i < usize::from(self.scenario.pages),
            ..Page::default()
        };
        vec![State {
            in_use: (self.scenario.threads as u8, self.scenario.pages),
            kernel: Kernel {
                pages: std::array::from_fn(page),
                ..Kernel::default()
            },
            pins: Default::default(),
            cache: Cache::default(),
            threads: std::array::from_fn(thread),
            violation: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.violation.is_some() {
            return;
        }
        for (page, deferred) in state.kernel.deferred.iter().enumerate() {
            if *deferred {
                actions.push(Action::Worker(page as u8));
            }
        }
        let slots = || (0..).zip(&state.cache.slots[..self.slots()]);
        for (i, thread) in state.threads.iter().enumerate() {
            let mut go = |choice| actions.push(Action::Go(i, choice));
            match thread.at {
                At::Idle => {
                    if thread.guard.is_some() {
                        actions.push(Action::Begin(i, Operation::Drop));
                    }
                    if thread.left == 0 {
                        continue;
                    }
                    for page in 0..self.scenario.pages {
                        let mut begin = |operation| actions.push(Action::Begin(i, operation));
                        if thread.guard.is_none() {
                            begin(Operation::Lookup(page));
                        }
                        if state.kernel.pages[usize::from(page)].mapped {
                            begin(Operation::Unmap(page));
                            begin(Operation::Discard(page));
                        } else {
                            begin(Operation::Map(page));
                        }
                    }
                }
                At::Wait { .. } => {}
                At::Current(Goal::Find) => {
                    go(None);
                    // The lookup waits for a registration in the making, unless it has waited too
                    // often or too long.
                    let page = thread.lookup.unwrap_or_default().page;
                    if state.find(page).is_none()
                        && let Some(making) = state.being_made(page)
                    {
                        go(Some(making));
                    }
                }
                At::Enter(_) | At::Reenter | At::Vacate { .. } => {
                    if state.cache.lock.is_none() {
                        go(None);
                    }
                }
                At::NextDead(then) => {
                    if state.cache.lock.is_some() {
                        continue;
                    }
                    // A thread that does not need the room may leave dead entries to others.
                    let dead = Phase::Unlinked { dead: true };
                    let next = slots().find(|(_, slot)| slot.phase == dead);
                    if let Some((slot, _)) = next {
                        go(Some(slot));
                    }
                    if next.is_none() || then != AfterDead::Reserve {
                        go(None);
                    }
                }
                At::ProbeUnmarked => {
                    go(None);
                    slots().for_each(|(slot, _)| go(Some(slot)));
                }
                At::Marked(_) => {
                    go(None);
                    let marked = slots().find(|(_, slot)| slot.marked);
                    if let Some((slot, _)) = marked {
                        go(Some(slot));
                    }
                }
                At::Register { awaited, .. } => {
                    if awaited == 0 {
                        go(None);
                    }
                }
                At::Probe => {
                    // The hints may name any entry or no entry, so the checker tries each
                    // possibility.
                    go(None);
                    slots()
                        .filter(|(_, slot)| slot.live)
                        .for_each(|(slot, _)| go(Some(slot)));
                }
                At::ChooseVictim { .. } => {
                    let idle = |slot: &Slot| {
                        slot.phase == Phase::Linked && slot.references == 1 && !slot.marked
                    };
                    let before = slots().filter(|(_, slot)| idle(slot));
                    let mut any = false;
                    before.for_each(|(slot, _)| {
                        any = true;
                        go(Some(slot));
                    });
                    if !any {
                        go(None);
                    }
                }
                _ => go(None),
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        self.act(&mut state, action, &mut |_| {});
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(STALE, |_, s: &State| s.violation != Some(Violation::Stale)),
            Property::always(OTHER_RANGE, |_, s: &State| {
                !matches!(s.violation, Some(Violation::WrongRange | Violation::Vacant))
            }),
            Property::always(IN_USE, |_, s: &State| s.violation != Some(Violation::InUse)),
            Property::always(TWICE, |_, s: &State| s.violation != Some(Violation::Twice)),
            Property::always(LIMIT, |model: &Self, s: &State| {
                s.charged() <= model.scenario.slots
            }),
            Property::always(LEAKS, |_, s: &State| !s.is_over() || s.is_balanced()),
            Property::always(STUCK, |model: &Self, s: &State| {
                let mut actions = Vec::new();
                model.actions(s, &mut actions);
                !actions.is_empty() || s.is_over() || s.violation.is_some()
            }),
        ]
    }
}

/// Returns the trace of a path in words, with one line for each step.
pub(crate) fn tell(model: &Protocol, path: stateright::Path<State, Action>) -> String {
    let mut told = String::new();
    for (before, action) in path.into_vec() {
        let Some(action) = action else { continue };
        let who = match action {
            Action::Begin(thread, _) | Action::Go(thread, _) => {
                ["A", "B", "C"][thread % THREADS].to_owned()
            }
            Action::Worker(_) => "worker".to_owned(),
        };
        let mut first = true;
        model.act(&mut before.clone(), action, &mut |words| {
            let who = if first { who.as_str() } else { "" };
            first = false;
            told += &format!("    {who:6} {words}\n");
        });
    }
    told
}
