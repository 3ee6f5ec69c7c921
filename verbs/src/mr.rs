//! [`Mr`]: a registration of an RDMA device.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{ibv_dereg_mr, ibv_mr, ibv_reg_mr_iova2};
use regcache::VaRange;

use crate::errno::{check, check_ptr};
use crate::{Access, Pd};

/// A registration: a range whose pages are pinned, and the keys by which the device accesses it.
///
/// The device accesses the pages that were mapped when the registration was made. After `munmap`
/// the device still accesses those pages, even if other pages are mapped at the address. Such a
/// registration is stale. A cache prevents the use of stale registrations.
///
/// Dropping an `Mr` deregisters it. [`deregister`](Self::deregister) does the same and returns the
/// error, if there is one.
#[derive(Debug)]
pub struct Mr {
    mr: NonNull<ibv_mr>,
    /// False after the deregistration. Only methods that consume `self` deregister.
    live: bool,
    lkey: u32,
    rkey: u32,
    range: VaRange,
    access: Access,
    pd: Arc<Pd>,
}

// SAFETY: libibverbs allows any verb on any object from any thread, as for `Context`. The only verb
// that is called on `mr` is the one that destroys it.
unsafe impl Send for Mr {}
// SAFETY: methods with `&Mr` only read fields that never change, and do not dereference `mr`.
unsafe impl Sync for Mr {}

impl Mr {
    /// Registers `range` in `pd`.
    ///
    /// # Errors
    ///
    /// The system's error. `EFAULT`: part of the range is not mapped, or it is not writable and
    /// `access` allows writes. `ENOMEM`: `RLIMIT_MEMLOCK` is reached, or the device has no key
    /// left. [`io::ErrorKind::InvalidInput`]: `access` has bits that [`Access`] does not define.
    pub fn register(pd: &Arc<Pd>, range: VaRange, access: Access) -> io::Result<Self> {
        Self::register_with(pd, range, access, 0)
    }

    /// Registers with additional flags. These flags are not in [`Access`], because a cache cannot
    /// use them.
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
        // In C, `ibv_reg_mr` is a macro that calls this function if the flags are not constant.
        // Unlike the function `ibv_reg_mr`, this function drops optional flags that the kernel does
        // not know, such as RELAXED_ORDERING.
        //
        // SAFETY: `pd` is allocated as long as it is borrowed, and the new registration holds an
        // `Arc` of it. The address is only passed to the kernel, which pins the pages that are
        // mapped there or refuses. Registering neither reads nor writes the memory. Only a work
        // request with the keys does. Posting a work request is either unsafe or borrows the memory
        // (`Loopback`).
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
        // SAFETY: `mr` was just made, and no other code has the pointer.
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

    /// Returns the address of the first byte.
    #[inline]
    #[must_use]
    pub fn addr(&self) -> usize {
        self.range.start()
    }

    /// Returns the length in bytes, which is never 0.
    #[inline]
    #[must_use]
    pub fn length(&self) -> usize {
        self.range.len()
    }

    /// Returns the registered range.
    #[inline]
    #[must_use]
    pub fn range(&self) -> VaRange {
        self.range
    }

    /// Returns the access that the caller of `register` requested.
    #[inline]
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns the structure of libibverbs, which is valid while `self` lives. Do not deregister or
    /// reregister it.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut ibv_mr {
        self.mr.as_ptr()
    }

    /// Returns the protection domain of the registration.
    #[inline]
    #[must_use]
    pub fn pd(&self) -> &Arc<Pd> {
        &self.pd
    }

    /// Deregisters the memory, which may have been unmapped.
    ///
    /// # Errors
    ///
    /// The system's error. After an error the registration exists until the device is closed. In a
    /// forked child this call always fails, because the registration belongs to the parent.
    pub fn deregister(mut self) -> io::Result<()> {
        self.destroy()
    }

    /// Deregisters the memory. The caller must not use `self` afterwards.
    fn destroy(&mut self) -> io::Result<()> {
        self.live = false;
        // SAFETY: `mr` came from `ibv_reg_mr_iova2`. It is deregistered once: both callers consume
        // `self`, and `live` prevents a second deregistration in `drop` after `deregister`. `pd` is
        // the domain.
        unsafe { deregister(&self.pd, self.mr) }
    }

    /// Returns the structure of libibverbs. The caller must deregister it with [`deregister`].
    pub(crate) fn into_raw(mut self) -> NonNull<ibv_mr> {
        self.live = false;
        self.mr
    }
}

/// Deregisters `mr`.
///
/// # Errors
///
/// Those of [`Mr::deregister`].
///
/// # Safety
///
/// `mr` is a registration in `pd`. The caller does not use it afterwards.
pub(crate) unsafe fn deregister(pd: &Pd, mr: NonNull<ibv_mr>) -> io::Result<()> {
    if let Err(forked) = pd.context().check_process() {
        return Err(io::Error::other(forked));
    }
    if !pd.context().has_descriptor() {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the caller keeps the contract. The domain is allocated while it is borrowed.
    check(unsafe { ibv_dereg_mr(mr.as_ptr()) })
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
