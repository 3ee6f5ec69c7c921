//! [`Mr`], a registration.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{ibv_dereg_mr, ibv_mr, ibv_reg_mr_iova2};
use regcache::VaRange;

use crate::errno::{check, check_ptr};
use crate::{Access, Pd};

/// Memory that the device can reach: its pages pinned, its keys given out.
///
/// It says which addresses it was made for, not what is mapped there now: after `munmap` it still
/// reaches the old pages. That is what the cache is for.
///
/// Deregistered on drop; [`deregister`](Self::deregister) also tells whether that worked.
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

    /// The same with flags that [`Access`] does not name, and that are not for a cache.
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
                    "access flags {foreign:#x} are not for a cache: see regcache_verbs::Access"
                ),
            ));
        }
        let start = range.start();
        // What C's `ibv_reg_mr` macro calls when the flags are no constant: unlike the function of
        // that name it drops flags such as RELAXED_ORDERING where the kernel does not know them.
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

    /// The key that this process's work requests name it by.
    #[inline]
    #[must_use]
    pub fn lkey(&self) -> u32 {
        self.lkey
    }

    /// The key that a peer's requests name it by. Of use only with remote access.
    #[inline]
    #[must_use]
    pub fn rkey(&self) -> u32 {
        self.rkey
    }

    /// Address of its first byte.
    #[inline]
    #[must_use]
    pub fn addr(&self) -> usize {
        self.range.start()
    }

    /// Length in bytes; never 0.
    #[inline]
    #[must_use]
    pub fn length(&self) -> usize {
        self.range.len()
    }

    /// The addresses it was made for.
    #[inline]
    #[must_use]
    pub fn range(&self) -> VaRange {
        self.range
    }

    /// The access it was asked for.
    #[inline]
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// libibverbs's own structure, valid as long as `self` is. Not to be deregistered, nor registered anew.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut ibv_mr {
        self.mr.as_ptr()
    }

    /// The protection domain it is in.
    #[inline]
    #[must_use]
    pub fn pd(&self) -> &Arc<Pd> {
        &self.pd
    }

    /// Deregisters. Its memory may have been unmapped.
    ///
    /// # Errors
    ///
    /// The system's error; the registration then lives, unreachable, until the device is closed.
    /// In a forked child always an error: the registration is the parent's, and stays.
    pub fn deregister(mut self) -> io::Result<()> {
        self.destroy()
    }

    /// Deregisters once; `self` must not be used afterwards.
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
