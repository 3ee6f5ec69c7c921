//! [`Gate`]: the answer without a lock that nothing has changed.
//!
//! The gate is open if two conditions hold. The mark contains the inverted generation that the
//! monitor has now, so every report was read. And no watch has stale subscriptions, so the reports
//! that were read are dealt with. The mark alone is not enough: a drain for one range also reads
//! the reports of other ranges, whose subscriptions are stale from then on.
//!
//! Let U be an invalidation that ended before the question. The asker loads the generation first,
//! and finds U's generation or a later one (M3). If the mark is equal, it was stored by a drain
//! that read U's report (M1). That drain counted U's watch as stale *before* it stored the mark.
//! The store releases and the load acquires, so the asker's load of the count, which comes last,
//! finds the watch counted. It is counted until each of its stale subscriptions has ended. So the
//! asker gets "open" only if the subscription that it asks about is not stale, or has ended.

use std::io;

use regcache::internal::ForkMark;

use crate::sync::{AtomicUsize, Ordering};

/// The mark and the count; see the head of this file.
#[derive(Debug)]
pub(crate) struct Gate {
    mark: ForkMark,
    stale: AtomicUsize,
}

impl Gate {
    /// Makes a gate that is closed until the first drain.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            // No monitor has the generation `u64::MAX - 1` before its first change.
            mark: ForkMark::new(1)?,
            stale: AtomicUsize::new(0),
        })
    }

    /// Returns true if nothing has changed up to this generation. The caller must have loaded the
    /// generation before this call.
    #[inline]
    pub(crate) fn is_open(&self, generation: u64) -> bool {
        self.mark.load(Ordering::Acquire) == !generation && self.stale.load(Ordering::Acquire) == 0
    }

    /// Returns true in a forked child. There the mark is 0, so the gate is never open.
    pub(crate) fn in_child(&self) -> bool {
        self.mark.in_child()
    }

    /// Returns whether a watch has stale subscriptions.
    pub(crate) fn has_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed) > 0
    }

    /// Sets the number of watches with stale subscriptions. The caller holds the lock of the
    /// watches.
    pub(crate) fn set_stale(&self, watches: usize) {
        self.stale.store(watches, Ordering::Release);
    }

    /// Notes that every report up to this generation was read, and counted by
    /// [`set_stale`](Self::set_stale). The caller holds the lock of the watches.
    pub(crate) fn drained(&self, generation: u64) {
        self.mark.store(!generation, Ordering::Release);
    }
}
