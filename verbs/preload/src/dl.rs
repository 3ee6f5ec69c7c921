//! Interposes `dlsym` and `dlvsym`, for programs that load libibverbs themselves.
//!
//! If a lookup would find a function of libibverbs that the shim interposes, the lookup returns the
//! shim's function instead. Any other lookup *jumps* to libc's `dlsym` and does not call it. libc's
//! `dlsym` finds the caller's library by the return address (for `RTLD_NEXT`), so that address must
//! be the program's.
//!
//! This file works on x86-64 only. On other machines the shim does not see lookups by name. Nor
//! does a shim that is built with a sanitizer: the sanitizer's runtime calls `dlsym` before
//! instrumented code can run.

#![cfg_attr(
    any(
        test,
        not(target_arch = "x86_64"),
        sanitizer = "address",
        sanitizer = "thread"
    ),
    expect(
        dead_code,
        reason = "only the assembly at the end calls these functions"
    )
)]

use std::ffi::{CStr, c_char, c_void};
use std::mem;
use std::ptr;

use crate::real::{self, Function};
use crate::{create, interpose, provider};

type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
type Dlvsym = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> *mut c_void;

/// The treatment of a call: jump to `jump` if it is not null, otherwise return `answer`.
#[repr(C)]
struct Verdict {
    answer: *mut c_void,
    jump: *mut c_void,
}

impl Verdict {
    fn answer(answer: *mut c_void) -> Self {
        Self {
            answer,
            jump: ptr::null_mut(),
        }
    }
}

