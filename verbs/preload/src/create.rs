//! Opens devices and creates queues: the shim must know every device and queue before work is
//! posted.
//!
//! When a device is opened, the shim replaces functions in its context, which the header's inline
//! functions call. These are the functions that post, poll and create extended objects.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;
use std::sync::Arc;

use regcache::Uncancelled;
use regcache::error::is_exhaustion;
use regcache_verbs_types::{Context, Pd};

use crate::abi::{
    CqInitAttrEx, ExtendedPost, IbvCq, IbvCqEx, IbvQp, IbvSrq, KNOWN_SEND_OPS, OpenContext,
    QP_STATE, QPS_RESET, QpAttr, QpInitAttr, QpInitAttrEx, SrqInitAttr, VerbsContext,
    WC_EX_WITH_QP_NUM, qp_init, qp_type,
};
use crate::objects::{
    COMPLETION_QUEUES, CompletionQueue, DEVICES, OpenDevice, QUEUE_PAIRS, QueuePair, SHARED_QUEUES,
    SharedQueue, address,
};
use crate::process::{Process, cannot_see};
use crate::provider::{self, Provider};
use crate::real::{self, set_errno};
use crate::slots::Slot;
use crate::{poll, post, software};

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_open_device(device: *mut c_void) -> *mut Context {
    let _uncancelled = Uncancelled::begin();
    let Some(open) = real::open_device() else {
        set_errno(libc::ENOSYS);
        return ptr::null_mut();
    };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let context = with_room(|| unsafe { open(device) });
    if !context.is_null() {
        // SAFETY: the context was just opened.
        unsafe { opened(context) };
    }
    context
}

/// Opens a device that another process has opened. The shim cannot see the work that the other
/// process posts with the device's keys.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_import_device(file: c_int) -> *mut Context {
    let _uncancelled = Uncancelled::begin();
    let Some(import) = real::import_device() else {
        set_errno(libc::ENOSYS);
        return ptr::null_mut();
    };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let context = unsafe { import(file) };
    if !context.is_null() {
        // SAFETY: the context was just opened.
        let device = unsafe { opened(context) };
        cannot_see(&device, "a device was imported from another process");
    }
    context
}

/// Replaces functions in the context with the shim's functions.
///
/// # Safety
///
/// The context was just opened.
unsafe fn opened(context: *mut Context) -> Arc<OpenDevice> {
    let open = context.cast::<OpenContext>();
    // SAFETY: the contract says that the context is open. The extended part lies directly before
    // it.
    let (ops, extended) = unsafe { (&mut (*open).ops, VerbsContext::of(context)) };
    let library = ops.post_send.map(|post_send| post_send as *const c_void);
    let in_software = software::stand_before(ops);
    let theirs = *ops;
    let slot = Slot::take(ops);
    if slot.is_none() {
        // A function that the device lacks stays null.
        ops.post_send = ops.post_send.and(Some(post::post_send));
        ops.post_recv = ops.post_recv.and(Some(post::post_recv));
        ops.post_srq_recv = ops.post_srq_recv.and(Some(post::post_srq_recv));
        ops.poll_cq = ops.poll_cq.and(Some(poll::poll_cq));
    }
    ops.bind_mw = ops.bind_mw.and(Some(post::bind_mw));
    // SAFETY: the context is open, and `theirs` has its functions from before.
    let device =
        Arc::new(unsafe { OpenDevice::new(open, theirs, extended, slot, library, in_software) });
    drop(DEVICES.insert(address(context), Arc::clone(&device)));
    check_provider(&device);
    // SAFETY: the pointer is null or points to the extended part.
    if let Some(extended) = unsafe { extended.as_mut() } {
        extended.create_wq = extended.create_wq.and(Some(create_wq));
        extended.create_cq_ex = extended.create_cq_ex.and(Some(create_cq_ex));
        extended.open_qp = extended.open_qp.and(Some(open_qp));
        extended.create_qp_ex = extended.create_qp_ex.and(Some(create_qp_ex));
        extended.create_srq_ex = extended.create_srq_ex.and(Some(create_srq_ex));
    }
    device
}

