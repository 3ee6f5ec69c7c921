//! [`FreeSlots`]: free slots of the guard table that belong to one thread.

/// The number of slots that move together between a thread's list and a common pool.
pub(crate) const BATCH: usize = 32;

const ROOM: usize = 2 * BATCH;

/// A stack of slots, with room for two batches. A stack whose bytes are all zero is empty.
pub(crate) struct FreeSlots {
    /// The number of slots in the stack, which is at most [`ROOM`].
    len: u32,
    slots: [u32; ROOM],
}

/// The free slots of one thread, near and far (`guards.rs`).
pub(crate) type Lists = [FreeSlots; 2];

/// The place for another slot, in a stack that is not full.
pub(crate) struct Place<'f> {
    len: &'f mut u32,
    place: &'f mut u32,
}

impl FreeSlots {
    /// A stack that seems to be full. Its slots are not used.
    pub(crate) const FULL: Self = Self {
        len: ROOM as u32,
        slots: [0; ROOM],
    };

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the slot on top, if there is one.
    pub(crate) fn pop(&mut self) -> Option<u32> {
        // SAFETY: the stack is not empty.
        (!self.is_empty()).then(|| unsafe { self.pop_unchecked() })
    }

    /// Takes the slot on top.
    ///
    /// # Safety
    ///
    /// The stack is not empty.
    #[inline(always)]
    pub(crate) unsafe fn pop_unchecked(&mut self) -> u32 {
        self.len = self.len.wrapping_sub(1);
        // SAFETY: `len` was at least 1, and at most the number of elements.
        unsafe { *self.slots.get_unchecked(self.len as usize) }
    }

    #[inline(always)]
    pub(crate) fn is_full(&self) -> bool {
        self.len as usize >= ROOM
    }

    /// Returns the place for another slot, if there is one.
    #[inline(always)]
    pub(crate) fn place(&mut self) -> Option<Place<'_>> {
        let place = self.slots.get_mut(self.len as usize)?;
        let len = &mut self.len;
        Some(Place { len, place })
    }

    /// Takes one batch off the top. The caller must have checked that the stack has at least one
    /// batch.
    pub(crate) fn pop_batch(&mut self) -> &[u32] {
        self.len -= BATCH as u32;
        &self.slots[self.len as usize..][..BATCH]
    }
}

impl Place<'_> {
    /// Puts a slot on top.
    #[inline(always)]
    pub(crate) fn fill(self, slot: u32) {
        *self.place = slot;
        *self.len += 1;
    }
}
