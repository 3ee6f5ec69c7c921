//! [`MrRegistrar`]: the registrar of a protection domain.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::ibv_mr;
use regcache::{Registrar, VaRange};

use crate::{Access, Mr, Pd, fork, mr};

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

    /// Registers as [`register`](Registrar::register) does, and returns the structure of
    /// libibverbs. A cache of the C library keeps no more of a registration.
    ///
    /// # Errors
    ///
    /// Those of [`Mr::register`].
    #[doc(hidden)]
    pub fn register_raw(&self, range: VaRange, access: Access) -> io::Result<NonNull<ibv_mr>> {
        Mr::register(&self.pd, range, access).map(Mr::into_raw)
    }

    /// Deregisters what [`register_raw`](Self::register_raw) has returned.
    ///
    /// # Errors
    ///
    /// Those of [`Mr::deregister`].
    ///
    /// # Safety
    ///
    /// This registrar has registered `mr`. The caller does not use `mr` afterwards.
    #[doc(hidden)]
    pub unsafe fn deregister_raw(&self, mr: NonNull<ibv_mr>) -> io::Result<()> {
        // SAFETY: the caller keeps the contract.
        unsafe { mr::deregister(&self.pd, mr) }
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
