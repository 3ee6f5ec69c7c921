//! [`Lines`]: in which order entries go, and which are on their way out.
//!
//! Least recently used, nearly: second chance. Live entries stand in line; who is at the head goes, unless it
//! was used since it was put in line: then it is put at the end. Hits do not come here: a hit stamps
//! its own entry, and that is looked at when something must go. (docs/design/eviction.md compares it with others.)

use crate::core::slab::Slot;

/// Most entries looked at to find a victim. If there is none the next search goes on from there.
const PATIENCE: usize = 4096;

/// What the entry at the head of the line is found to be.
pub(crate) enum Found {
    /// Used since it was put in line, or now: evicting it would be a pity, or free nothing.
    Used,
    /// Idle since.
    Idle,
}

/// A slot stands in one line at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// Live entries.
    Live,
    /// Entries whose content is to be taken out by whoever gets to it first.
    Dead,
    /// Entries whose content is in use although they are not live, or is being taken out.
    Leaving,
}

impl Line {
    const COUNT: usize = 3;

    /// The place that is no slot's: before the head and behind the end.
    fn ends(self) -> u32 {
        self as u32
    }
}

/// The lines, by what is before and behind each slot.
#[derive(Debug)]
pub(crate) struct Lines {
    places: Vec<Place>,
    /// How many are live.
    live: usize,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    before: u32,
    behind: u32,
}

impl Place {
    fn alone(at: usize) -> Self {
        Self {
            before: at as u32,
            behind: at as u32,
        }
    }
}

/// Slots have the places after those that are no slot's.
fn place(slot: Slot) -> u32 {
    slot.0 + Line::COUNT as u32
}

impl Lines {
    pub(crate) fn new() -> Self {
        Self {
            places: (0..Line::COUNT).map(Place::alone).collect(),
            live: 0,
        }
    }

    fn at(&self, place: u32) -> Place {
        self.places[place as usize]
    }

    fn slot(place: u32) -> Option<Slot> {
        Some(Slot(place.checked_sub(Line::COUNT as u32)?))
    }

    pub(crate) fn head(&self, line: Line) -> Option<Slot> {
        Self::slot(self.at(line.ends()).behind)
    }

    /// All in line, from the head on.
    pub(crate) fn all(&self, line: Line) -> impl Iterator<Item = Slot> {
        let next = |slot: &Slot| Self::slot(self.at(place(*slot)).behind);
        std::iter::successors(self.head(line), next)
    }

    /// Puts `slot` behind the place.
    fn insert_behind(&mut self, before: u32, slot: Slot) {
        let at = place(slot);
        if at as usize >= self.places.len() {
            let new = self.places.len()..=at as usize;
            self.places.extend(new.map(Place::alone));
        }
        let behind = self.at(before).behind;
        self.places[at as usize] = Place { before, behind };
        self.places[before as usize].behind = at;
        self.places[behind as usize].before = at;
    }

    /// Puts a slot that is in none at the end of a line.
    pub(crate) fn push(&mut self, line: Line, slot: Slot) {
        self.insert_behind(self.at(line.ends()).before, slot);
        self.live += usize::from(line == Line::Live);
    }

    /// Puts an entry back at the head of the live.
    pub(crate) fn put_back(&mut self, slot: Slot) {
        self.insert_behind(Line::Live.ends(), slot);
        self.live += 1;
    }

    /// Takes a slot out of the line in which it is.
    pub(crate) fn remove(&mut self, line: Line, slot: Slot) {
        let Place { before, behind } = self.at(place(slot));
        self.places[before as usize].behind = behind;
        self.places[behind as usize].before = before;
        self.live -= usize::from(line == Line::Live);
    }

    /// The live entry to evict, out of its line; `None` if all are in use. `look` says what becomes of the
    /// one at the head.
    pub(crate) fn victim(&mut self, mut look: impl FnMut(Slot) -> Found) -> Option<Slot> {
        // Twice round the line there is nobody left who was used before it began.
        for _ in 0..PATIENCE.min(2 * self.live) {
            let slot = self.head(Line::Live)?;
            self.remove(Line::Live, slot);
            match look(slot) {
                Found::Idle => return Some(slot),
                Found::Used => self.push(Line::Live, slot),
            }
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn who_was_used_gets_a_second_chance() {
        let mut lines = Lines::new();
        for slot in 0..4 {
            lines.push(Line::Live, Slot(slot));
        }
        lines.remove(Line::Live, Slot(2));
        let victim = |lines: &mut Lines, used: &[u32]| {
            lines.victim(|slot| {
                if used.contains(&slot.0) {
                    Found::Used
                } else {
                    Found::Idle
                }
            })
        };
        assert_eq!(victim(&mut lines, &[0]), Some(Slot(1)));
        lines.put_back(Slot(1));
        assert_eq!(victim(&mut lines, &[1]), Some(Slot(3)), "0 is behind it");
        assert_eq!(victim(&mut lines, &[0, 1]), None, "the search ends");
        assert_eq!(victim(&mut lines, &[1]), Some(Slot(0)));
        lines.remove(Line::Live, Slot(1));
        assert_eq!(victim(&mut lines, &[]), None);
    }

    #[test]
    fn lines_do_not_meet() {
        let mut lines = Lines::new();
        let all = |lines: &Lines, line| lines.all(line).map(|slot| slot.0).collect::<Vec<_>>();
        for slot in [5, 0, 3] {
            lines.push(Line::Dead, Slot(slot));
        }
        for slot in [4, 1] {
            lines.push(Line::Leaving, Slot(slot));
        }
        assert!(all(&lines, Line::Live).is_empty());
        assert_eq!(all(&lines, Line::Dead), [5, 0, 3]);
        lines.remove(Line::Dead, Slot(0));
        lines.push(Line::Leaving, Slot(0));
        assert_eq!(all(&lines, Line::Dead), [5, 3]);
        assert_eq!(all(&lines, Line::Leaving), [4, 1, 0]);
        assert_eq!(lines.head(Line::Live), None);
    }
}
