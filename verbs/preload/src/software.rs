//! Posts to devices in software, SoftRoCE and SoftiWARP.
//!
//! The library of such a device posts sends by a system call, which is a cancellation point. A
//! thread must not end there, because the functions of the shim are on its stack, and one of them
//! holds the lock of a queue. So these functions stand between the shim and the library. Libraries
//! of adapters post without a system call, and are called directly.

use std::ffi::{c_int, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use regcache::Uncancelled;

use crate::abi::{BindMw, ContextOps, IbvQp, MwBind, PostSend, SendWr};
use crate::provider;

/// The functions of one library. All devices of a library have the same functions.
struct Library {
    post_send: AtomicPtr<c_void>,
    bind_mw: AtomicPtr<c_void>,
}

static LIBRARIES: [Library; provider::SOFTWARE.len()] = [const {
    Library {
        post_send: AtomicPtr::new(ptr::null_mut()),
        bind_mw: AtomicPtr::new(ptr::null_mut()),
    }
}; provider::SOFTWARE.len()];

/// Puts the functions of this file in front of the device's, if it is a device in software. Returns
/// true if it is.
pub(crate) fn stand_before(ops: &mut ContextOps) -> bool {
    let Some(post_send) = ops.post_send else {
        return false;
    };
    let Some(number) = provider::software(post_send as *const c_void) else {
        return false;
    };
    let library = &LIBRARIES[number];
    library
        .post_send
        .store(post_send as *mut c_void, Ordering::Release);
    ops.post_send = Some(POST_SEND[number]);
    if let Some(bind_mw) = ops.bind_mw {
        library
            .bind_mw
            .store(bind_mw as *mut c_void, Ordering::Release);
        ops.bind_mw = Some(BIND_MW[number]);
    }
    true
}

const POST_SEND: [PostSend; provider::SOFTWARE.len()] = [post_send::<0>, post_send::<1>];
const BIND_MW: [BindMw; provider::SOFTWARE.len()] = [bind_mw::<0>, bind_mw::<1>];

unsafe extern "C" fn post_send<const NUMBER: usize>(
    qp: *mut IbvQp,
    first: *mut SendWr,
    bad: *mut *mut SendWr,
) -> c_int {
    let _uncancelled = Uncancelled::begin();
    let theirs = LIBRARIES[NUMBER].post_send.load(Ordering::Acquire);
    // SAFETY: the context got this function after `stand_before` had stored the library's.
    let theirs = unsafe { mem::transmute::<*mut c_void, PostSend>(theirs) };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    unsafe { theirs(qp, first, bad) }
}

unsafe extern "C" fn bind_mw<const NUMBER: usize>(
    qp: *mut IbvQp,
    window: *mut c_void,
    bind: *mut MwBind,
) -> c_int {
    let _uncancelled = Uncancelled::begin();
    let theirs = LIBRARIES[NUMBER].bind_mw.load(Ordering::Acquire);
    // SAFETY: as in `post_send`.
    let theirs = unsafe { mem::transmute::<*mut c_void, BindMw>(theirs) };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    unsafe { theirs(qp, window, bind) }
}
