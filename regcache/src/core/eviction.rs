//! [`Eviction`]: the order in which entries are evicted, and the lists of entries to deregister.
//!
//! The order is CLOCK (second chance), an approximation of LRU. `Table::victim` (`table.rs`)
//! examines the entry at the head of the list of live entries. The entry is evicted if it is idle
//! and its reference bit is clear. Otherwise the entry moves to the tail. If the entry is idle,
//! `Entry::was_used` also clears its reference bit. A hit does not change the list. A hit only sets
//! the reference bit of its entry (`Entry::touch` in `entry.rs`). (docs/design/eviction.md compares
//! CLOCK with other orders.)

use crate::core::slab::Slot;

/// The maximum number of entries that one search for a victim examines. An examined entry moves to
/// the tail of the list, so the next search starts with the entries that follow.
const PATIENCE: usize = 4096;

/// The name of a list. A slot is in at most one of the three lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    /// Live entries, in the order of eviction.
    Live,
    /// Unlinked entries that no guard holds and that no thread has begun to deregister.
    Dead,
    /// Unlinked entries that guards still hold, and entries that a thread is deregistering.
    Draining,
}

impl List {
    const COUNT: usize = 3;

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
    /// The length of [`List::Live`].
    live: usize,
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
            live: 0,
        }
    }

    fn at(&self, node: u32) -> Node {
        self.nodes[node as usize]
    }

    /// Returns the slot at the head of the list.
    pub(crate) fn head(&self, list: List) -> Option<Slot> {
        slot_of(self.at(list.sentinel()).next)
    }

    /// Returns all slots of the list, from its head on.
    pub(crate) fn all(&self, list: List) -> impl Iterator<Item = Slot> {
        let next = |slot: &Slot| slot_of(self.at(node_of(*slot)).next);
        std::iter::successors(self.head(list), next)
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

    /// Adds a slot, which must be in no list, at the tail of `list`.
    pub(crate) fn push(&mut self, list: List, slot: Slot) {
        self.insert_after(self.at(list.sentinel()).prev, slot);
        self.live += usize::from(list == List::Live);
    }

    /// Puts a slot that `victim` returned back at the head of the list of live entries.
    pub(crate) fn put_back(&mut self, slot: Slot) {
        self.insert_after(List::Live.sentinel(), slot);
        self.live += 1;
    }

    /// Removes a slot from `list`, which must contain it.
    pub(crate) fn remove(&mut self, list: List, slot: Slot) {
        let Node { prev, next } = self.at(node_of(slot));
        self.nodes[prev as usize].next = next;
        self.nodes[next as usize].prev = prev;
        self.live -= usize::from(list == List::Live);
    }

    /// Removes the next entry to evict from the list of live entries, and returns it. An entry can
    /// be evicted if `is_idle` returns true: the entry is not in use, and its reference bit is
    /// clear. Returns `None` if the search finds no such entry.
    pub(crate) fn victim(&mut self, mut is_idle: impl FnMut(Slot) -> bool) -> Option<Slot> {
        // Two rounds over the list suffice, because the first round clears every reference bit of
        // an idle entry.
        for _ in 0..PATIENCE.min(2 * self.live) {
            let slot = self.head(List::Live)?;
            self.remove(List::Live, slot);
            if is_idle(slot) {
                return Some(slot);
            }
            self.push(List::Live, slot);
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_was_used_gets_a_second_chance() {
        let mut eviction = Eviction::new();
        for slot in 0..4 {
            eviction.push(List::Live, Slot(slot));
        }
        eviction.remove(List::Live, Slot(2));
        let victim =
            |eviction: &mut Eviction, used: &[u32]| eviction.victim(|slot| !used.contains(&slot.0));
        assert_eq!(victim(&mut eviction, &[0]), Some(Slot(1)));
        eviction.put_back(Slot(1));
        assert_eq!(victim(&mut eviction, &[1]), Some(Slot(3)), "0 is behind it");
        assert_eq!(victim(&mut eviction, &[0, 1]), None, "the search ends");
        assert_eq!(victim(&mut eviction, &[1]), Some(Slot(0)));
        eviction.remove(List::Live, Slot(1));
        assert_eq!(victim(&mut eviction, &[]), None);
    }

    #[test]
    fn lists_do_not_meet() {
        let mut eviction = Eviction::new();
        let all =
            |eviction: &Eviction, list| eviction.all(list).map(|slot| slot.0).collect::<Vec<_>>();
        for slot in [5, 0, 3] {
            eviction.push(List::Dead, Slot(slot));
        }
        for slot in [4, 1] {
            eviction.push(List::Draining, Slot(slot));
        }
        assert!(all(&eviction, List::Live).is_empty());
        assert_eq!(all(&eviction, List::Dead), [5, 0, 3]);
        eviction.remove(List::Dead, Slot(0));
        eviction.push(List::Draining, Slot(0));
        assert_eq!(all(&eviction, List::Dead), [5, 3]);
        assert_eq!(all(&eviction, List::Draining), [4, 1, 0]);
        assert_eq!(eviction.head(List::Live), None);
    }
}
