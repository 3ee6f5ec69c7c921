//! [`Eviction`]: the order in which entries are evicted, and the lists of entries to unlink and to
//! deregister.
//!
//! The order is CLOCK (second chance), an approximation of LRU. `Table::victim` (`table.rs`)
//! examines the entry at the head of the list of live entries. The entry is evicted if it is idle
//! and its reference bit is clear. An idle entry whose reference bit is set moves to the tail, and
//! `Entry::was_used` clears its bit. A hit does not change the list. A hit only sets the reference
//! bit of its entry (`Entry::touch` in `entry.rs`). (docs/design/eviction.md compares CLOCK with
//! other orders.)
//!
//! Two rules bound the cost of a search, and let no search fail while an entry is idle:
//!
//! - A search gives at most [`CHANCES`] second chances. After that it takes the first idle entry.
//! - An entry in use is *parked*: it moves to a list of its own, where later searches do not meet
//!   it. The drop of its last guard moves it back to the tail of the list of live entries
//!   (`entry.rs`). So a search examines an entry in use only once for each time that the entry is
//!   in use.

use crate::core::slot::Slot;
use crate::sys::prefetch::prefetch;

/// The maximum number of second chances that one search gives.
const CHANCES: usize = 256;

/// The number of parked entries that a search examines if no other entry is left.
const PARKED: usize = 16;

/// The name of a list. A slot is in at most one list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    /// Linked entries, in the order of eviction.
    Live,
    /// Linked entries that a search has found in use.
    Parked,
    /// Linked entries that a search has chosen, if it has to choose several.
    Chosen,
    /// Linked entries that a report has named, and that are to be unlinked.
    Marked,
    /// Unlinked entries that no guard holds and that no thread has begun to deregister.
    Dead,
    /// Unlinked entries that guards still hold, and entries that a thread is deregistering.
    Draining,
}

impl List {
    const COUNT: usize = 6;

    /// Returns the list's sentinel node, which comes before the list's head and after its tail.
    fn sentinel(self) -> u32 {
        self as u32
    }
}

/// The doubly linked lists, with one node for each slot.
#[derive(Debug)]
pub(crate) struct Eviction {
    /// The sentinels of all lists, followed by the nodes of the slots.
    nodes: Vec<Node>,
}

/// The state of an entry, as a search for a victim sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Candidate {
    /// A guard holds the entry, and the entry is parked.
    InUse,
    /// The entry is idle, and its reference bit was set. The bit is clear now.
    Used,
    /// The entry is idle, and its reference bit was clear.
    Idle,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    prev: u32,
    next: u32,
}

impl Node {
    /// Returns a node that is linked only to itself. A slot in no list has such a node, and so has
    /// the sentinel of an empty list.
    fn unlinked(at: usize) -> Self {
        Self {
            prev: at as u32,
            next: at as u32,
        }
    }
}

fn node_of(slot: Slot) -> u32 {
    slot.0 + List::COUNT as u32
}

/// Returns the slot of a node, or `None` for a sentinel.
fn slot_of(node: u32) -> Option<Slot> {
    Some(Slot(node.checked_sub(List::COUNT as u32)?))
}

impl Eviction {
    pub(crate) fn new() -> Self {
        Self {
            nodes: (0..List::COUNT).map(Node::unlinked).collect(),
        }
    }

    fn at(&self, node: u32) -> Node {
        self.nodes[node as usize]
    }

    /// Returns the slot at the head of the list.
    pub(crate) fn head(&self, list: List) -> Option<Slot> {
        slot_of(self.at(list.sentinel()).next)
    }

    /// Returns the slot that comes after this one in its list.
    pub(crate) fn after(&self, slot: Slot) -> Option<Slot> {
        slot_of(self.at(node_of(slot)).next)
    }

    /// Begins to load the node of a slot.
    pub(crate) fn prefetch(&self, slot: Slot) {
        if let Some(node) = self.nodes.get(node_of(slot) as usize) {
            prefetch(node);
        }
    }

    /// Returns all slots of the list, from its head on.
    pub(crate) fn all(&self, list: List) -> impl Iterator<Item = Slot> {
        std::iter::successors(self.head(list), |&slot| self.after(slot))
    }

    fn insert_after(&mut self, prev: u32, slot: Slot) {
        let node = node_of(slot);
        if node as usize >= self.nodes.len() {
            let new = self.nodes.len()..=node as usize;
            self.nodes.extend(new.map(Node::unlinked));
        }
        let next = self.at(prev).next;
        self.nodes[node as usize] = Node { prev, next };
        self.nodes[prev as usize].next = node;
        self.nodes[next as usize].prev = node;
    }

    /// Frees the nodes of the slots from this one on, which are in no list.
    pub(crate) fn give_back(&mut self, slots: usize) {
        self.nodes.truncate(slots + List::COUNT);
        self.nodes.shrink_to_fit();
    }

    /// Adds a slot, which must be in no list, at the tail of `list`.
    pub(crate) fn push(&mut self, list: List, slot: Slot) {
        self.insert_after(self.at(list.sentinel()).prev, slot);
    }

    /// Moves a slot from its list to the tail of `list`.
    pub(crate) fn move_to(&mut self, list: List, slot: Slot) {
        self.remove(slot);
        self.push(list, slot);
    }

    /// Moves all slots of [`List::Chosen`] back to the head of [`List::Live`], in the order in
    /// which they were chosen.
    pub(crate) fn put_back(&mut self) {
        while let Some(slot) = slot_of(self.at(List::Chosen.sentinel()).prev) {
            self.remove(slot);
            self.insert_after(List::Live.sentinel(), slot);
        }
    }

