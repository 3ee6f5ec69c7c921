//! [`Pd`], a protection domain.

use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{ibv_alloc_pd, ibv_dealloc_pd, ibv_pd};

use crate::errno::{check, check_ptr};
use crate::{Context, Error};

/// A protection domain: keys made in it work only on queue pairs made in it.
#[derive(Debug)]
pub struct Pd {
    pd: NonNull<ibv_pd>,
    /// False if it is somebody else's to deallocate.
    owned: bool,
    context: Arc<Context>,
}

// SAFETY: libibverbs allows any verb on any object from any thread, as for `Context`.
unsafe impl Send for Pd {}
// SAFETY: as for Send.
unsafe impl Sync for Pd {}

impl Pd {
    /// Allocates a protection domain on `context`.
    ///
    /// # Errors
    ///
    /// [`Error::AllocPd`].
    pub fn alloc(context: &Arc<Context>) -> Result<Arc<Self>, Error> {
        // SAFETY: `context` is open as long as it is borrowed, and the new domain keeps it open.
        let pd = unsafe { ibv_alloc_pd(context.as_ptr()) };
        let pd = check_ptr(pd).map_err(|source| Error::AllocPd { source })?;
        Ok(Arc::new(Self {
            pd,
            owned: true,
            context: Arc::clone(context),
        }))
    }

    /// A protection domain that somebody else has allocated, and will deallocate, on a device that they have
    /// opened. For programs that are not written in Rust, or with another crate.
    ///
    /// # Safety
    ///
    /// `pd` is allocated, and stays so while the result, or anything made from it, lives; its device was opened by
    /// this process.
    #[must_use]
    pub unsafe fn borrowed(pd: NonNull<ibv_pd>) -> Arc<Self> {
        // SAFETY: allocated, so that libibverbs has filled it in.
        let context = unsafe { Context::borrowed((*pd.as_ptr()).context) };
        Arc::new(Self {
            pd,
            owned: false,
            context,
        })
    }

    /// The device it is on.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Valid as long as `self` is.
    pub(crate) fn as_ptr(&self) -> *mut ibv_pd {
        self.pd.as_ptr()
    }
}

impl Drop for Pd {
    fn drop(&mut self) {
        if !self.owned || !self.context.is_ours() {
            return;
        }
        // SAFETY: `pd` came from `ibv_alloc_pd` and is deallocated once; registrations and queue
        // pairs made in it held an `Arc` of `self` and are gone. `context` is dropped after this.
        let deallocated = unsafe { ibv_dealloc_pd(self.as_ptr()) };
        if let Err(error) = check(deallocated) {
            // A registration that the device refused to let go keeps it; closing the device frees
            // both.
            tracing::warn!(%error, "cannot deallocate the protection domain");
        }
    }
}
