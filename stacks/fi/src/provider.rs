//! The provider that libfabric loads: it offers no network, and only brings the monitor.
//!
//! libfabric loads the providers after it has chosen its default monitor, and before any domain is
//! open. So this is the moment for the import.

use std::cell::UnsafeCell;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use crate::libfabric::{ENODATA, Provider, version};
use crate::process::Process;

/// The description of the provider, into which libfabric writes.
struct Description(UnsafeCell<Provider>);

// SAFETY: only libfabric accesses the description, and it serialises its accesses.
unsafe impl Sync for Description {}

static PROVIDER: Description = Description(UnsafeCell::new(Provider {
    version: version(1, 0),
    fi_version: version(1, 13),
    context: [ptr::null_mut(); 4],
    name: c"regcache".as_ptr(),
    getinfo,
    fabric,
    cleanup,
}));

/// Imports the monitor, and returns a provider that offers nothing. libfabric calls this function
/// while it initialises.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn fi_prov_ini() -> *mut c_void {
    Process::import();
    PROVIDER.0.get().cast()
}

unsafe extern "C" fn getinfo(
    _: u32,
    _: *const c_char,
    _: *const c_char,
    _: u64,
    _: *const c_void,
    _: *mut *mut c_void,
) -> c_int {
    -ENODATA
}

unsafe extern "C" fn fabric(_: *mut c_void, _: *mut *mut c_void, _: *mut c_void) -> c_int {
    -ENODATA
}

unsafe extern "C" fn cleanup() {
    if let Some(process) = Process::get() {
        process.end();
    }
}
