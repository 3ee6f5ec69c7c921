//! [`Reaper`]: the background thread that unlinks and deregisters invalidated entries.
//!
//! The thread drains the monitor as a lookup would. Then it unlinks the marked entries, and
//! deregisters the dead ones. The thread does not slow down hits. Where there is a reaper, lookups
//! deregister dead entries only if they need the room. Lookups do not depend on the thread for
//! correctness, because they drain the monitor themselves.
//!
//! Caches that share a monitor share the thread (`sys/worker.rs`).

use std::io;

use crate::core::Core;
use crate::monitor::Monitor;
use crate::registrar::Registrar;
use crate::sys::sync::Arc;
use crate::sys::worker::{Owner, Work};

/// The handle of the reaper. After the handle was dropped, the thread no longer works for the
/// cache.
#[derive(Debug)]
pub(crate) struct Reaper {
    _owner: Owner,
}

impl Reaper {
    /// Starts the reaper and returns its handle, if the monitor has a file descriptor to wait on.
    pub(crate) fn start<R: Registrar, M: Monitor>(
        core: &Arc<Core<R, M>>,
    ) -> io::Result<Option<Self>> {
        let Some(descriptor) = core.monitor.descriptor() else {
            return Ok(None);
        };
        let worker = core.monitor.worker().unwrap_or_default();
        let (owner, wake) = worker.add(descriptor, Box::new(Arc::clone(core)))?;
        // The core is new, so the cell is empty.
        let _ = core.reaper.set(wake);
        Ok(Some(Self { _owner: owner }))
    }
}

impl<R: Registrar, M: Monitor> Work for Arc<Core<R, M>> {
    fn begin(&self) -> bool {
        let drained = self.drain_now();
        if let Err(error) = &drained {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "the reaper could not drain the monitor, and will try again"
            );
        }
        drained.is_ok()
    }

    fn continue_work(&self) -> bool {
        if self.unlink_and_deregister_some() {
            return true;
        }
        self.give_back_if_sparse();
        false
    }
}