/// Returns the functions of libibverbs that the shim interposes, each with the shim's own function.
fn ours() -> [(&'static Function, *mut c_void); 19] {
    [
        (&real::REG_MR, interpose::ibv_reg_mr as *mut c_void),
        (
            &real::REG_MR_IOVA,
            interpose::ibv_reg_mr_iova as *mut c_void,
        ),
        (
            &real::REG_MR_IOVA2,
            interpose::ibv_reg_mr_iova2 as *mut c_void,
        ),
        (&real::REREG_MR, interpose::ibv_rereg_mr as *mut c_void),
        (&real::DEREG_MR, interpose::ibv_dereg_mr as *mut c_void),
        (&real::DEALLOC_PD, interpose::ibv_dealloc_pd as *mut c_void),
        (
            &real::UNIMPORT_PD,
            interpose::ibv_unimport_pd as *mut c_void,
        ),
        (
            &real::CLOSE_DEVICE,
            interpose::ibv_close_device as *mut c_void,
        ),
        (&real::OPEN_DEVICE, create::ibv_open_device as *mut c_void),
        (
            &real::IMPORT_DEVICE,
            create::ibv_import_device as *mut c_void,
        ),
        (&real::ALLOC_PD, create::ibv_alloc_pd as *mut c_void),
        (&real::CREATE_AH, create::ibv_create_ah as *mut c_void),
        (&real::CREATE_CQ, create::ibv_create_cq as *mut c_void),
        (&real::DESTROY_CQ, create::ibv_destroy_cq as *mut c_void),
        (&real::CREATE_QP, create::ibv_create_qp as *mut c_void),
        (&real::MODIFY_QP, create::ibv_modify_qp as *mut c_void),
        (&real::DESTROY_QP, create::ibv_destroy_qp as *mut c_void),
        (&real::CREATE_SRQ, create::ibv_create_srq as *mut c_void),
        (&real::DESTROY_SRQ, create::ibv_destroy_srq as *mut c_void),
    ]
}

/// Decides how to treat a call of `dlsym` (with a null `version`) or `dlvsym`. `ask` calls libc's
/// function with the caller's name and version. Its argument is the program's handle, or
/// `RTLD_NEXT` if that handle is `RTLD_DEFAULT`, so that the search starts after the shim.
fn judge(
    handle: *mut c_void,
    name: *const c_char,
    version: *const c_char,
    libc_function: *mut c_void,
    ask: impl FnOnce(*mut c_void) -> *mut c_void,
) -> Verdict {
    if libc_function.is_null() {
        return Verdict::answer(ptr::null_mut());
    }
    let jump = Verdict {
        answer: ptr::null_mut(),
        jump: libc_function,
    };
    if name.is_null() || handle == libc::RTLD_NEXT {
        return jump;
    }
    // SAFETY: the contract of `dlsym` requires the caller's name to be a terminated string.
    let name = unsafe { CStr::from_ptr(name) };
    if !name.to_bytes().starts_with(b"ibv_") {
        provider::looked_up(name.to_bytes());
        return jump;
    }
    let Some((function, ours)) = ours().into_iter().find(|(it, _)| it.name == name) else {
        return jump;
    };
    // The shim's own lookup comes before `ask`, so that `dlerror` reports the result of the
    // program's lookup.
    let theirs = function.address();
    if handle != libc::RTLD_DEFAULT {
        let found = ask(handle);
        let is_theirs = !found.is_null() && found == theirs;
        return Verdict::answer(if is_theirs { ours } else { found });
    }
    let next = ask(libc::RTLD_NEXT);
    // A library that loaded libibverbs with `RTLD_LOCAL` finds the function, but the shim's lookup
    // does not. So a matching version decides here.
    let is_theirs = if next.is_null() {
        let any = version.is_null();
        // SAFETY: the contract of `dlvsym` requires the caller's version to be a terminated string.
        !theirs.is_null() && (any || unsafe { CStr::from_ptr(version) } == function.version)
    } else {
        next == theirs
    };
    Verdict::answer(if is_theirs { ours } else { next })
}

unsafe extern "C" fn judge_dlsym(handle: *mut c_void, name: *const c_char) -> Verdict {
    let dlsym = real::libc_dlsym();
    judge(handle, name, ptr::null(), dlsym, |handle| {
        // SAFETY: `judge` calls this closure only if the address is not null, and the address is
        // libc's `dlsym`. The name is the caller's.
        unsafe { mem::transmute::<*mut c_void, Dlsym>(dlsym)(handle, name) }
    })
}

unsafe extern "C" fn judge_dlvsym(
    handle: *mut c_void,
    name: *const c_char,
    version: *const c_char,
) -> Verdict {
    let dlvsym = real::libc_dlvsym();
    judge(handle, name, version, dlvsym, |handle| {
        // SAFETY: as in `judge_dlsym`.
        unsafe { mem::transmute::<*mut c_void, Dlvsym>(dlvsym)(handle, name, version) }
    })
}

// Each function saves its arguments, calls `judge` with the stack aligned to 16 bytes, and restores
// the arguments. rax and rdx return the `Verdict`. libc defines `dlsym` and `dlvsym` under two
// versions each, since libdl became part of libc. So the shim does as well.
//
// The library's own tests omit this code: an executable cannot define symbol versions.
#[cfg(all(
    target_arch = "x86_64",
    not(any(test, sanitizer = "address", sanitizer = "thread"))
))]
std::arch::global_asm!(
    ".macro regcache_ask name, judge",
    ".type \\name, @function",
    "\\name:",
    "endbr64",
    "push rdi",
    "push rsi",
    "push rdx",
    "call \\judge",
    "mov r11, rdx",
    "pop rdx",
    "pop rsi",
    "pop rdi",
    "test r11, r11",
    "jz 1f",
    "jmp r11",
    "1: ret",
    ".size \\name, . - \\name",
    ".endm",
    "regcache_ask regcache_dlsym, {judge_dlsym}",
    "regcache_ask regcache_dlvsym, {judge_dlvsym}",
    ".symver regcache_dlsym, dlsym@@GLIBC_2.34",
    ".set regcache_dlsym_old, regcache_dlsym",
    ".symver regcache_dlsym_old, dlsym@GLIBC_2.2.5",
    ".symver regcache_dlvsym, dlvsym@@GLIBC_2.34",
    ".set regcache_dlvsym_old, regcache_dlvsym",
    ".symver regcache_dlvsym_old, dlvsym@GLIBC_2.2.5",
    ".globl regcache_dlsym",
    ".globl regcache_dlsym_old",
    ".globl regcache_dlvsym",
    ".globl regcache_dlvsym_old",
    judge_dlsym = sym judge_dlsym,
    judge_dlvsym = sym judge_dlvsym,
);
