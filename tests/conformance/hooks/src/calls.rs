//! The functions that replace functions of libc. Each function records the change, and then makes
//! the system call or calls libc's function. No function here allocates, because an allocator may
//! itself call these functions.

use std::ffi::{CStr, c_int, c_long, c_void};
use std::hint;
use std::mem;
use std::ptr;

use crate::changes;

/// Refers to each function of this file. Without these references, the linker could choose libc's
/// functions, depending on the order of the libraries.
pub(crate) fn keep() {
    hint::black_box([
        munmap as *const (),
        mremap as *const (),
        madvise as *const (),
        mmap as *const (),
        mmap64 as *const (),
        brk as *const (),
        sbrk as *const (),
    ]);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn munmap(start: *mut c_void, len: usize) -> c_int {
    changes(start.addr(), len);
    // SAFETY: the caller upholds the contract of libc's function, and the arguments are passed on
    // unchanged.
    unsafe { libc::syscall(libc::SYS_munmap, start, len) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mremap(
    start: *mut c_void,
    len: usize,
    new_len: usize,
    flags: c_int,
    to: *mut c_void,
) -> *mut c_void {
    changes(start.addr(), len);
    if flags & libc::MREMAP_FIXED != 0 {
        changes(to.addr(), new_len);
    }
    // SAFETY: the caller upholds the contract of libc's function, and the arguments are passed on
    // unchanged.
    address(unsafe { libc::syscall(libc::SYS_mremap, start, len, new_len, flags, to) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn madvise(start: *mut c_void, len: usize, advice: c_int) -> c_int {
    // The hooks record only the kinds of advice that libfabric and UCX intercept.
    if matches!(
        advice,
        libc::MADV_DONTNEED | libc::MADV_FREE | libc::MADV_REMOVE | libc::MADV_HWPOISON
    ) {
        changes(start.addr(), len);
    }
    // SAFETY: the caller upholds the contract of libc's function, and the arguments are passed on
    // unchanged.
    unsafe { libc::syscall(libc::SYS_madvise, start, len, advice) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    start: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    if flags & libc::MAP_FIXED != 0 {
        changes(start.addr(), len);
    }
    let call = libc::SYS_mmap;
    // SAFETY: the caller upholds the contract of libc's function, and the arguments are passed on
    // unchanged.
    address(unsafe { libc::syscall(call, start, len, protection, flags, fd, offset) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mmap64(
    start: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the caller upholds the contract of libc's function, and the arguments are passed on
    // unchanged.
    unsafe { mmap(start, len, protection, flags, fd, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn brk(end: *mut c_void) -> c_int {
    changes(end.addr(), usize::MAX);
    let Some(theirs) = next(c"brk") else {
        return -1;
    };
    // SAFETY: the function of this name in libc has this type.
    let theirs: unsafe extern "C" fn(*mut c_void) -> c_int = unsafe { mem::transmute(theirs) };
    // SAFETY: the caller upholds the contract of libc's function, and the arguments are passed on
    // unchanged.
    unsafe { theirs(end) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sbrk(by: isize) -> *mut c_void {
    let Some(theirs) = next(c"sbrk") else {
        return address(-1);
    };
    // SAFETY: the function of this name in libc has this type.
    let theirs: unsafe extern "C" fn(isize) -> *mut c_void = unsafe { mem::transmute(theirs) };
    if by < 0 {
        // SAFETY: a call with 0 only returns the end of the heap.
        let end = unsafe { theirs(0) }.addr();
        changes(end - by.unsigned_abs(), by.unsigned_abs());
    }
    // SAFETY: the caller upholds the contract of libc's function, and the arguments are passed on
    // unchanged.
    unsafe { theirs(by) }
}

/// Returns the function of this name in libc. Only libc's function keeps track of the end of the
/// heap. Returns `None` in a statically linked program.
fn next(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name ends with a null byte.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

fn address(returned: c_long) -> *mut c_void {
    ptr::with_exposed_provenance_mut(returned as usize)
}
