//! [`CLibrary`]: the shipped C library as a [`Subject`], called as a C program calls it.
//!
//! The library is loaded from the directory `capi` next to the program, where `cargo xtask bench`
//! builds it. `tests/support/c/fake-driver.c` replaces the driver.

use std::env;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::hint::black_box;
use std::io;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Subject;

unsafe extern "C" {
    /// Returns 1. The function is in `fake-driver.c`.
    fn regcache_bench_fake_driver() -> c_int;
}

/// `REGCACHE_MONITOR_UMMUNOTIFY`.
const UMMUNOTIFY: c_uint = 1;

/// `struct regcache_attr`.
#[repr(C)]
struct Attr {
    size: usize,
    monitor: c_uint,
    flags: c_uint,
    monitor_of: *mut c_void,
    max_entries: u64,
    max_bytes: u64,
    granularity: u64,
    merge_up_to: u64,
    pool: *mut c_void,
}

/// `struct regcache_mr`.
#[repr(C)]
struct Mr {
    guard: *mut c_void,
    lkey: u32,
    rkey: u32,
    registration: *mut c_void,
    addr: *mut c_void,
    length: usize,
}

/// `struct regcache_registration`.
#[repr(C)]
struct Registration {
    registration: *mut c_void,
    lkey: u32,
    rkey: u32,
}

/// `struct regcache_device`.
#[repr(C)]
struct Device {
    size: usize,
    user: *mut c_void,
    reg_mr:
        unsafe extern "C" fn(*mut c_void, *mut c_void, usize, c_uint, *mut Registration) -> c_int,
    dereg_mr: unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int,
}

type CreateFor = unsafe extern "C" fn(*const Device, *const Attr, *mut *mut c_void) -> c_int;
type Get = unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_uint, *mut Mr) -> c_int;
type Put = unsafe extern "C" fn(*mut c_void) -> c_int;
type Invalidate =
    unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int, *mut usize) -> c_int;
type Destroy = unsafe extern "C" fn(*mut c_void) -> c_int;
type Message = unsafe extern "C" fn() -> *const c_char;

/// The number of registrations that were made, and the number that were destroyed.
#[derive(Debug, Default)]
struct Counts {
    made: AtomicU64,
    destroyed: AtomicU64,
}

unsafe extern "C" fn reg_mr(
    user: *mut c_void,
    addr: *mut c_void,
    _: usize,
    _: c_uint,
    registration: *mut Registration,
) -> c_int {
    // SAFETY: `user` is the `Counts` of the cache, which outlives the cache. The library passes a
    // place for the registration.
    unsafe {
        (*user.cast::<Counts>())
            .made
            .fetch_add(1, Ordering::Relaxed);
        registration.write(Registration {
            registration: addr,
            lkey: 1,
            rkey: 2,
        });
    }
    0
}

unsafe extern "C" fn dereg_mr(user: *mut c_void, _: *mut c_void) -> c_int {
    // SAFETY: `user` is the `Counts` of the cache, which outlives the cache.
    let counts = unsafe { &*user.cast::<Counts>() };
    counts.destroyed.fetch_add(1, Ordering::Relaxed);
    0
}

/// A cache of the C library over a device of callbacks.
#[derive(Debug)]
pub struct CLibrary {
    cache: *mut c_void,
    counts: Box<Counts>,
    get: Get,
    put: Put,
    invalidate: Invalidate,
    destroy: Destroy,
}

// SAFETY: the library's functions may be called from any thread.
unsafe impl Sync for CLibrary {}

impl CLibrary {
    /// Returns true if the library was built.
    ///
    /// # Errors
    ///
    /// Returns an error if the path of this program is unknown.
    pub fn is_built() -> io::Result<bool> {
        Ok(path()?.exists())
    }

