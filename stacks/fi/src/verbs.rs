//! The functions of libibverbs that this library interposes, if it is preloaded.
//!
//! libfabric registers a range before it subscribes to it. These functions place the watch before
//! the registration, so that the first subscription to a range can be accepted already. If the
//! library is not preloaded, nothing calls them.
//!
//! libibverbs may be loaded with `RTLD_LOCAL`, so its functions are looked up by its own handle.

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use regcache::VaRange;
use regcache_verbs_types::{Mr, Pd};

use crate::callbacks::with_note;
use crate::process::Process;

type RegMr = unsafe extern "C" fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
type RegMrIova2 = unsafe extern "C" fn(*mut Pd, *mut c_void, usize, u64, c_uint) -> *mut Mr;

/// A function of libibverbs, which is looked up at its first use.
struct Function {
    name: &'static CStr,
    version: &'static CStr,
    at: AtomicPtr<c_void>,
}

static REG_MR: Function = Function::new(c"ibv_reg_mr", c"IBVERBS_1.1");
static REG_MR_IOVA2: Function = Function::new(c"ibv_reg_mr_iova2", c"IBVERBS_1.8");

impl Function {
    const fn new(name: &'static CStr, version: &'static CStr) -> Self {
        Self {
            name,
            version,
            at: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Returns the next function of this name, which may be another preloaded library's. Returns
    /// null if there is none.
    fn address(&self) -> *mut c_void {
        let known = self.at.load(Ordering::Acquire);
        if !known.is_null() {
            return known;
        }
        let (name, version) = (self.name.as_ptr(), self.version.as_ptr());
        // SAFETY: the names are terminated. The second call loads nothing, and only counts a
        // reference to libibverbs.
        let found = unsafe {
            let next = libc::dlvsym(libc::RTLD_NEXT, name, version);
            if next.is_null() {
                let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD;
                let libibverbs = libc::dlopen(c"libibverbs.so.1".as_ptr(), flags);
                match libibverbs.is_null() {
                    true => next,
                    false => libc::dlvsym(libibverbs, name, version),
                }
            } else {
                next
            }
        };
        self.at.store(found, Ordering::Release);
        found
    }
}

/// Watches the range, if libfabric has imported the monitor.
fn before_registration(address: *const c_void, len: usize) {
    if let (Some(process), Ok(range)) = (Process::get(), VaRange::new(address.cast(), len)) {
        with_note(|note| process.watches.begin(range, note));
        process.wake_if_stale();
    }
}

/// Returns the result of a registration that cannot be made, because libibverbs is not loaded.
fn no_libibverbs() -> *mut Mr {
    // SAFETY: the location belongs to the calling thread.
    unsafe { *libc::__errno_location() = libc::ENOSYS };
    ptr::null_mut()
}

/// Registers memory, after it is watched.
///
/// # Safety
///
/// The contract is that of libibverbs's function.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_reg_mr(
    pd: *mut Pd,
    address: *mut c_void,
    len: usize,
    access: c_int,
) -> *mut Mr {
    before_registration(address, len);
    // SAFETY: the address is null or that of the function with this name, which has this type.
    let next = unsafe { mem::transmute::<*mut c_void, Option<RegMr>>(REG_MR.address()) };
    // SAFETY: the caller keeps the contract.
    next.map_or_else(no_libibverbs, |next| unsafe {
        next(pd, address, len, access)
    })
}

/// Registers memory, after it is watched. The header of libibverbs calls this function if the
/// access is not a constant.
///
/// # Safety
///
/// The contract is that of libibverbs's function.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_reg_mr_iova2(
    pd: *mut Pd,
    address: *mut c_void,
    len: usize,
    iova: u64,
    access: c_uint,
) -> *mut Mr {
    before_registration(address, len);
    // SAFETY: the address is null or that of the function with this name, which has this type.
    let next = unsafe { mem::transmute::<*mut c_void, Option<RegMrIova2>>(REG_MR_IOVA2.address()) };
    // SAFETY: the caller keeps the contract.
    next.map_or_else(no_libibverbs, |next| unsafe {
        next(pd, address, len, iova, access)
    })
}
