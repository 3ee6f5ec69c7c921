//! [`FreeSlots`]: the free slots of the guard table that belong to one thread.

/// The number of slots that move together between a thread's list and the common pool.
pub(crate) const BATCH: usize = 32;

/// A stack of slots, with room for two batches. A stack whose bytes are all zero is empty.
pub(crate) struct FreeSlots {
    len: usize,
    slots: [u32; 2 * BATCH],
}

impl FreeSlots {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.len == self.slots.len()
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<u32> {
        self.len = self.len.checked_sub(1)?;
        self.slots.get(self.len).copied()
    }

    /// Puts a slot on top. The caller must have checked that the stack is not full.
    #[inline]
    pub(crate) fn push(&mut self, slot: u32) {
        self.slots[self.len] = slot;
        self.len += 1;
    }

    /// Takes one batch off the top. The caller must have checked that the stack has at least one
    /// batch.
    pub(crate) fn pop_batch(&mut self) -> &[u32] {
        self.len -= BATCH;
        &self.slots[self.len..][..BATCH]
    }
}