    /// Removes a slot from its list.
    pub(crate) fn remove(&mut self, slot: Slot) {
        let Node { prev, next } = self.at(node_of(slot));
        self.nodes[prev as usize].next = next;
        self.nodes[next as usize].prev = prev;
    }

    /// Returns the next entry to evict, which stays at the head of its list. `examine` looks at an
    /// entry, clears its reference bit, and parks it if it is in use. Returns `None` if all entries
    /// are in use.
    pub(crate) fn victim(&mut self, mut examine: impl FnMut(Slot) -> Candidate) -> Option<Slot> {
        let mut chances = CHANCES;
        while let Some(slot) = self.head(List::Live) {
            match examine(slot) {
                Candidate::Idle => return Some(slot),
                Candidate::Used if chances == 0 => return Some(slot),
                Candidate::Used => {
                    chances -= 1;
                    self.move_to(List::Live, slot);
                }
                Candidate::InUse => self.move_to(List::Parked, slot),
            }
        }
        // A guard that was dropped while its entry was being parked may not have told the table. So
        // the parked entries are examined again, a few in each search.
        for _ in 0..PARKED {
            let slot = self.head(List::Parked)?;
            if examine(slot) != Candidate::InUse {
                return Some(slot);
            }
            self.move_to(List::Parked, slot);
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Searches for a victim among entries of which some are in use and some were used.
    fn victim(eviction: &mut Eviction, in_use: &[u32], used: &mut Vec<u32>) -> Option<u32> {
        let victim = eviction.victim(|Slot(slot)| {
            if in_use.contains(&slot) {
                return Candidate::InUse;
            }
            let before = used.len();
            used.retain(|&other| other != slot);
            if used.len() < before {
                Candidate::Used
            } else {
                Candidate::Idle
            }
        })?;
        Some(victim.0)
    }

    fn of(entries: u32) -> Eviction {
        let mut eviction = Eviction::new();
        for slot in 0..entries {
            eviction.push(List::Live, Slot(slot));
        }
        eviction
    }

    fn all(eviction: &Eviction, list: List) -> Vec<u32> {
        eviction.all(list).map(|slot| slot.0).collect()
    }

    #[test]
    fn an_entry_that_was_used_gets_a_second_chance() {
        let mut eviction = of(4);
        eviction.remove(Slot(2));
        assert_eq!(victim(&mut eviction, &[], &mut vec![0]), Some(1));
        assert_eq!(all(&eviction, List::Live), [1, 3, 0]);
        assert_eq!(victim(&mut eviction, &[], &mut vec![0, 1, 3]), Some(1));
        assert_eq!(all(&eviction, List::Live), [1, 3, 0], "a whole round");
    }

    #[test]
    fn a_search_does_not_fail_while_an_entry_is_idle_and_gives_a_bounded_number_of_chances() {
        let entries = 4 * CHANCES as u32;
        let mut eviction = of(entries);
        let mut used = (0..entries).collect();
        assert_eq!(
            victim(&mut eviction, &[], &mut used),
            Some(CHANCES as u32),
            "all were used"
        );
        let in_use: Vec<_> = (0..entries).filter(|&slot| slot != 700).collect();
        assert_eq!(victim(&mut eviction, &in_use, &mut vec![]), Some(700));
    }

    #[test]
    fn a_search_meets_an_entry_in_use_once() {
        let mut eviction = of(1000);
        let mut examined = 0;
        let mut search = |eviction: &mut Eviction| {
            let before = examined;
            let found = eviction.victim(|_| {
                examined += 1;
                Candidate::InUse
            });
            assert_eq!(found, None);
            examined - before
        };
        assert_eq!(search(&mut eviction), 1000 + PARKED);
        assert_eq!(search(&mut eviction), PARKED);
        assert_eq!(eviction.head(List::Live), None);
        let parked = all(&eviction, List::Parked);
        assert_eq!(parked.len(), 1000);
        assert_eq!(
            parked[0],
            2 * PARKED as u32,
            "the next search goes on there"
        );
        let idle = parked[3];
        let in_use: Vec<_> = (0..1000).filter(|&slot| slot != idle).collect();
        assert_eq!(victim(&mut eviction, &in_use, &mut vec![]), Some(idle));
    }

    #[test]
    fn chosen_entries_go_back_in_their_order() {
        let mut eviction = of(4);
        eviction.move_to(List::Chosen, Slot(0));
        eviction.move_to(List::Chosen, Slot(1));
        eviction.put_back();
        assert_eq!(all(&eviction, List::Live), [0, 1, 2, 3]);
        assert!(all(&eviction, List::Chosen).is_empty());
    }

    #[test]
    fn lists_do_not_meet() {
        let mut eviction = Eviction::new();
        for slot in [5, 0, 3] {
            eviction.push(List::Dead, Slot(slot));
        }
        for slot in [4, 1] {
            eviction.push(List::Draining, Slot(slot));
        }
        assert!(all(&eviction, List::Live).is_empty());
        assert_eq!(all(&eviction, List::Dead), [5, 0, 3]);
        eviction.move_to(List::Draining, Slot(0));
        assert_eq!(all(&eviction, List::Dead), [5, 3]);
        assert_eq!(all(&eviction, List::Draining), [4, 1, 0]);
        assert_eq!(eviction.head(List::Live), None);
    }
}
