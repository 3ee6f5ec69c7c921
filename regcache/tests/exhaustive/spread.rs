//! A model of spread counts (`regcache/src/core/spread.rs`): readers acquire and drop references,
//! while a *manager* publishes, spreads and kills entries.
//!
//! There are two entries, and one place for spread counts. The manager uses the entries in turn, so
//! the place serves one entry after the other. Each step is one access to a word of the state of an
//! entry, of a lane, or of the place. A sum over the lanes takes one step for each count.

use stateright::{Model, Property};

const ENTRIES: usize = 2;
const LANES: usize = 2;

/// The threads: the readers first, and then the manager. The manager shares the lane of the first
/// reader.
const READERS: usize = 2;
const MANAGER: usize = READERS;

/// A way in which the model breaks a rule on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A reader does not load the state again after it has counted its reference.
    NotCheckedAgain,
    /// A sum reads the references taken before those dropped.
    TakenFirst,
    /// A reader that undoes its reference claims nothing.
    UndoneSilently,
    /// A claim does not compare the generation.
    ClaimedBlindly,
    /// The kill does not move the references in the state to the place.
    OffsetForgotten,
    /// A drop does not sum the lanes.
    DroppedSilently,
    /// A reference in the state that is dropped after the kill is not dropped in a lane.
    LateInState,
}

impl Fault {
    pub(crate) const ALL: [Self; 7] = [
        Self::NotCheckedAgain,
        Self::TakenFirst,
        Self::UndoneSilently,
        Self::ClaimedBlindly,
        Self::OffsetForgotten,
        Self::DroppedSilently,
        Self::LateInState,
    ];
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Entry {
    live: bool,
    spread: bool,
    references: i8,
    /// The number of the registration, or `None` after the content was taken.
    content: Option<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Phase {
    #[default]
    Free,
    Live,
    Dead,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Word {
    generation: u8,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Place {
    word: Word,
    owner: u8,
    offset: i8,
    taken: [i8; LANES],
    dropped: [i8; LANES],
}

/// The next step of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum At {
    #[default]
    Idle,
    /// Count a reference to a spread entry.
    Take(u8),
    /// Load the state again.
    Check(u8),
    /// Load the state, to drop a reference.
    Holding { entry: u8, content: u8 },
    /// Subtract a reference from the state.
    DropInState { entry: u8, content: u8 },
    /// Count the drop of a reference to an entry and its content, or of one that is undone.
    Drop(Option<(u8, u8)>),
    /// Load the word of the place after a drop.
    Dropped { undone: bool },
    /// Add up the counts. The word is the one that a claim expects.
    Sum { word: Word, step: u8, sum: i8 },
    /// Exchange the word, to claim the entry.
    Claim(Word),
    /// Take the content of a claimed entry, and free the place.
    TakeOut { entry: u8 },
    /// Manager: find a free place for an entry.
    Assign(u8),
    /// Manager: spread the entry.
    Spread(u8),
    /// Manager: kill the entry.
    Kill(u8),
    /// Manager: add the references in the state to the offset.
    Offset { counted: i8 },
    /// Manager: set the phase.
    SetDead,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    entries: [Entry; ENTRIES],
    place: Place,
    threads: [At; READERS + 1],
    /// The number of lookups that each reader has not begun.
    left: [u8; READERS],
    /// The number of registrations that the manager has made.
    made: u8,
    violation: Option<&'static str>,
}

/// A step of a thread, with the entry that an idle reader has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Step {
    thread: usize,
    choice: u8,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) lookups: u8,
    pub(crate) registrations: u8,
    pub(crate) fault: Option<Fault>,
}

impl Counts {
    fn lane(thread: usize) -> usize {
        thread % LANES
    }

    /// Moves the content out of an entry.
    fn take_out(state: &mut State, entry: u8) {
        let entry = &mut state.entries[usize::from(entry)];
        if entry.content.take().is_none() {
            state.violation = Some("taken twice");
        }
        (entry.spread, entry.references) = (false, 0);
    }

    /// Checks the registration of a thread that owns a reference.
    fn check(state: &mut State, entry: u8, content: u8) {
        if state.entries[usize::from(entry)].content != Some(content) {
            state.violation = Some("taken in use");
        }
    }

    /// Returns the step after a release in the state. `before` is the state before the release.
    fn left_of(&self, state: &mut State, before: Entry, entry: u8, content: u8) -> At {
        match before {
            Entry { live: true, .. } => At::Idle,
            Entry { spread: true, .. } if self.fault == Some(Fault::LateInState) => At::Idle,
            Entry { spread: true, .. } => At::Drop(Some((entry, content))),
            Entry { references: 1, .. } => {
                Self::take_out(state, entry);
                At::Idle
            }
            _ => At::Idle,
        }
    }

    fn summed(word: Word, sum: i8) -> At {
        match sum {
            0 => At::Claim(word),
            _ => At::Idle,
        }
    }

    fn sum(&self, state: &State, word: Word, step: u8, sum: i8) -> At {
        let place = &state.place;
        // The offset belongs to the taken ones.
        let mut counts: Vec<i8> = place.dropped.iter().map(|count| -count).collect();
        let taken = place.taken.iter().copied().chain([place.offset]);
        if self.fault == Some(Fault::TakenFirst) {
            counts = taken.chain(counts).collect();
        } else {
            counts.extend(taken);
        }
        let sum = sum + counts[usize::from(step)];
        match usize::from(step) + 1 == counts.len() {
            true => Self::summed(word, sum),
            false => At::Sum {
                word,
                step: step + 1,
                sum,
            },
        }
    }

