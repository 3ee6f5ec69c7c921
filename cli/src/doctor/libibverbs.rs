//! Asks libibverbs for its devices, without being linked with it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

/// What libibverbs can use here.
#[derive(Debug)]
pub(crate) enum Verbs {
    NotThere,
    /// The names of the devices.
    Lists(Vec<String>),
}

type GetList = unsafe extern "C" fn(*mut c_int) -> *mut *mut c_void;
type FreeList = unsafe extern "C" fn(*mut *mut c_void);
type GetName = unsafe extern "C" fn(*mut c_void) -> *const c_char;

/// Loads it and leaves it loaded, since it cannot be unloaded safely.
pub(crate) fn look() -> Verbs {
    // SAFETY: loading runs the library's constructors. Those of libibverbs have no effect here.
    let library = unsafe { libc::dlopen(c"libibverbs.so.1".as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        return Verbs::NotThere;
    }
    let symbol = |name: &CStr| {
        // SAFETY: loaded above, and not closed.
        let found = unsafe { libc::dlsym(library, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    };
    let functions = (
        symbol(c"ibv_get_device_list"),
        symbol(c"ibv_free_device_list"),
        symbol(c"ibv_get_device_name"),
    );
    let (Some(get_list), Some(free_list), Some(get_name)) = functions else {
        return Verbs::NotThere;
    };
    // SAFETY: verbs.h declares these functions with these types; the structures are opaque here.
    let (get_list, free_list, get_name) = unsafe {
        (
            std::mem::transmute::<*mut c_void, GetList>(get_list),
            std::mem::transmute::<*mut c_void, FreeList>(free_list),
            std::mem::transmute::<*mut c_void, GetName>(get_name),
        )
    };
    // SAFETY: a null pointer means that the count is not wanted.
    let list = unsafe { get_list(ptr::null_mut()) };
    if list.is_null() {
        // The kernel has no RDMA.
        return Verbs::Lists(Vec::new());
    }
    let mut names = Vec::new();
    let mut next = list;
    // SAFETY: a null pointer ends the list.
    while let Some(device) = ptr::NonNull::new(unsafe { *next }) {
        // SAFETY: a device of the list, which has its name as a terminated array.
        let name = unsafe { CStr::from_ptr(get_name(device.as_ptr())) };
        names.push(name.to_string_lossy().into_owned());
        // SAFETY: this was not the end of the list.
        next = unsafe { next.add(1) };
    }
    // SAFETY: the list of above, freed once.
    unsafe { free_list(list) };
    Verbs::Lists(names)
}
