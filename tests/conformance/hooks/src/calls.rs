//! The calls that replace libc's. Each records the change and makes the system call. They allocate
//! nothing, since malloc calls them.

use std::ffi::{CStr, c_int, c_long, c_void};
use std::hint;
use std::mem;
use std::ptr;

use crate::changes;

/// Refers to the calls, so that the linker uses them instead of libc's whatever the order of
/// libraries.
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
    // SAFETY: passed on from the caller.
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
    // SAFETY: passed on from the caller.
    address(unsafe { libc::syscall(libc::SYS_mremap, start, len, new_len, flags, to) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn madvise(start: *mut c_void, len: usize, advice: c_int) -> c_int {
    // The advice that libfabric and UCX intercept.
    if matches!(
        advice,
        libc::MADV_DONTNEED | libc::MADV_FREE | libc::MADV_REMOVE | libc::MADV_HWPOISON
    ) {
        changes(start.addr(), len);
    }
    // SAFETY: passed on from the caller.
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
    // SAFETY: passed on from the caller.
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
    // SAFETY: passed on from the caller.
    unsafe { mmap(start, len, protection, flags, fd, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn brk(end: *mut c_void) -> c_int {
    changes(end.addr(), usize::MAX);
    let Some(theirs) = next(c"brk") else {
        return -1;
    };
    // SAFETY: libc's function has this type.
    let theirs: unsafe extern "C" fn(*mut c_void) -> c_int = unsafe { mem::transmute(theirs) };
    // SAFETY: passed on from the caller.
    unsafe { theirs(end) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sbrk(by: isize) -> *mut c_void {
    let Some(theirs) = next(c"sbrk") else {
        return address(-1);
    };
    // SAFETY: libc's function has this type.
    let theirs: unsafe extern "C" fn(isize) -> *mut c_void = unsafe { mem::transmute(theirs) };
    if by < 0 {
        // SAFETY: only reads the end of the heap.
        let end = unsafe { theirs(0) }.addr();
        changes(end - by.unsigned_abs(), by.unsigned_abs());
    }
    // SAFETY: passed on from the caller.
    unsafe { theirs(by) }
}

/// libc's own function, which knows the end of the heap. A static program has none.
fn next(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a terminated string.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

fn address(returned: c_long) -> *mut c_void {
    ptr::with_exposed_provenance_mut(returned as usize)
}
