//! Finds UCX's own functions.
//!
//! UCX is often loaded by a component that the program opens with `dlopen` and `RTLD_LOCAL`. Then
//! `RTLD_NEXT` does not find UCX. So the functions are looked up in the library that has them, at
//! the first call. The handle of the library stays open, because a library that holds
//! registrations must not be unloaded.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::abi::{Callback, Status, Version};

pub(crate) type Create =
    unsafe extern "C" fn(*const c_void, *const c_char, *mut c_void, *mut *mut c_void) -> Status;
pub(crate) type Destroy = unsafe extern "C" fn(*mut c_void);
pub(crate) type GetBefore17 =
    unsafe extern "C" fn(*mut c_void, usize, usize, usize, usize, usize) -> Status;
/// `ucs_rcache_get` since UCX 1.17. It can also call an earlier one, which ignores the last
/// argument.
pub(crate) type Get =
    unsafe extern "C" fn(*mut c_void, usize, usize, usize, usize, usize, usize) -> Status;
pub(crate) type TableInit = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void) -> Status;
pub(crate) type TableLookup = unsafe extern "C" fn(*const c_void, usize) -> *mut c_void;
pub(crate) type SetHandler = unsafe extern "C" fn(c_int, c_int, Callback, *mut c_void) -> Status;
type GetVersion = unsafe extern "C" fn(*mut u32, *mut u32, *mut u32);

const UCS: &CStr = c"libucs.so.0";

/// A function of UCX, which is looked up at its first use.
pub(crate) struct Function {
    library: &'static CStr,
    name: &'static CStr,
    at: AtomicPtr<c_void>,
}

impl Function {
    const fn new(library: &'static CStr, name: &'static CStr) -> Self {
        Self {
            library,
            name,
            at: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Returns the address of the function; null if its library is not loaded.
    #[inline]
    fn address(&self) -> *mut c_void {
        // The address points to code, so the load needs no ordering.
        let known = self.at.load(Ordering::Relaxed);
        if known.is_null() { self.find() } else { known }
    }

    #[cold]
    fn find(&self) -> *mut c_void {
        // SAFETY: the strings are terminated. With RTLD_NOLOAD, `dlopen` loads nothing and runs no
        // code of a library. `dlsym` searches the library and its dependencies, which this library
        // does not belong to.
        let found = unsafe {
            let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD;
            let library = libc::dlopen(self.library.as_ptr(), flags);
            let library = if library.is_null() {
                libc::RTLD_NEXT
            } else {
                library
            };
            let found = libc::dlsym(library, self.name.as_ptr());
            // The program did not make this lookup, so `dlerror` must not report it.
            libc::dlerror();
            found
        };
        self.at.store(found, Ordering::Relaxed);
        found
    }
}

static CREATE: Function = Function::new(UCS, c"ucs_rcache_create");
static DESTROY: Function = Function::new(UCS, c"ucs_rcache_destroy");
static GET: Function = Function::new(UCS, c"ucs_rcache_get");
static TABLE_INIT: Function = Function::new(UCS, c"ucs_pgtable_init");
static TABLE_LOOKUP: Function = Function::new(UCS, c"ucs_pgtable_lookup");
static SET_HANDLER: Function = Function::new(c"libucm.so.0", c"ucm_set_event_handler");
static GET_VERSION: Function = Function::new(c"libucp.so.0", c"ucp_get_version");

macro_rules! typed {
    ($($name:ident: $function:ident as $type:ty;)*) => {
        $(
            /// Returns UCX's function, if its library is loaded and has it.
            #[inline]
            pub(crate) fn $name() -> Option<$type> {
                let address = $function.address();
                // SAFETY: the address is null or that of the function with this name, which has
                // this type.
                unsafe { mem::transmute::<*mut c_void, Option<$type>>(address) }
            }
        )*
    };
}

typed! {
    create: CREATE as Create;
    destroy: DESTROY as Destroy;
    get: GET as Get;
    table_init: TABLE_INIT as TableInit;
    table_lookup: TABLE_LOOKUP as TableLookup;
    set_handler: SET_HANDLER as SetHandler;
    get_version: GET_VERSION as GetVersion;
}

/// Returns the version of UCX; `None` if libucp is not loaded.
pub(crate) fn version() -> Option<Version> {
    let ask = get_version()?;
    let (mut major, mut minor, mut release) = (0, 0, 0);
    // SAFETY: the function writes the three numbers.
    unsafe { ask(&raw mut major, &raw mut minor, &raw mut release) };
    Some((major, minor, release))
}