    fn step(&self, state: &mut State, Step { thread, choice }: Step) -> At {
        let fault = |fault| self.fault == Some(fault);
        let lane = Self::lane(thread);
        match state.threads[thread] {
            At::Idle if thread == MANAGER => {
                let entry = state.made % ENTRIES as u8;
                state.entries[usize::from(entry)] = Entry {
                    live: true,
                    spread: false,
                    references: 1,
                    content: Some(state.made),
                };
                state.made += 1;
                At::Assign(entry)
            }
            At::Idle => {
                state.left[thread] -= 1;
                let entry = &mut state.entries[usize::from(choice)];
                match (entry.live, entry.spread, entry.content) {
                    (true, true, _) => At::Take(choice),
                    (true, false, Some(content)) => {
                        entry.references += 1;
                        At::Holding {
                            entry: choice,
                            content,
                        }
                    }
                    _ => At::Idle,
                }
            }
            At::Take(entry) => {
                state.place.taken[lane] += 1;
                At::Check(entry)
            }
            At::Check(entry) => {
                let its = state.entries[usize::from(entry)];
                match its.content {
                    Some(content) if its.live && its.spread => At::Holding { entry, content },
                    Some(content) if fault(Fault::NotCheckedAgain) => {
                        At::Holding { entry, content }
                    }
                    _ => At::Drop(None),
                }
            }
            At::Holding { entry, content } => {
                Self::check(state, entry, content);
                match state.entries[usize::from(entry)].spread {
                    true => At::Drop(Some((entry, content))),
                    false => At::DropInState { entry, content },
                }
            }
            At::DropInState { entry, content } => {
                Self::check(state, entry, content);
                let its = &mut state.entries[usize::from(entry)];
                let before = *its;
                its.references -= 1;
                self.left_of(state, before, entry, content)
            }
            At::Drop(holds) => {
                if let Some((entry, content)) = holds {
                    Self::check(state, entry, content);
                }
                state.place.dropped[lane] += 1;
                At::Dropped {
                    undone: holds.is_none(),
                }
            }
            At::Dropped { undone } => {
                let word = state.place.word;
                let silent = fault(Fault::DroppedSilently) && !undone
                    || fault(Fault::UndoneSilently) && undone;
                if word.phase != Phase::Dead || silent {
                    return At::Idle;
                }
                At::Sum {
                    word,
                    step: 0,
                    sum: 0,
                }
            }
            At::Sum { word, step, sum } => self.sum(state, word, step, sum),
            At::Claim(word) => {
                let now = &mut state.place.word;
                let same = *now == word || fault(Fault::ClaimedBlindly) && now.phase == Phase::Dead;
                if !same {
                    return At::Idle;
                }
                now.phase = Phase::Live;
                At::TakeOut {
                    entry: state.place.owner,
                }
            }
            At::TakeOut { entry } => {
                Self::take_out(state, entry);
                state.place.word.phase = Phase::Free;
                state.place.word.generation += 1;
                At::Idle
            }

            At::Assign(entry) if state.place.word.phase != Phase::Free => At::Kill(entry),
            At::Assign(entry) => {
                state.place.word.phase = Phase::Live;
                state.place.owner = entry;
                At::Spread(entry)
            }
            At::Spread(entry) => {
                state.entries[usize::from(entry)].spread = true;
                At::Kill(entry)
            }
            At::Kill(entry) => {
                let its = &mut state.entries[usize::from(entry)];
                its.live = false;
                its.references -= 1;
                match (its.spread, its.references) {
                    (true, counted) => At::Offset { counted },
                    (false, 0) => {
                        Self::take_out(state, entry);
                        At::Idle
                    }
                    (false, _) => At::Idle,
                }
            }
            At::Offset { counted } => {
                if !fault(Fault::OffsetForgotten) {
                    state.place.offset += counted;
                }
                At::SetDead
            }
            At::SetDead => {
                state.place.word.phase = Phase::Dead;
                At::Sum {
                    word: state.place.word,
                    step: 0,
                    sum: 0,
                }
            }
        }
    }
}

impl Model for Counts {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            left: [self.lookups; READERS],
            ..State::default()
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.violation.is_some() {
            return;
        }
        for (thread, &at) in state.threads.iter().enumerate() {
            let choices = match at {
                At::Idle if thread == MANAGER => {
                    let next = state.entries[usize::from(state.made) % ENTRIES];
                    u8::from(state.made < self.registrations && next.content.is_none())
                }
                At::Idle if state.left[thread] == 0 => 0,
                At::Idle => ENTRIES as u8,
                _ => 1,
            };
            steps.extend((0..choices).map(|choice| Step { thread, choice }));
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        state.threads[step.thread] = self.step(&mut state, step);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("taken once, and never in use", |_, state: &State| {
                state.violation.is_none()
            }),
            Property::always("nothing is left", |model: &Self, state: &State| {
                let mut steps = Vec::new();
                model.actions(state, &mut steps);
                let left = state.entries.iter().any(|entry| entry.content.is_some());
                !steps.is_empty() || state.violation.is_some() || !left
            }),
        ]
    }
}
