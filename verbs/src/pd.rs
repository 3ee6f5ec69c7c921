//! [`Pd`]: a protection domain.

use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{ibv_alloc_pd, ibv_dealloc_pd, ibv_pd};

use crate::errno::{check, check_ptr};
use crate::{Context, Error};

/// A protection domain. The keys of a domain's registrations work only on the domain's queue pairs.
#[derive(Debug)]
pub struct Pd {
    pd: NonNull<ibv_pd>,
    /// False if other code deallocates the domain.
    owned: bool,
    context: Arc<Context>,
}

// SAFETY: libibverbs allows any verb on any object from any thread, as for `Context`.
unsafe impl Send for Pd {}
// SAFETY: the reasons for `Send` also hold for `Sync`.
unsafe impl Sync for Pd {}

impl Pd {
    /// Allocates a protection domain on `context`.
    ///
    /// # Errors
    ///
    /// [`Error::AllocPd`].
    pub fn alloc(context: &Arc<Context>) -> Result<Arc<Self>, Error> {
        // SAFETY: `context` is open as long as it is borrowed, and the new domain holds an `Arc` of
        // it.
        let pd = unsafe { ibv_alloc_pd(context.as_ptr()) };
        let pd = check_ptr(pd).map_err(|source| Error::AllocPd { source })?;
        Ok(Arc::new(Self {
            pd,
            owned: true,
            context: Arc::clone(context),
        }))
    }

    /// Wraps a protection domain that other code has allocated and will deallocate. Use this
    /// function in a program that uses libibverbs directly or through another crate.
    ///
    /// # Safety
    ///
    /// This process has opened the device of `pd`. `pd` stays allocated while the result, or any
    /// object made from it, lives.
    #[must_use]
    pub unsafe fn borrowed(pd: NonNull<ibv_pd>) -> Arc<Self> {
        // SAFETY: the domain is allocated, so libibverbs has set its fields.
        let context = unsafe { Context::borrowed((*pd.as_ptr()).context) };
        Arc::new(Self {
            pd,
            owned: false,
            context,
        })
    }

    /// Returns the device of the domain.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Returns the pointer to the C object, which is valid while `self` lives.
    pub(crate) fn as_ptr(&self) -> *mut ibv_pd {
        self.pd.as_ptr()
    }
}

impl Drop for Pd {
    fn drop(&mut self) {
        if !self.owned || !self.context.is_ours() {
            return;
        }
        // SAFETY: `pd` came from `ibv_alloc_pd` and is deallocated once. Registrations and queue
        // pairs made in it held an `Arc` of `self`, so they are gone. `context` is dropped after
        // this call.
        let deallocated = unsafe { ibv_dealloc_pd(self.as_ptr()) };
        if let Err(error) = check(deallocated) {
            // A registration that the device refused to deregister keeps the domain allocated.
            // Closing the device frees the registration and the domain.
            tracing::warn!(%error, "cannot deallocate the protection domain");
        }
    }
}
