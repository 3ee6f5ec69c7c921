//! Asks libibverbs which devices it can use, without linking it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

/// The answer of libibverbs.
#[derive(Debug)]
pub(crate) enum Verbs {
    NotThere,
    /// The names of the devices that it can use.
    Lists(Vec<String>),
}

type GetList = unsafe extern "C" fn(*mut c_int) -> *mut *mut c_void;
type FreeList = unsafe extern "C" fn(*mut *mut c_void);
type GetName = unsafe extern "C" fn(*mut c_void) -> *const c_char;

/// Loads libibverbs and asks it. It stays loaded, as it is not made to be unloaded.
pub(crate) fn look() -> Verbs {
    // SAFETY: loading runs the library's constructors, and libibverbs's have no effect on this
    // tool.
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
    // SAFETY: libibverbs's functions of these names have the types that verbs.h declares. Their
    // structures are opaque here.
    let (get_list, free_list, get_name) = unsafe {
        (
            std::mem::transmute::<*mut c_void, GetList>(get_list),
            std::mem::transmute::<*mut c_void, FreeList>(free_list),
            std::mem::transmute::<*mut c_void, GetName>(get_name),
        )
    };
    // SAFETY: the argument may be null, which says that the count is not wanted.
    let list = unsafe { get_list(ptr::null_mut()) };
    if list.is_null() {
        // The kernel has no RDMA.
        return Verbs::Lists(Vec::new());
    }
    let mut names = Vec::new();
    let mut next = list;
    // SAFETY: the list ends with a null.
    while let Some(device) = ptr::NonNull::new(unsafe { *next }) {
        // SAFETY: a device of the list, whose name is a terminated array in it.
        let name = unsafe { CStr::from_ptr(get_name(device.as_ptr())) };
        names.push(name.to_string_lossy().into_owned());
        // SAFETY: this one was not the last.
        next = unsafe { next.add(1) };
    }
    // SAFETY: the list is freed once.
    unsafe { free_list(list) };
    Verbs::Lists(names)
}
