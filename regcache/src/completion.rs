//! [`Completion`]: when what was given up is gone.

use std::fmt;
use std::mem;
use std::time::{Duration, Instant};

use crate::Registrar;
use crate::cache::{Core, Place};
use crate::core::table::Ledger;
use crate::monitor::{Auto, Monitor};
use crate::sys::sync::{Arc, lock, wait_for};

/// Registrations that a cache has given up, and that guards may still hold; those that it never kept among
/// them.
///
/// None of them serves a lookup any more. Each is deregistered when its last guard is dropped; this
/// tells when. Dropping it changes nothing.
pub struct Completion<R: Registrar, M: Monitor = Auto> {
    core: Arc<Core<R, M>>,
    left: Vec<Place>,
}

impl<R: Registrar, M: Monitor> Completion<R, M> {
    pub(crate) fn of(core: &Arc<Core<R, M>>, left: Vec<Place>) -> Self {
        Self {
            core: Arc::clone(core),
            left,
        }
    }

    /// How many are not deregistered yet. In a forked child 0: they are the parent's.
    pub fn in_use(&mut self) -> usize {
        if self.core.in_child() {
            return 0;
        }
        let core = Arc::clone(&self.core);
        self.count(&lock(&core.ledger))
    }

    /// Waits until all are deregistered, for `timeout` at most; true if they are. The guards must be
    /// dropped by other threads.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        if self.core.in_child() {
            return true;
        }
        let core = Arc::clone(&self.core);
        let until = Instant::now().checked_add(timeout);
        let mut ledger = lock(&core.ledger);
        ledger.waiting += 1;
        let mut done = self.count(&ledger) == 0;
        while !done {
            // A time that there is no clock for is for ever.
            let rest = until.map_or(timeout, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if rest.is_zero() {
                break;
            }
            ledger = wait_for(&core.vacated, ledger, rest);
            done = self.count(&ledger) == 0;
        }
        ledger.waiting -= 1;
        done
    }

    fn count(&mut self, ledger: &Ledger<R::Access>) -> usize {
        self.left.retain(|&place| !ledger.is_gone(place));
        self.left.len()
    }
}

impl<R: Registrar, M: Monitor> Drop for Completion<R, M> {
    fn drop(&mut self) {
        if self.core.in_child() {
            // What the registrar and the monitor would close is the parent's.
            mem::forget(Arc::clone(&self.core));
        }
    }
}

impl<R: Registrar, M: Monitor> fmt::Debug for Completion<R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("given_up", &self.left.len())
            .finish_non_exhaustive()
    }
}