/// Marks the device as not followed if the program may use the device without libibverbs, or if the
/// shim does not know the device's library.
fn check_provider(device: &OpenDevice) {
    let Some(function) = device.library else {
        return;
    };
    match provider::of(function) {
        Provider::Followed => {}
        Provider::Unknown => cannot_see(device, "the device's library is not known to the shim"),
        Provider::Direct => {
            cannot_see(
                device,
                "the program may use the device directly, without libibverbs",
            );
        }
    }
}

/// Follows a queue pair that was just created, if the shim follows completions of its type.
///
/// # Safety
///
/// `qp` is a queue pair on this device.
unsafe fn follow(
    device: Arc<OpenDevice>,
    qp: *mut IbvQp,
    attr: &QpInitAttr,
    extended: Option<ExtendedPost>,
) {
    // SAFETY: the caller keeps the contract of this function.
    if (qp_type::RC..=qp_type::UD).contains(unsafe { &(*qp).qp_type }) {
        // SAFETY: the caller keeps the contract of this function.
        unsafe { QueuePair::create(device, qp, attr.cap, attr.sq_sig_all != 0, extended) };
    } else {
        cannot_see(
            &device,
            "a queue pair is of a type whose completions are not followed",
        );
    }
}

/// Returns the record of the device, if the shim saw it being opened.
///
/// # Safety
///
/// The program does not close the device during the call.
unsafe fn device(context: *mut Context) -> Option<Arc<OpenDevice>> {
    // SAFETY: the caller keeps the contract of this function.
    let device = unsafe { DEVICES.share(address(context)) }?;
    // The program may have loaded another library since the last check.
    check_provider(&device);
    Some(device)
}

