//! [`MrRegistrar`]: the registrar of a protection domain.

use std::io;
use std::sync::Arc;

use regcache::{Registrar, VaRange};

use crate::{Access, Mr, Pd};

/// Makes and destroys [`Mr`]s in one protection domain.
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
// - `ibv_reg_mr` covers the whole range or fails, with the access asked for or more
//   (`Access::with_implied`), at the process's own addresses (the iova given is the start).
// - It pins the pages with `pin_user_pages` between call and return, and keeps the pins until it is
//   deregistered. ON_DEMAND, which would not pin, is not in `Access`, and `Mr::register` refuses
//   flags that are not in it.
// - `ibv_dereg_mr` returns 0 once the kernel has invalidated the key in the device and unpinned.
//   `Access` has no MW_BIND, so no memory window keeps a second way in.
unsafe impl Registrar for MrRegistrar {
    type Access = Access;
    type Registration = Mr;

    fn register(&self, range: VaRange, access: Access) -> io::Result<Mr> {
        Mr::register(&self.pd, range, access)
    }

    fn deregister(&self, registration: Mr) -> io::Result<()> {
        registration.deregister()
    }
}
