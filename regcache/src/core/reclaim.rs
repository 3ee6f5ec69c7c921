//! [`Reclaim`]: makes room on an exhausted device or monitor, for one lookup.
//!
//! A lookup is refused for lack of room, evicts an idle entry, and tries again. Another thread may
//! take the room that was made in between. So a refusal after an eviction does not show that the
//! room was too small. `Reclaim` distinguishes the two cases:
//!
//! - No other thread has taken room since the eviction. The evicted entries are subtracted from a
//!   *quota*, which is the size of the request. So a registration that the device cannot make costs
//!   no more than its own size.
//! - Another thread may have taken the room. It has made a registration since the eviction, or has
//!   one in the making. The lookup may then evict one more entry beyond its quota. Each time some
//!   thread has made progress. A limit bounds the number of such evictions.
//!
//! The version of the table is read *before* the evicted entry is deregistered. So no thread can
//! take the room unnoticed.

use std::time::{Duration, Instant};

use crate::core::Core;
use crate::core::batch::Batch;
use crate::core::completion::Completion;
use crate::monitor::Monitor;
use crate::registrar::Registrar;
use crate::sys::sync::Arc;

/// The maximum time that a lookup on an exhausted device waits until another thread has
/// deregistered or finished a registration.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The number of times that another thread may take the room of a lookup.
const MAX_TAKEN: u32 = 64;

/// The state of one lookup's attempts to make room; see the head of this file.
#[derive(Debug)]
pub(crate) struct Reclaim {
    /// The number of bytes that may still be evicted for the lookup.
    quota: usize,
    /// The number of times that another thread may still take the room.
    patience: u32,
    /// The table's version of taken room at the last eviction.
    taken: Option<u64>,
}

impl Reclaim {
    /// Returns the state of a lookup that may evict `quota` bytes.
    pub(crate) fn with_quota(quota: usize) -> Self {
        Self {
            quota,
            patience: MAX_TAKEN,
            taken: None,
        }
    }

    /// Makes room. Deregisters dead entries. If there are none, evicts an idle entry, or waits
    /// until another thread has deregistered an unlinked one. The caller has one registration in
    /// the making, which was refused.
    ///
    /// Returns false if a retry would fail again. A retry fails if the quota is used up and no
    /// other thread can have taken the room. A retry also fails if the cache has no entry to evict
    /// or to wait for, and nothing has changed since the caller read `version` (see
    /// `Table::room_version`).
    pub(crate) fn reclaim<R: Registrar, M: Monitor>(
        &mut self,
        core: &Arc<Core<R, M>>,
        version: u64,
    ) -> bool {
        let mut batch = Batch::default();
        let (id, bytes) = {
            let mut table = core.lock();
            let others = table.in_the_making() > 1;
            if self.quota == 0 {
                let taken = |then| others || table.taken_version() != then;
                if self.patience == 0 || !self.taken.is_some_and(taken) {
                    return false;
                }
                self.patience -= 1;
            }
            self.taken = Some(table.taken_version());
            match table.make_way(&core.slab, self.quota.max(1), &mut batch) {
                Some(outgoing) => outgoing,
                // The version has changed. So another thread may have made room, or a registration
                // that serves the request. A retry is worthwhile.
                None if table.room_version() != version => (None, core.page_size),
                None if others => {
                    let until = Instant::now() + TIMEOUT;
                    table.awaiting += 1;
                    while table.room_version() == version && table.in_the_making() > 1 {
                        let rest = until.saturating_duration_since(Instant::now());
                        if rest.is_zero() {
                            self.patience = 0;
                            break;
                        }
                        table = table.wait_for(&core.settled, rest);
                    }
                    table.awaiting -= 1;
                    (None, core.page_size)
                }
                None => return false,
            }
        };
        self.quota = self.quota.saturating_sub(bytes);
        core.deregister_and_vacate(&batch);
        // Another thread may be deregistering the entry, so this thread waits until the entry is
        // gone.
        Completion::of(core, Vec::from_iter(id)).wait(TIMEOUT);
        true
    }
}
