//! [`Batch`]: the dead entries that one thread deregisters, without the lock.

use crate::core::slot::Slot;

/// The number of entries that a thread unlinks or deregisters before it releases the lock or takes
/// it again. A piece takes some microseconds.
pub(crate) const PIECE: usize = 16;

/// Up to [`PIECE`] dead entries that were taken from the list of dead entries.
#[derive(Debug)]
pub(crate) struct Batch {
    slots: [Slot; PIECE],
    len: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            slots: [Slot(0); PIECE],
            len: 0,
        }
    }
}

impl Batch {
    pub(crate) fn is_full(&self) -> bool {
        self.len == PIECE
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots[..self.len]
    }

    /// Adds an entry. The batch must have room.
    pub(crate) fn push(&mut self, slot: Slot) {
        self.slots[self.len] = slot;
        self.len += 1;
    }
}
