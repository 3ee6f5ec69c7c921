//! [`MrRegistrar`]: the registrar of a protection domain.

use std::io;
use std::sync::Arc;

use regcache::{Registrar, VaRange};

use crate::{Access, Mr, Pd, fork};

/// A registrar that makes and destroys [`Mr`]s in one protection domain.
#[derive(Clone, Debug)]
pub struct MrRegistrar {
    pd: Arc<Pd>,
}

impl MrRegistrar {
    /// Makes a registrar for `pd`.
    #[must_use]
    pub fn new(pd: &Arc<Pd>) -> Self {
        Self { pd: Arc::clone(pd) }
    }

    /// Returns the protection domain.
    #[must_use]
    pub fn pd(&self) -> &Arc<Pd> {
        &self.pd
    }
}

// SAFETY:
// - `ibv_reg_mr` covers the whole range or fails. The registration allows the requested access or
//   more (`Access::with_implied`). Its addresses are those of the process, because the passed iova
//   is the start.
// - The kernel pins the pages with `pin_user_pages` between call and return, and keeps the pins
//   until the registration is deregistered. ON_DEMAND would not pin, but it is not in `Access`, and
//   `Mr::register` refuses flags that are not in `Access`.
// - `ibv_dereg_mr` returns 0 after the kernel has invalidated the key in the device and unpinned
//   the pages. `Access` has no MW_BIND, so no memory window can still have access to them.
unsafe impl Registrar for MrRegistrar {
    type Access = Access;
    type Registration = Mr;

    fn register(&self, range: VaRange, access: Access) -> io::Result<Mr> {
        Mr::register(&self.pd, range, access)
    }

    fn prepare(&self, range: VaRange) -> bool {
        fork::keep_from_children(range)
    }

    fn finish(&self, range: VaRange) {
        fork::stop_keeping_from_children(range);
    }

    fn deregister(&self, registration: Mr) -> io::Result<()> {
        registration.deregister()
    }
}
