//! The calls that take the place of libc's. Each says what is about to change and makes the system call; they
//! allocate nothing, since malloc calls them.

use std::ffi::{CStr, c_int, c_long, c_void};
use std::hint;
use std::mem;
use std::ptr;

use crate::changes;

/// Has the linker take these for libc's, whatever it thinks of the order of libraries.
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
    // SAFETY: as the caller's.
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
    // SAFETY: as the caller's.
    address(unsafe { libc::syscall(libc::SYS_mremap, start, len, new_len, flags, to) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn madvise(start: *mut c_void, len: usize, advice: c_int) -> c_int {
    // Those that libfabric and UCX know.
    if matches!(
        advice,
        libc::MADV_DONTNEED | libc::MADV_FREE | libc::MADV_REMOVE | libc::MADV_HWPOISON
    ) {
        changes(start.addr(), len);
    }
    // SAFETY: as the caller's.
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
    // SAFETY: as the caller's.
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
    // SAFETY: as the caller's.
    unsafe { mmap(start, len, protection, flags, fd, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn brk(end: *mut c_void) -> c_int {
    changes(end.addr(), usize::MAX);
    let Some(theirs) = next(c"brk") else {
        return -1;
    };
    // SAFETY: libc's, of this type.
    let theirs: unsafe extern "C" fn(*mut c_void) -> c_int = unsafe { mem::transmute(theirs) };
    // SAFETY: as the caller's.
    unsafe { theirs(end) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sbrk(by: isize) -> *mut c_void {
    let Some(theirs) = next(c"sbrk") else {
        return address(-1);
    };
    // SAFETY: libc's, of this type.
    let theirs: unsafe extern "C" fn(isize) -> *mut c_void = unsafe { mem::transmute(theirs) };
    if by < 0 {
        // SAFETY: asks where the end is.
        let end = unsafe { theirs(0) }.addr();
        changes(end - by.unsigned_abs(), by.unsigned_abs());
    }
    // SAFETY: as the caller's.
    unsafe { theirs(by) }
}

/// libc's own, which knows where the heap ends; none in a program without a dynamic loader.
fn next(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a string with its end.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

fn address(returned: c_long) -> *mut c_void {
    ptr::with_exposed_provenance_mut(returned as usize)
}
