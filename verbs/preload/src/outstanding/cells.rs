//! [`Cells`]: counters of completions by the numbers of queue pairs.
//!
//! A poll counts a completion in the cell of its queue pair. It takes no lock and looks up no
//! record, so it costs a few instructions. The cells are never freed. So a poll may count a
//! completion of a queue pair that another thread destroys at that moment.
//!
//! The lower 16 bits of a number select the cell. So two queue pairs can have the same cell, and a
//! queue pair can get the cell of a destroyed one, whose completions can still be polled.
//! [`Owners`] records the owners of cells, so that a queue reads a cell only if no other queue pair
//! can count there.

use std::collections::HashMap;

use super::queue::Queue;
use super::sync::{Arc, AtomicU64, Ordering};

/// The number of cells of a device.
pub(crate) const CELLS: usize = 1 << 16;

/// The numbers of completions of one queue pair. Each cell has a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
pub(crate) struct Cell {
    pub(crate) sends: AtomicU64,
    pub(crate) receives: AtomicU64,
    /// The completions with errors, of which nobody knows whether they end sends or receives.
    pub(crate) errors: AtomicU64,
}

impl Cell {
    /// Returns the number of the cell of a queue pair.
    #[inline]
    pub(crate) fn of(number: u32) -> u16 {
        number as u16
    }
}

/// A counter that a queue reads, and its value when the queue began to read it.
pub(super) struct Counter {
    count: &'static AtomicU64,
    base: u64,
}

impl Counter {
    pub(super) fn new(count: &'static AtomicU64) -> Self {
        let base = count.load(Ordering::Acquire);
        Self { count, base }
    }

    pub(super) fn is(&self, count: &AtomicU64) -> bool {
        std::ptr::eq(self.count, count)
    }

    /// Returns how much the counter has risen.
    pub(super) fn risen(&self) -> u64 {
        self.count.load(Ordering::Acquire).wrapping_sub(self.base)
    }
}

/// The owners of the cells of one device.
#[derive(Default)]
pub(crate) struct Owners(HashMap<u16, Owner>);

enum Owner {
    /// A queue pair counts here, with these queues.
    Of(&'static Cell, Vec<Arc<Queue>>),
    /// Completions of a destroyed queue pair may still be counted here.
    Stale,
}

impl Owners {
    /// Lets the queues of a new queue pair read the cell. Returns false if another queue pair may
    /// count there. Then no queue reads the cell any more.
    pub(crate) fn take(
        &mut self,
        number: u32,
        cell: &'static Cell,
        sends: &Arc<Queue>,
        receives: Option<&Arc<Queue>>,
    ) -> bool {
        match self.0.insert(Cell::of(number), Owner::Stale) {
            None => {
                sends.read(&cell.sends);
                if let Some(receives) = receives {
                    receives.read(&cell.receives);
                }
                let queues = std::iter::once(sends).chain(receives).cloned().collect();
                self.0.insert(Cell::of(number), Owner::Of(cell, queues));
                true
            }
            Some(Owner::Of(cell, queues)) => {
                ignore(cell, &queues);
                false
            }
            Some(Owner::Stale) => false,
        }
    }

    /// Takes the cell from a queue pair that was destroyed. `is_clean` is true if none of its
    /// completions can be polled any more.
    pub(crate) fn give_back(&mut self, number: u32, is_clean: bool) {
        match self.0.remove(&Cell::of(number)) {
            Some(Owner::Of(cell, queues)) => {
                ignore(cell, &queues);
                if !is_clean {
                    self.0.insert(Cell::of(number), Owner::Stale);
                }
            }
            Some(Owner::Stale) => {
                self.0.insert(Cell::of(number), Owner::Stale);
            }
            None => {}
        }
    }
}

/// Makes the queues ignore what is counted in the cell from now on.
fn ignore(cell: &Cell, queues: &[Arc<Queue>]) {
    for queue in queues {
        queue.ignore(&cell.sends);
        queue.ignore(&cell.receives);
    }
}