/// Calls `create`. If it fails because a limit is reached, deregisters the idle registrations, which
/// count against the same limits, and calls it again.
fn with_room<T>(create: impl Fn() -> *mut T) -> *mut T {
    let made = create();
    if made.is_null()
        && is_exhaustion(&io::Error::last_os_error())
        && Process::started().is_some_and(Process::give_up_idle)
    {
        return create();
    }
    made
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_alloc_pd(context: *mut Context) -> *mut Pd {
    let _uncancelled = Uncancelled::begin();
    let Some(allocate) = real::alloc_pd() else {
        set_errno(libc::ENOSYS);
        return ptr::null_mut();
    };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    with_room(|| unsafe { allocate(context) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_create_ah(pd: *mut Pd, attr: *mut c_void) -> *mut c_void {
    let _uncancelled = Uncancelled::begin();
    let Some(create) = real::create_ah() else {
        set_errno(libc::ENOSYS);
        return ptr::null_mut();
    };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    with_room(|| unsafe { create(pd, attr) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_create_cq(
    context: *mut Context,
    cqe: c_int,
    cq_context: *mut c_void,
    channel: *mut c_void,
    vector: c_int,
) -> *mut IbvCq {
    let _uncancelled = Uncancelled::begin();
    let Some(create) = real::create_cq() else {
        set_errno(libc::ENOSYS);
        return ptr::null_mut();
    };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let cq = with_room(|| unsafe { create(context, cqe, cq_context, channel, vector) });
    if !cq.is_null()
        // SAFETY: the program does not close the device during this call.
        && let Some(device) = unsafe { device(context) }
    {
        CompletionQueue::create(device, cq, None);
    }
    cq
}

unsafe extern "C" fn create_cq_ex(context: *mut Context, attr: *mut CqInitAttrEx) -> *mut IbvCqEx {
    let _uncancelled = Uncancelled::begin();
    // SAFETY: the program does not close the device during this call.
    let device = unsafe { device(context) };
    let Some((device, create)) = device.and_then(|it| it.create.cq_ex.map(|create| (it, create)))
    else {
        set_errno(libc::EOPNOTSUPP);
        return ptr::null_mut();
    };
    // A completion holds the number of its queue pair only if the creator of the completion queue
    // sets this flag. The shim needs the number, so it sets the flag if the device allows it.
    // SAFETY: the program passed this argument, which must be valid by the contract of the call.
    let asked = unsafe { (*attr).wc_flags };
    // SAFETY: `attr` is valid, as above.
    unsafe { (*attr).wc_flags = asked | WC_EX_WITH_QP_NUM };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let mut cq = with_room(|| unsafe { create(context, attr) });
    // SAFETY: `attr` is valid, as above.
    unsafe { (*attr).wc_flags = asked };
    if cq.is_null() && asked & WC_EX_WITH_QP_NUM == 0 {
        // SAFETY: the program made this call, so the arguments are its responsibility.
        cq = unsafe { create(context, attr) };
    }
    if cq.is_null() {
        return cq;
    }
    // SAFETY: the queue was just created.
    match unsafe { poll::extend(cq) } {
        Some(its) => CompletionQueue::create(device, cq.cast(), Some(its)),
        None => cannot_see(
            &device,
            "a completion queue does not tell what its completions are of",
        ),
    }
    cq
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_destroy_cq(cq: *mut IbvCq) -> c_int {
    let _uncancelled = Uncancelled::begin();
    let Some(destroy) = real::destroy_cq() else {
        return libc::ENOSYS;
    };
    // The removal comes before `destroy`, since the next queue may be created at the same address.
    let known = COMPLETION_QUEUES.remove(address(cq));
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let refused = unsafe { destroy(cq) };
    if refused != 0
        && let Some(known) = known
    {
        drop(COMPLETION_QUEUES.insert(address(cq), known));
    }
    refused
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_create_qp(pd: *mut Pd, attr: *mut QpInitAttr) -> *mut IbvQp {
    let _uncancelled = Uncancelled::begin();
    let Some(create) = real::create_qp() else {
        set_errno(libc::ENOSYS);
        return ptr::null_mut();
    };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let qp = with_room(|| unsafe { create(pd, attr) });
    if !qp.is_null()
        // SAFETY: the program does not close the device during this call.
        && let Some(device) = unsafe { device((*qp).context) }
    {
        // SAFETY: `attr` is the program's, and the queue pair was just created.
        unsafe { follow(device, qp, &*attr, None) };
    }
    qp
}

unsafe extern "C" fn create_qp_ex(context: *mut Context, attr: *mut QpInitAttrEx) -> *mut IbvQp {
    let _uncancelled = Uncancelled::begin();
    // SAFETY: the program does not close the device during this call.
    let device = unsafe { device(context) };
    let Some((device, create)) = device.and_then(|it| it.create.qp_ex.map(|create| (it, create)))
    else {
        set_errno(libc::EOPNOTSUPP);
        return ptr::null_mut();
    };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let qp = with_room(|| unsafe { create(context, attr) });
    if qp.is_null() {
        return qp;
    }
    // SAFETY: the program passed this argument, which must be valid by the contract of the call.
    let (mask, operations) = unsafe { ((*attr).comp_mask, (*attr).send_ops_flags) };
    let extended = mask & qp_init::SEND_OPS != 0;
    let known = qp_init::PD | qp_init::CREATE_FLAGS | qp_init::SEND_OPS;
    if mask & !known != 0 || (extended && operations & !KNOWN_SEND_OPS != 0) {
        cannot_see(
            &device,
            "a queue pair has features that the shim does not know",
        );
        return qp;
    }
    let mut its = None;
    if extended {
        // SAFETY: the queue pair was just created.
        let ex = real::qp_to_qp_ex().map_or(ptr::null_mut(), |ask| unsafe { ask(qp) });
        // SAFETY: the pointer is null or points to the extended part of the queue pair.
        let Some(ex) = (unsafe { ex.as_mut() }) else {
            cannot_see(&device, "a queue pair has no functions for extended posts");
            return qp;
        };
        its = Some(ex.post);
        ex.post = post::extended(&ex.post);
    }
    // SAFETY: `ibv_qp_init_attr_ex` begins with the fields of `ibv_qp_init_attr`. The queue pair
    // was just created.
    unsafe { follow(device, qp, &*attr.cast::<QpInitAttr>(), its) };
    qp
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_modify_qp(
    qp: *mut IbvQp,
    attr: *mut QpAttr,
    mask: c_int,
) -> c_int {
    let _uncancelled = Uncancelled::begin();
    let Some(modify) = real::modify_qp() else {
        return libc::ENOSYS;
    };
    // SAFETY: the program passed this argument, which must be valid by the contract of the call.
    let resets = mask & QP_STATE != 0 && unsafe { (*attr).qp_state } == QPS_RESET;
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let refused = unsafe { modify(qp, attr, mask) };
    if refused == 0
        && resets
        // SAFETY: the program does not destroy the queue pair during this call.
        && let Some(pair) = unsafe { QUEUE_PAIRS.get(address(qp)) }
        && pair.device.is_ours()
    {
        pair.reset();
    }
    refused
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_destroy_qp(qp: *mut IbvQp) -> c_int {
    let _uncancelled = Uncancelled::begin();
    let Some(destroy) = real::destroy_qp() else {
        return libc::ENOSYS;
    };
    // The removal comes before `destroy`: the next queue pair may have the same address or number.
    let known = QUEUE_PAIRS.remove(address(qp));
    let known = known.filter(|pair| pair.device.is_ours());
    if let Some(pair) = &known {
        pair.leave();
        pair.ignore_completions();
    }
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let refused = unsafe { destroy(qp) };
    if let Some(pair) = known {
        if refused == 0 {
            pair.destroyed();
        } else {
            pair.count_completions();
            pair.enter();
        }
    }
    refused
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_create_srq(pd: *mut Pd, attr: *mut SrqInitAttr) -> *mut IbvSrq {
    let _uncancelled = Uncancelled::begin();
    let Some(create) = real::create_srq() else {
        set_errno(libc::ENOSYS);
        return ptr::null_mut();
    };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let srq = with_room(|| unsafe { create(pd, attr) });
    if !srq.is_null()
        // SAFETY: the program does not close the device during this call.
        && let Some(device) = unsafe { device((*srq).context) }
    {
        // SAFETY: the program passed this argument, which must be valid by the contract of the
        // call.
        let (max_wr, max_sge) = unsafe { ((*attr).max_wr, (*attr).max_sge) };
        SharedQueue::create(device, srq, max_wr, max_sge);
    }
    srq
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_destroy_srq(srq: *mut IbvSrq) -> c_int {
    let _uncancelled = Uncancelled::begin();
    let Some(destroy) = real::destroy_srq() else {
        return libc::ENOSYS;
    };
    let known = SHARED_QUEUES.remove(address(srq));
    let known = known.filter(|shared| shared.device.is_ours());
    if let Some(shared) = &known {
        shared.leave();
    }
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let refused = unsafe { destroy(srq) };
    if let Some(known) = known {
        if refused == 0 {
            known.destroyed();
        } else {
            known.enter();
        }
    }
    refused
}

/// Defines functions that create objects which the shim does not follow. Each function marks the
/// device as not followed, and calls the device's function.
macro_rules! not_followed {
    ($($name:ident by $field:ident -> $made:ty: $why:literal;)*) => {
        $(
            unsafe extern "C" fn $name(context: *mut Context, attr: *mut c_void) -> $made {
                let _uncancelled = Uncancelled::begin();
                // SAFETY: the program does not close the device during this call.
                let device = unsafe { device(context) };
                let create = device.as_ref().and_then(|it| it.create.$field);
                let (Some(device), Some(create)) = (device, create) else {
                    set_errno(libc::EOPNOTSUPP);
                    return ptr::null_mut();
                };
                cannot_see(&device, $why);
                // SAFETY: the program made this call, so the arguments are its responsibility.
                with_room(|| unsafe { create(context, attr) })
            }
        )*
    };
}

not_followed! {
    create_wq by wq -> *mut c_void: "a work queue (ibv_create_wq) is not followed";
    open_qp by open_qp -> *mut IbvQp: "a queue pair of another process (ibv_open_qp) is not followed";
    // This function creates extended shared receive queues, which the shim does not follow.
    // `ibv_create_srq` creates basic ones.
    create_srq_ex by srq_ex -> *mut IbvSrq: "an extended shared receive queue is not followed";
}
