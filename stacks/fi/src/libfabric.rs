//! The parts of libfabric's interface that this library uses. libfabric keeps them since release
//! 1.13.
//!
//! The functions are looked up in the libfabric that is loaded already, so this library loads on
//! machines without libfabric. A program may have loaded libfabric with `RTLD_LOCAL`, so the lookup
//! uses libfabric's own handle.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem;
use std::ptr;

/// `FI_CLASS_MEM_MONITOR`.
pub(crate) const CLASS_MEM_MONITOR: usize = 23;

/// The errors that libfabric's functions return, negated.
pub(crate) const EAGAIN: c_int = libc::EAGAIN;
pub(crate) const EBUSY: c_int = libc::EBUSY;
pub(crate) const ENODATA: c_int = libc::ENODATA;
pub(crate) const ENOMEM: c_int = libc::ENOMEM;
pub(crate) const ENOSYS: c_int = libc::ENOSYS;

/// `FI_VERSION`.
pub(crate) const fn version(major: u32, minor: u32) -> u32 {
    major << 16 | minor
}

/// `struct fid`.
#[repr(C)]
pub(crate) struct Fid {
    pub(crate) class: usize,
    pub(crate) context: *mut c_void,
    pub(crate) ops: *const Ops,
}

/// `struct fi_ops`, up to the functions that this library calls.
#[repr(C)]
pub(crate) struct Ops {
    size: usize,
    close: unsafe extern "C" fn(*mut Fid) -> c_int,
    bind: unsafe extern "C" fn(*mut Fid, *mut Fid, u64) -> c_int,
}

/// `struct fi_ops_mem_monitor`: the functions of a monitor that libfabric calls.
#[repr(C)]
pub(crate) struct MonitorOps {
    pub(crate) size: usize,
    pub(crate) start: unsafe extern "C" fn(*mut MemMonitor) -> c_int,
    pub(crate) stop: unsafe extern "C" fn(*mut MemMonitor),
    pub(crate) subscribe: unsafe extern "C" fn(*mut MemMonitor, *const c_void, usize) -> c_int,
    pub(crate) unsubscribe: unsafe extern "C" fn(*mut MemMonitor, *const c_void, usize),
    pub(crate) valid: unsafe extern "C" fn(*mut MemMonitor, *const c_void, usize) -> bool,
}

/// `struct fi_ops_mem_notify`: the function that the monitor calls.
#[repr(C)]
pub(crate) struct NotifyOps {
    size: usize,
    pub(crate) notify: unsafe extern "C" fn(*mut MemMonitor, *const c_void, usize),
}

/// `struct fid_mem_monitor`.
#[repr(C)]
pub(crate) struct MemMonitor {
    pub(crate) fid: Fid,
    pub(crate) export_ops: *const MonitorOps,
    pub(crate) import_ops: *const NotifyOps,
}

/// `struct fi_provider`. libfabric writes into `context`.
#[repr(C)]
pub(crate) struct Provider {
    pub(crate) version: u32,
    pub(crate) fi_version: u32,
    pub(crate) context: [*mut c_void; 4],
    pub(crate) name: *const c_char,
    pub(crate) getinfo: unsafe extern "C" fn(
        u32,
        *const c_char,
        *const c_char,
        u64,
        *const c_void,
        *mut *mut c_void,
    ) -> c_int,
    pub(crate) fabric: unsafe extern "C" fn(*mut c_void, *mut *mut c_void, *mut c_void) -> c_int,
    pub(crate) cleanup: unsafe extern "C" fn(),
}

type FiOpen = unsafe extern "C" fn(
    u32,
    *const c_char,
    *mut c_void,
    usize,
    u64,
    *mut *mut Fid,
    *mut c_void,
) -> c_int;
type FiVersion = unsafe extern "C" fn() -> u32;
type FiParamGet = unsafe extern "C" fn(*mut c_void, *const c_char, *mut c_void) -> c_int;
type FiStrerror = unsafe extern "C" fn(c_int) -> *const c_char;

