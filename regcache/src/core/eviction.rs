//! [`Eviction`]: the order in which entries are evicted, and the lists of entries to deregister.
//!
//! The order is CLOCK (second chance), an approximation of LRU. The head of the list of live
//! entries is evicted unless its reference bit is set. In that case the bit is cleared and the
//! entry moves to the tail. A hit does not touch the list: it sets the bit in its own entry, and
//! eviction reads the bit. (docs/design/eviction.md compares CLOCK with other orders.)

use crate::core::slab::Slot;

/// The number of entries that one search for a victim looks at, at most. The next search goes on
/// where this one ended.
const PATIENCE: usize = 4096;

/// One of the lists. A slot is in at most one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    /// Live entries, in the order of eviction.
    Live,
    /// Entries without references, whose content is still to be taken out.
    Dead,
    /// Unlinked entries whose content guards still use, or whose content some thread has taken out
    /// and is deregistering.
    Draining,
}

impl List {
    const COUNT: usize = 3;

    /// Returns the list's sentinel node, which comes before its head and after its tail.
    fn sentinel(self) -> u32 {
        self as u32
    }
}

/// The lists, doubly linked, with a node for each slot.
#[derive(Debug)]
pub(crate) struct Eviction {
    /// The sentinels of all lists, then the nodes of the slots.
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
    /// Returns a node in no list, or the sentinel of an empty one.
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

    /// Puts a slot that is in no list at the tail of this one.
    pub(crate) fn push(&mut self, list: List, slot: Slot) {
        self.insert_after(self.at(list.sentinel()).prev, slot);
        self.live += usize::from(list == List::Live);
    }

    /// Puts a victim back at the head of the live entries.
    pub(crate) fn put_back(&mut self, slot: Slot) {
        self.insert_after(List::Live.sentinel(), slot);
        self.live += 1;
    }

    /// Takes a slot out of the list that it is in.
    pub(crate) fn remove(&mut self, list: List, slot: Slot) {
        let Node { prev, next } = self.at(node_of(slot));
        self.nodes[prev as usize].next = next;
        self.nodes[next as usize].prev = prev;
        self.live -= usize::from(list == List::Live);
    }

    /// Takes the next entry to evict out of the live entries. Returns `None` if it finds none that
    /// `is_idle`: not in use, and with its reference bit clear.
    pub(crate) fn victim(&mut self, mut is_idle: impl FnMut(Slot) -> bool) -> Option<Slot> {
        // After two rounds every bit that was set at the beginning is clear.
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
