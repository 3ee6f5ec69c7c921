//! [`Mr`]: a registration.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{ibv_dereg_mr, ibv_mr, ibv_reg_mr_iova2};
use regcache::VaRange;

use crate::errno::{check, check_ptr};
use crate::{Access, Pd};

/// A registration: memory whose pages are pinned, and whose keys let the device reach it.
///
/// It reaches the pages that were mapped when it was made. After `munmap` it still reaches those
/// pages, whatever is mapped at the address. A cache solves this.
///
/// It is deregistered on drop. [`deregister`](Self::deregister) also reports whether that worked.
#[derive(Debug)]
pub struct Mr {
    mr: NonNull<ibv_mr>,
    /// False once deregistered, which only a method that consumes `self` does.
    live: bool,
    lkey: u32,
    rkey: u32,
    range: VaRange,
    access: Access,
    pd: Arc<Pd>,
}

// SAFETY: libibverbs allows any verb on any object from any thread, as for `Context`; the only verb
// called on `mr` is the one that destroys it.
unsafe impl Send for Mr {}
// SAFETY: through `&Mr` only fields that never change are read, and `mr` is not dereferenced.
unsafe impl Sync for Mr {}

impl Mr {
    /// Registers `range` in `pd`.
    ///
    /// # Errors
    ///
    /// The system's error: `EFAULT` if part of the range is not mapped, or not writable though
    /// `access` has a write; `ENOMEM` over `RLIMIT_MEMLOCK` or out of keys;
    /// [`io::ErrorKind::InvalidInput`] if `access` has bits that [`Access`] does not name.
    pub fn register(pd: &Arc<Pd>, range: VaRange, access: Access) -> io::Result<Self> {
        Self::register_with(pd, range, access, 0)
    }

    /// Registers with flags that are not in [`Access`], because a cache cannot use them.
    pub(crate) fn register_with(
        pd: &Arc<Pd>,
        range: VaRange,
        access: Access,
        flags: u32,
    ) -> io::Result<Self> {
        let foreign = access.bits() & !Access::all().bits();
        if foreign != 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a cache cannot use the access flags {foreign:#x}: see regcache_verbs::Access"
                ),
            ));
        }
        let start = range.start();
        // C's macro `ibv_reg_mr` calls this function if the flags are not constant. Unlike the
        // function `ibv_reg_mr`, it drops flags such as RELAXED_ORDERING that the kernel does not
        // know.
        //
        // SAFETY: `pd` is allocated as long as it is borrowed, and the new registration keeps it.
        // The address is only passed to the kernel, which pins what is mapped there or refuses.
        // Nothing reads or writes the memory by this: that takes a work request with the keys, and
        // posting one is either unsafe or borrows the memory (`Loopback`).
        let mr = unsafe {
            ibv_reg_mr_iova2(
                pd.as_ptr(),
                ptr::without_provenance_mut(start),
                range.len(),
                start as u64,
                access.with_implied().bits() | flags,
            )
        };
        let mr = check_ptr(mr)?;
        // SAFETY: `mr` was just made and nobody else has it.
        let keys = unsafe { mr.as_ref() };
        Ok(Self {
            mr,
            live: true,
            lkey: keys.lkey,
            rkey: keys.rkey,
            range,
            access,
            pd: Arc::clone(pd),
        })
    }

    /// Returns the key for the work requests of this process.
    #[inline]
    #[must_use]
    pub fn lkey(&self) -> u32 {
        self.lkey
    }

    /// Returns the key for the requests of a peer. It is valid only with remote access.
    #[inline]
    #[must_use]
    pub fn rkey(&self) -> u32 {
        self.rkey
    }

    /// Returns the address of its first byte.
    #[inline]
    #[must_use]
    pub fn addr(&self) -> usize {
        self.range.start()
    }

    /// Returns its length in bytes, which is never 0.
    #[inline]
    #[must_use]
    pub fn length(&self) -> usize {
        self.range.len()
    }

    /// Returns its range.
    #[inline]
    #[must_use]
    pub fn range(&self) -> VaRange {
        self.range
    }

    /// Returns the access that was asked for.
    #[inline]
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns libibverbs's structure, which is valid as long as `self`. Do not deregister or
    /// reregister it.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut ibv_mr {
        self.mr.as_ptr()
    }

    /// Returns the protection domain that it is in.
    #[inline]
    #[must_use]
    pub fn pd(&self) -> &Arc<Pd> {
        &self.pd
    }

    /// Deregisters it. Its memory may have been unmapped.
    ///
    /// # Errors
    ///
    /// The system's error. The registration then stays until the device is closed. In a forked
    /// child this always fails, as the registration belongs to the parent.
    pub fn deregister(mut self) -> io::Result<()> {
        self.destroy()
    }

    /// Deregisters it, once. `self` must not be used afterwards.
    fn destroy(&mut self) -> io::Result<()> {
        self.live = false;
        if let Err(forked) = self.pd.context().check_process() {
            return Err(io::Error::other(forked));
        }
        // SAFETY: `mr` came from `ibv_reg_mr_iova2`; both callers consume `self`, and `live` keeps
        // `drop` from doing it a second time after `deregister`. The domain is still allocated:
        // `pd` is a field of `self`.
        check(unsafe { ibv_dereg_mr(self.mr.as_ptr()) })
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        if !self.live || !self.pd.context().is_ours() {
            return;
        }
        if let Err(error) = self.destroy() {
            tracing::warn!(range = ?self.range, %error, "cannot deregister");
        }
    }
}