/// The libfabric that is loaded in this process.
pub(crate) struct Libfabric {
    open: FiOpen,
    version: FiVersion,
    param_get: FiParamGet,
    strerror: FiStrerror,
}

impl Libfabric {
    /// Finds libfabric. Returns `None` if no libfabric is loaded, or if it lacks a function.
    pub(crate) fn find() -> Option<Self> {
        let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD;
        // SAFETY: with this flag, the call loads nothing. It only counts a reference to libfabric,
        // which this library keeps for ever.
        let library = unsafe { libc::dlopen(c"libfabric.so.1".as_ptr(), flags) };
        if library.is_null() {
            return None;
        }
        let find = |name: &CStr| {
            // SAFETY: the handle is that of a library that is loaded.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!found.is_null()).then_some(found)
        };
        // SAFETY: libfabric's functions with these names have these types.
        unsafe {
            Some(Self {
                open: mem::transmute::<*mut c_void, FiOpen>(find(c"fi_open")?),
                version: mem::transmute::<*mut c_void, FiVersion>(find(c"fi_version")?),
                param_get: mem::transmute::<*mut c_void, FiParamGet>(find(c"fi_param_get")?),
                strerror: mem::transmute::<*mut c_void, FiStrerror>(find(c"fi_strerror")?),
            })
        }
    }

    /// Returns the version of the library, to compare with [`version`].
    pub(crate) fn version(&self) -> u32 {
        // SAFETY: the function has no preconditions.
        unsafe { (self.version)() }
    }

    /// Returns the value of libfabric's setting `FI_MR_CACHE_MONITOR`, if it is set. libfabric also
    /// reads settings from a file.
    pub(crate) fn monitor_setting(&self) -> Option<&CStr> {
        let mut value: *const c_char = ptr::null();
        let name = c"mr_cache_monitor".as_ptr();
        // SAFETY: the null pointer names libfabric's own settings, and this one is a string. So the
        // function writes a pointer to `value`.
        let status = unsafe { (self.param_get)(ptr::null_mut(), name, (&raw mut value).cast()) };
        if status != 0 || value.is_null() {
            return None;
        }
        // SAFETY: the string is terminated, and libfabric keeps it until the process ends.
        Some(unsafe { CStr::from_ptr(value) })
    }

    /// Imports the monitor. Returns 0 or a negative error.
    ///
    /// # Safety
    ///
    /// The monitor and its functions must live until the process ends, or until
    /// [`close`](Self::close).
    pub(crate) unsafe fn import(&self, monitor: *mut MemMonitor) -> c_int {
        let mut cache: *mut Fid = ptr::null_mut();
        let (name, null) = (c"mr_cache".as_ptr(), ptr::null_mut());
        // SAFETY: the arguments are those that the manual page of fi_open requires for this name.
        let opened = unsafe { (self.open)(version(1, 13), name, null, 0, 0, &raw mut cache, null) };
        if opened != 0 {
            return opened;
        }
        // SAFETY: libfabric has returned an open object with its functions, and the caller answers
        // for the monitor. The object is closed once.
        unsafe {
            let ops = (*cache).ops;
            let bound = ((*ops).bind)(cache, &raw mut (*monitor).fid, 0);
            ((*ops).close)(cache);
            bound
        }
    }

    /// Returns libfabric's text for an error that a function has returned.
    pub(crate) fn text(&self, error: c_int) -> String {
        // SAFETY: the function accepts any number, and returns a terminated string that lives until
        // the next call by this thread.
        let text = unsafe { CStr::from_ptr((self.strerror)(-error)) };
        text.to_string_lossy().into_owned()
    }
}

/// Takes the monitor back from libfabric.
///
/// # Safety
///
/// libfabric must have imported the monitor, and no domain may be open.
pub(crate) unsafe fn close(monitor: *mut MemMonitor) {
    // SAFETY: libfabric has stored its functions in the monitor when it imported the monitor.
    unsafe { ((*(*monitor).fid.ops).close)(&raw mut (*monitor).fid) };
}
