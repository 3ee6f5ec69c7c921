//! [`Completion`]: waits until registrations are deregistered.

use std::fmt;
use std::mem;
use std::time::{Duration, Instant};

use crate::core::Core;
use crate::core::slot::EntryId;
use crate::core::table::Table;
use crate::monitor::{Auto, Monitor};
use crate::registrar::Registrar;
use crate::sys::sync::Arc;

/// The registrations that guards may still hold although no later lookup returns them. Uncached
/// registrations are included.
///
/// Each registration is deregistered when its last guard is dropped. A completion can wait for
/// these deregistrations. Dropping the completion has no effect on the registrations.
pub struct Completion<R: Registrar, M: Monitor = Auto> {
    core: Arc<Core<R, M>>,
    /// The registrations that were not deregistered at the last check.
    left: Vec<EntryId>,
}

impl<R: Registrar, M: Monitor> Completion<R, M> {
    pub(crate) fn of(core: &Arc<Core<R, M>>, left: Vec<EntryId>) -> Self {
        Self {
            core: Arc::clone(core),
            left,
        }
    }

    /// Returns the number of registrations that are not deregistered yet. Returns 0 in a forked
    /// child, because the registrations belong to the parent.
    pub fn in_use(&mut self) -> usize {
        if self.core.in_child() {
            return 0;
        }
        let core = Arc::clone(&self.core);
        self.count(&core.lock())
    }

    /// Waits until all registrations are deregistered, for `timeout` at most. Returns true if no
    /// registration is left.
    ///
    /// This method does not drop the guards that hold the registrations. Other threads have to drop
    /// them.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        if self.core.in_child() {
            return true;
        }
        let core = Arc::clone(&self.core);
        let until = Instant::now().checked_add(timeout);
        let mut table = core.lock();
        table.waiting += 1;
        let mut done = self.count(&table) == 0;
        while !done {
            // If the deadline overflowed, each wait lasts for the whole time-out.
            let rest = until.map_or(timeout, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if rest.is_zero() {
                break;
            }
            table = table.wait_for(&core.deregistered, rest);
            done = self.count(&table) == 0;
        }
        table.waiting -= 1;
        done
    }

    /// Waits as [`wait`](Self::wait) does, but only for the registrations that no guard held when
    /// they were unlinked.
    pub(crate) fn wait_for_idle(mut self, timeout: Duration) {
        if !self.core.in_child() {
            let core = Arc::clone(&self.core);
            let table = core.lock();
            self.left.retain(|&id| table.is_idle_and_leaving(id));
        }
        self.wait(timeout);
    }

    fn count(&mut self, table: &Table<R::Access>) -> usize {
        self.left.retain(|&id| !table.is_gone(id));
        self.left.len()
    }
}

impl<R: Registrar, M: Monitor> Drop for Completion<R, M> {
    fn drop(&mut self) {
        if self.core.in_child() {
            // The registrar and the monitor belong to the parent process. Dropping them here would
            // close file descriptors that the parent still uses. So the child leaks the registrar
            // and the monitor.
            mem::forget(Arc::clone(&self.core));
        }
    }
}

impl<R: Registrar, M: Monitor> fmt::Debug for Completion<R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("left", &self.left.len())
            .finish_non_exhaustive()
    }
}
