//! [`Batch`]: the entries that one thread deregisters, without the lock.

use arrayvec::ArrayVec;

use crate::core::slot::Slot;

/// The number of entries that a thread unlinks or deregisters before it releases the lock or takes
/// it again. A piece takes some microseconds.
pub(crate) const PIECE: usize = 16;

/// Up to [`PIECE`] unlinked entries that no guard holds, and that no other thread deregisters.
pub(crate) type Batch = ArrayVec<Slot, PIECE>;
