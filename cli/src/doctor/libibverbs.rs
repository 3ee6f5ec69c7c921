//! Lists the devices that libibverbs can use. The tool loads libibverbs at run time, because it may
//! not be installed.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

/// The devices that libibverbs can use, or [`Verbs::NotThere`] if libibverbs is not installed.
#[derive(Debug)]
pub(crate) enum Verbs {
    NotThere,
    /// The library is installed and can use the devices with these names.
    Lists(Vec<String>),
}

type GetList = unsafe extern "C" fn(*mut c_int) -> *mut *mut c_void;
type FreeList = unsafe extern "C" fn(*mut *mut c_void);
type GetName = unsafe extern "C" fn(*mut c_void) -> *const c_char;

/// Loads libibverbs and lists the devices that it can use. The library stays loaded, because
/// libibverbs does not support unloading.
pub(crate) fn look() -> Verbs {
    // SAFETY: loading runs the constructors of libibverbs, which have no effect on this tool.
    let library = unsafe { libc::dlopen(c"libibverbs.so.1".as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        return Verbs::NotThere;
    }
    let symbol = |name: &CStr| {
        // SAFETY: the library was loaded above, and this process never closes it.
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
    // SAFETY: the functions of libibverbs with these names have the types that verbs.h declares.
    // This code treats the structures of libibverbs as opaque.
    let (get_list, free_list, get_name) = unsafe {
        (
            std::mem::transmute::<*mut c_void, GetList>(get_list),
            std::mem::transmute::<*mut c_void, FreeList>(free_list),
            std::mem::transmute::<*mut c_void, GetName>(get_name),
        )
    };
    // SAFETY: the argument may be null. In that case the function stores no count.
    let list = unsafe { get_list(ptr::null_mut()) };
    if list.is_null() {
        // A null list means that the kernel has no RDMA subsystem.
        return Verbs::Lists(Vec::new());
    }
    let mut names = Vec::new();
    let mut next = list;
    // SAFETY: `next` points to an element of the list. The last element is null, and the loop ends
    // there.
    while let Some(device) = ptr::NonNull::new(unsafe { *next }) {
        // SAFETY: the device is in the list, and its name ends with a null byte.
        let name = unsafe { CStr::from_ptr(get_name(device.as_ptr())) };
        names.push(name.to_string_lossy().into_owned());
        // SAFETY: the element at `next` was not null, so another element follows.
        next = unsafe { next.add(1) };
    }
    // SAFETY: libibverbs returned the list, and nothing uses the list or its devices after this
    // call.
    unsafe { free_list(list) };
    Verbs::Lists(names)
}