    /// Makes an empty cache of at most `max_entries` entries. Returns `None` if the library was not
    /// built.
    ///
    /// # Errors
    ///
    /// Returns an error if the library cannot be loaded, or if it cannot create a cache.
    pub fn new(max_entries: usize) -> io::Result<Option<Self>> {
        let path = path()?;
        if !path.exists() {
            return Ok(None);
        }
        let library = Loaded::open(&path)?;
        // SAFETY: these are the library's functions, and `regcache.h` declares them with these
        // types.
        let (create, get, put, invalidate, destroy, message) = unsafe {
            (
                mem::transmute::<*mut c_void, CreateFor>(library.symbol(c"regcache_create_for")?),
                mem::transmute::<*mut c_void, Get>(library.symbol(c"regcache_get")?),
                mem::transmute::<*mut c_void, Put>(library.symbol(c"regcache_put")?),
                mem::transmute::<*mut c_void, Invalidate>(library.symbol(c"regcache_invalidate")?),
                mem::transmute::<*mut c_void, Destroy>(library.symbol(c"regcache_destroy")?),
                mem::transmute::<*mut c_void, Message>(library.symbol(c"regcache_error")?),
            )
        };
        // SAFETY: the function has no conditions.
        let replaced = unsafe { regcache_bench_fake_driver() };
        assert_eq!(replaced, 1);
        let counts = Box::<Counts>::default();
        let device = Device {
            size: size_of::<Device>(),
            user: ptr::from_ref(&*counts).cast_mut().cast(),
            reg_mr,
            dereg_mr,
        };
        let attr = Attr {
            size: size_of::<Attr>(),
            monitor: UMMUNOTIFY,
            flags: 0,
            monitor_of: ptr::null_mut(),
            max_entries: max_entries as u64,
            max_bytes: u64::MAX,
            granularity: 0,
            merge_up_to: 0,
            pool: ptr::null_mut(),
        };
        let mut cache = ptr::null_mut();
        // SAFETY: the structures are those of `regcache.h`. The counts outlive the cache.
        let status = unsafe { create(&raw const device, &raw const attr, &raw mut cache) };
        if status != 0 {
            // SAFETY: the message is NUL-terminated, and valid until the next call that fails.
            let said = unsafe { std::ffi::CStr::from_ptr(message()) };
            return Err(io::Error::other(said.to_string_lossy()));
        }
        Ok(Some(Self {
            cache,
            counts,
            get,
            put,
            invalidate,
            destroy,
        }))
    }
}

/// Returns the path at which `cargo xtask bench` builds the library.
fn path() -> io::Result<PathBuf> {
    Ok(env::current_exe()?.with_file_name("capi/libregcache.so"))
}

/// A library that `dlopen` has loaded, and that stays loaded.
struct Loaded(*mut c_void);

impl Loaded {
    fn open(path: &std::path::Path) -> io::Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the name is NUL-terminated. Loading the library runs none of its code.
        let loaded = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
        if loaded.is_null() {
            return Err(io::Error::other(format!("cannot load {}", path.display())));
        }
        Ok(Self(loaded))
    }

    fn symbol(&self, name: &std::ffi::CStr) -> io::Result<*mut c_void> {
        // SAFETY: the library is loaded, and the name is NUL-terminated.
        let symbol = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        if symbol.is_null() {
            return Err(io::Error::other(format!("the library has no {name:?}")));
        }
        Ok(symbol)
    }
}

impl Subject for CLibrary {
    const NAME: &'static str = "regcache, from C";

    #[inline(always)]
    fn get_put(&self, start: usize, len: usize) {
        let mut mr = mem::MaybeUninit::<Mr>::uninit();
        let start = ptr::without_provenance(start);
        // SAFETY: the cache is live until `drop`. The library writes `mr`. The guard is put once.
        unsafe {
            let status = (self.get)(self.cache, start, len, 1, mr.as_mut_ptr());
            assert_eq!(status, 0, "no call of the dummies fails");
            let guard = black_box(&mr).assume_init_ref().guard;
            assert_eq!((self.put)(guard), 0, "the guard is put once");
        }
    }

    fn invalidate(&self, start: usize, len: usize) {
        let start = ptr::without_provenance(start);
        // SAFETY: the cache is live until `drop`.
        let status = unsafe { (self.invalidate)(self.cache, start, len, -1, ptr::null_mut()) };
        assert_eq!(status, 0, "no call of the dummies fails");
    }

    fn counts(&self) -> (u64, u64) {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.counts.made), count(&self.counts.destroyed))
    }
}

impl Drop for CLibrary {
    fn drop(&mut self) {
        // SAFETY: each guard was put, so the cache can be destroyed. It is not used any more.
        unsafe { (self.destroy)(self.cache) };
    }
}
