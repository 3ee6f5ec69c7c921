//! Posts work: the functions that replace the device's own.
//!
//! Each request is counted, with its keys, before the device gets it. If a key is idle, its
//! registration is first deregistered (see the head of `outstanding/mod.rs`).
//!
//! Most requests are like the request before. The functions with `again` in their names post only
//! such requests, with few instructions. They leave all others to the functions without it.

use std::ffi::{c_int, c_void};
use std::slice;
use std::thread;
use std::time::Duration;

use regcache::Uncancelled;
use regcache_verbs_types::Context;

use crate::abi::{ExtendedPost, IbvQp, IbvQpEx, IbvSrq, MwBind, RecvWr, SendWr, Sge, send};
use crate::objects::{
    DEVICES, OpenDevice, QUEUE_PAIRS, QueuePair, RECEIVES, SENDS, SHARED_QUEUES, address,
};
use crate::outstanding::Post;
use crate::process::{Process, cannot_see};
use crate::slots::SLOTS;

/// A work request of a send or a receive queue.
trait Request {
    fn next(&self) -> *mut Self;
    /// Returns the list of memory that the device accesses by keys. The list is empty if the
    /// request accesses no memory.
    fn list(&self) -> (*mut Sge, c_int);
    fn is_signaled(&self, all: bool) -> bool;
    /// Returns a number that shows whether the request is signaled and uses its memory.
    fn shape(&self) -> u64;
}

impl Request for SendWr {
    fn next(&self) -> *mut Self {
        self.next
    }

    fn list(&self) -> (*mut Sge, c_int) {
        // Two members of `enum ibv_wr_opcode`. Requests with these opcodes use no memory, so their
        // lists may be invalid.
        const LOCAL_INV: c_int = 7;
        const BIND_MW: c_int = 8;
        if self.send_flags & send::INLINE != 0 || matches!(self.opcode, LOCAL_INV | BIND_MW) {
            return (std::ptr::null_mut(), 0);
        }
        (self.sg_list, self.num_sge)
    }

    fn is_signaled(&self, all: bool) -> bool {
        all || self.send_flags & send::SIGNALED != 0
    }

    #[inline]
    fn shape(&self) -> u64 {
        u64::from(self.opcode.cast_unsigned()) | u64::from(self.send_flags) << 32
    }
}

impl Request for RecvWr {
    fn next(&self) -> *mut Self {
        self.next
    }

    fn list(&self) -> (*mut Sge, c_int) {
        (self.sg_list, self.num_sge)
    }

    fn is_signaled(&self, _all: bool) -> bool {
        true
    }

    fn shape(&self) -> u64 {
        0
    }
}

/// Returns an iterator over the requests of a list.
#[inline]
fn requests<'a, R: Request + 'a>(mut next: *mut R) -> impl Iterator<Item = &'a R> {
    std::iter::from_fn(move || {
        // SAFETY: the pointer is null or points to a request of the program's list.
        let request = unsafe { next.as_ref() }?;
        next = request.next();
        Some(request)
    })
}

/// Returns the memory of a request. Returns none if the request has more than `most` pieces: the
/// device refuses such a request without reading the pieces.
#[inline]
fn list<R: Request>(request: &R, most: u32) -> &[Sge] {
    let (list, count) = request.list();
    // A negative count becomes a large one here, and is refused below.
    let count = count.cast_unsigned();
    if count == 0 || count > most {
        return &[];
    }
    // SAFETY: the program's list has `count` pieces.
    unsafe { slice::from_raw_parts(list, count as usize) }
}

/// Counts the requests of a list, and posts the list by `real`. The requests that the device has
/// not accepted are then subtracted again.
///
/// # Safety
///
/// `first` and `bad` are the program's arguments.
#[inline]
unsafe fn post<R: Request>(
    device: &OpenDevice,
    mut posting: Post<'_>,
    (all_signaled, max_sge): (bool, u32),
    (first, bad): (*mut R, *mut *mut R),
    real: impl FnOnce() -> c_int,
) -> c_int {
    // SAFETY: `first` is null or points to the program's first request.
    match unsafe { first.as_ref() }.map(|it| (it, list(it, max_sge))) {
        // Most lists have one request, and most requests have one piece of memory.
        Some((request, [sge])) if request.next().is_null() => {
            let is_signaled = request.is_signaled(all_signaled);
            posting.request(is_signaled);
            let noted = posting.key(sge.lkey);
            if device.work.is_idle(sge.lkey) {
                end_idle(device, sge.lkey);
            }
            if is_signaled && let Some(at) = noted {
                posting.run(sge.lkey, at, request.shape());
            }
        }
        _ => count(device, &mut posting, (all_signaled, max_sge), first),
    }
    let refused = real();
    if refused != 0 && !bad.is_null() {
        // SAFETY: the device has stored the first request that it refused at `bad`.
        take_back(&mut posting, all_signaled, first, unsafe { *bad });
    }
    refused
}

/// Counts the requests of a list, notes their keys, and ends idle registrations with these keys.
#[inline(never)]
fn count<R: Request>(
    device: &OpenDevice,
    posting: &mut Post<'_>,
    (all_signaled, max_sge): (bool, u32),
    first: *mut R,
) {
    for request in requests(first) {
        posting.request(request.is_signaled(all_signaled));
        for sge in list(request, max_sge) {
            posting.key(sge.lkey);
        }
    }
    for request in requests(first) {
        for sge in list(request, max_sge) {
            if device.work.is_idle(sge.lkey) {
                end_idle(device, sge.lkey);
            }
        }
    }
}

/// Subtracts the requests from `bad` on, which the device has not accepted. If `bad` is not in the
/// list, the device may have accepted any request, so nothing is subtracted.
#[cold]
fn take_back<R: Request>(posting: &mut Post<'_>, all: bool, first: *mut R, bad: *mut R) {
    if requests(first).any(|it| std::ptr::from_ref(it) == bad.cast_const()) {
        let signaled = requests(bad).filter(|it| it.is_signaled(all)).count();
        posting.take_back(signaled as u64);
    }
}

/// Deregisters all idle registrations of the device, because the program posts with the key of one.
#[cold]
fn end_idle(device: &OpenDevice, key: u32) {
    let _uncancelled = Uncancelled::begin();
    // Another thread may be deregistering this registration, which takes some microseconds. So the
    // loop waits.
    for _ in 0..100 {
        if let Some(process) = Process::started() {
            process.give_up_idle_of(device);
        }
        if !device.work.is_idle(key) {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Handles a post to a queue whose creation the shim did not see. The shim then follows no queue of
/// the device any more.
#[cold]
fn unknown(context: *mut Context) -> Option<&'static OpenDevice> {
    // SAFETY: the program does not close the device while it posts.
    let device = unsafe { DEVICES.get(address(context)) }?;
    cannot_see(
        device,
        "work was posted to a queue that was created in another way",
    );
    Some(device)
}

/// Posts a send that is like the send before.
pub(crate) unsafe extern "C" fn post_send_again<const SLOT: usize>(
    qp: *mut IbvQp,
    first: *mut SendWr,
    bad: *mut *mut SendWr,
) -> c_int {
    let (differs, queue) = SENDS.get(address(qp));
    // SAFETY: the argument is null or the program's first request.
    if let Some(request) = unsafe { first.as_ref() }
        && differs | request.next.addr() == 0
        && request.num_sge == 1
        // SAFETY: the record is that of this queue pair, which the program does not destroy during
        // this call.
        && let queue = unsafe { &*queue }
        && request.shape() == queue.shape()
    {
        // SAFETY: a request of this shape uses its memory, so its list has one piece.
        let key = || unsafe { (*request.sg_list).lkey };
        if let Some(again) = queue.again(key) {
            // SAFETY: this is the program's call, with its arguments, and its device is in the
            // slot.
            let refused = unsafe { SLOTS[SLOT].post_send()(qp, first, bad) };
            again.end(refused);
            return refused;
        }
        // SAFETY: this is the program's call, with its arguments.
        return unsafe { post_send_switch::<SLOT>(qp, first, bad) };
    }
    // SAFETY: this is the program's call, with its arguments.
    unsafe { post_send(qp, first, bad) }
}

/// Posts a send that is like the send before, except for its key.
///
/// # Safety
///
/// [`post_send_again`] has found the queue, and that the send has the shape of the run.
#[inline(never)]
unsafe extern "C" fn post_send_switch<const SLOT: usize>(
    qp: *mut IbvQp,
    first: *mut SendWr,
    bad: *mut *mut SendWr,
) -> c_int {
    let (_, queue) = SENDS.get(address(qp));
    // SAFETY: the caller keeps the contract of this function.
    if let Some(again) = unsafe { (*queue).switch((*(*first).sg_list).lkey) } {
        // SAFETY: this is the program's call, with its arguments, and its device is in the slot.
        let refused = unsafe { SLOTS[SLOT].post_send()(qp, first, bad) };
        again.end(refused);
        return refused;
    }
    // SAFETY: this is the program's call, with its arguments.
    unsafe { post_send(qp, first, bad) }
}

/// Defines two functions that post receives to a kind of queue. The first posts a receive that is
/// like the receive before. The second posts a receive with another key, after the first has found
/// the queue.
macro_rules! receives {
    ($($again:ident, $switch:ident, $post:ident: $queue:ty;)*) => {
        $(
            /// Posts a receive that is like the receive before.
            pub(crate) unsafe extern "C" fn $again<const SLOT: usize>(
                to: *mut $queue,
                first: *mut RecvWr,
                bad: *mut *mut RecvWr,
            ) -> c_int {
                let (differs, queue) = RECEIVES.get(address(to));
                // SAFETY: the argument is null or the program's first request.
                if let Some(request) = unsafe { first.as_ref() }
                    && differs | request.next.addr() == 0
                    && request.num_sge == 1
                {
                    // SAFETY: the record is that of this queue, which the program does not destroy
                    // during this call. The request has one piece of memory.
                    let again = unsafe { (*queue).again(|| (*request.sg_list).lkey) };
                    if let Some(again) = again {
                        // SAFETY: this is the program's call, and its device is in the slot.
                        let refused = unsafe { SLOTS[SLOT].$post()(to, first, bad) };
                        again.end(refused);
                        return refused;
                    }
                    // SAFETY: the arguments are the program's.
                    return unsafe { $switch::<SLOT>(to, first, bad) };
                }
                // SAFETY: the arguments are the program's.
                unsafe { $post(to, first, bad) }
            }

            /// Posts a receive that is like the receive before, except for its key.
            #[inline(never)]
            unsafe extern "C" fn $switch<const SLOT: usize>(
                to: *mut $queue,
                first: *mut RecvWr,
                bad: *mut *mut RecvWr,
            ) -> c_int {
                let (_, queue) = RECEIVES.get(address(to));
                // SAFETY: the other function has found the queue, and one piece of memory.
                if let Some(again) = unsafe { (*queue).switch((*(*first).sg_list).lkey) } {
                    // SAFETY: this is the program's call, and its device is in the slot.
                    let refused = unsafe { SLOTS[SLOT].$post()(to, first, bad) };
                    again.end(refused);
                    return refused;
                }
                // SAFETY: the arguments are the program's.
                unsafe { $post(to, first, bad) }
            }
        )*
    };
}

receives! {
    post_recv_again, post_recv_switch, post_recv: IbvQp;
    post_srq_recv_again, post_srq_recv_switch, post_srq_recv: IbvSrq;
}

#[inline(never)]
pub(crate) unsafe extern "C" fn post_send(
    qp: *mut IbvQp,
    first: *mut SendWr,
    bad: *mut *mut SendWr,
) -> c_int {
    // SAFETY: the program does not destroy the queue pair during this call.
    let Some(pair) = (unsafe { QUEUE_PAIRS.get(address(qp)) }) else {
        // SAFETY: the program passed this queue pair, and does not destroy it during the call.
        let real = unknown(unsafe { (*qp).context }).and_then(|device| device.ops.post_send);
        // SAFETY: the program made this call, so the arguments are its responsibility.
        return real.map_or(libc::EOPNOTSUPP, |real| unsafe { real(qp, first, bad) });
    };
    let Some(real) = pair.post_send else {
        return libc::EOPNOTSUPP;
    };
    let how = (pair.all_signaled, pair.cap.max_send_sge);
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let real = || unsafe { real(qp, first, bad) };
    // SAFETY: the program passed these arguments, so they are its responsibility.
    unsafe { post(&pair.device, pair.sends.post(), how, (first, bad), real) }
}

#[inline(never)]
pub(crate) unsafe extern "C" fn post_recv(
    qp: *mut IbvQp,
    first: *mut RecvWr,
    bad: *mut *mut RecvWr,
) -> c_int {
    // SAFETY: the program does not destroy the queue pair during this call.
    let pair = unsafe { QUEUE_PAIRS.get(address(qp)) };
    let Some((pair, receives)) = pair.and_then(|it| Some((it, it.receives.as_ref()?))) else {
        // SAFETY: the program passed this queue pair, and does not destroy it during the call.
        let real = unknown(unsafe { (*qp).context }).and_then(|device| device.ops.post_recv);
        // SAFETY: the program made this call, so the arguments are its responsibility.
        return real.map_or(libc::EOPNOTSUPP, |real| unsafe { real(qp, first, bad) });
    };
    let Some(real) = pair.post_recv else {
        return libc::EOPNOTSUPP;
    };
    let how = (true, pair.cap.max_recv_sge);
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let real = || unsafe { real(qp, first, bad) };
    // SAFETY: the program passed these arguments, so they are its responsibility.
    unsafe { post(&pair.device, receives.post(), how, (first, bad), real) }
}

#[inline(never)]
pub(crate) unsafe extern "C" fn post_srq_recv(
    srq: *mut IbvSrq,
    first: *mut RecvWr,
    bad: *mut *mut RecvWr,
) -> c_int {
    // SAFETY: the program does not destroy the queue during this call.
    let Some(shared) = (unsafe { SHARED_QUEUES.get(address(srq)) }) else {
        // SAFETY: the program passed this queue, and does not destroy it during the call.
        let real = unknown(unsafe { (*srq).context }).and_then(|it| it.ops.post_srq_recv);
        // SAFETY: the program made this call, so the arguments are its responsibility.
        return real.map_or(libc::EOPNOTSUPP, |real| unsafe { real(srq, first, bad) });
    };
    let Some(real) = shared.device.ops.post_srq_recv else {
        return libc::EOPNOTSUPP;
    };
    let how = (true, shared.max_sge);
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let real = || unsafe { real(srq, first, bad) };
    // SAFETY: the program passed these arguments, so they are its responsibility.
    unsafe { post(&shared.device, shared.queue.post(), how, (first, bad), real) }
}

/// Posts a bind, which is a request of the send queue. The cache holds no registration that allows
/// binds, so no key is noted.
pub(crate) unsafe extern "C" fn bind_mw(
    qp: *mut IbvQp,
    window: *mut c_void,
    bind: *mut MwBind,
) -> c_int {
    // SAFETY: the program does not destroy the queue pair during this call.
    let pair = unsafe { QUEUE_PAIRS.get(address(qp)) };
    // SAFETY: the program passed this queue pair, and does not destroy it during the call.
    let device = match pair {
        Some(pair) => Some(&*pair.device),
        // SAFETY: the program passed this queue pair, and does not destroy it during the call.
        None => unknown(unsafe { (*qp).context }),
    };
    let Some(real) = device.and_then(|device| device.ops.bind_mw) else {
        return libc::EOPNOTSUPP;
    };
    let posting = pair.map(|pair| {
        let mut posting = pair.sends.post();
        let mark = posting.mark();
        // SAFETY: the program passed this argument, which must be valid by the contract of the
        // call.
        let flags = unsafe { (*bind).send_flags };
        posting.request(pair.all_signaled || flags & send::SIGNALED != 0);
        (posting, mark)
    });
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let refused = unsafe { real(qp, window, bind) };
    if let Some((mut posting, mark)) = posting
        && refused != 0
    {
        posting.take_back_to(mark);
    }
    refused
}

/// Returns the functions that replace `its`, the device's functions for extended posts.
pub(crate) fn extended(its: &ExtendedPost) -> ExtendedPost {
    let mut ours = *its;
    // A function is null if the program did not ask for its operation. Such a function stays null.
    macro_rules! replace {
        ($($name:ident),*) => { $(ours.$name = its.$name.and(Some(wr::$name));)* };
    }
    replace!(
        atomic_cmp_swp,
        atomic_fetch_add,
        bind_mw,
        local_inv,
        rdma_read,
        rdma_write,
        rdma_write_imm,
        send,
        send_imm,
        send_inv,
        send_tso,
        set_sge,
        set_sge_list,
        start,
        complete,
        abort
    );
    ours
}

/// Returns the record of a queue pair whose functions for extended posts were replaced, and the
/// device's functions.
///
/// # Safety
///
/// The program does not destroy the queue pair during the call.
unsafe fn extended_pair<'a>(qp: *mut IbvQpEx) -> Option<(&'a QueuePair, &'a ExtendedPost)> {
    // SAFETY: the caller keeps the contract of this function.
    let pair = unsafe { QUEUE_PAIRS.get(address(qp)) }?;
    Some((pair, pair.extended.as_ref()?))
}

/// The functions in `struct ibv_qp_ex`. The header's inline functions call them.
mod wr {
    use super::*;

    /// Defines functions that count a request and then call the device's function.
    macro_rules! requests {
        ($($name:ident($($argument:ident: $type:ty),*);)*) => {
            $(
                pub(super) unsafe extern "C" fn $name(qp: *mut IbvQpEx $(, $argument: $type)*) {
                    // SAFETY: the program calls this function for its queue pair, between
                    // `ibv_wr_start` and the end of the post.
                    let Some(real) = (unsafe { count(qp) }).and_then(|its| its.$name) else {
                        return;
                    };
                    // SAFETY: the program made this call, so the arguments are its responsibility.
                    unsafe { real(qp $(, $argument)*) }
                }
            )*
        };
    }

    requests! {
        atomic_cmp_swp(rkey: u32, remote: u64, compare: u64, swap: u64);
        atomic_fetch_add(rkey: u32, remote: u64, add: u64);
        bind_mw(window: *mut c_void, rkey: u32, info: *mut c_void);
        local_inv(rkey: u32);
        rdma_read(rkey: u32, remote: u64);
        rdma_write(rkey: u32, remote: u64);
        rdma_write_imm(rkey: u32, remote: u64, data: u32);
        send();
        send_imm(data: u32);
        send_inv(rkey: u32);
        send_tso(header: *mut c_void, size: u16, segment: u16);
    }

    /// Counts a request of the post that this thread has begun.
    unsafe fn count<'a>(qp: *mut IbvQpEx) -> Option<&'a ExtendedPost> {
        // SAFETY: the program passed this queue pair, and does not destroy it during the call.
        let (pair, its) = unsafe { extended_pair(qp) }?;
        // SAFETY: the program passed this queue pair, and does not destroy it during the call.
        let flags = unsafe { (*qp).wr_flags };
        // SAFETY: the program is between `ibv_wr_start` and the end of the post, in this thread.
        if let Some((post, _)) = unsafe { pair.begun() } {
            post.request(pair.all_signaled || flags & crate::abi::send::SIGNALED != 0);
        }
        Some(its)
    }

    /// Notes keys of the request that was counted last, and ends idle registrations with these
    /// keys.
    unsafe fn note<'a>(
        qp: *mut IbvQpEx,
        keys: impl Iterator<Item = u32> + Clone,
    ) -> Option<&'a ExtendedPost> {
        // SAFETY: the program passed this queue pair, and does not destroy it during the call.
        let (pair, its) = unsafe { extended_pair(qp) }?;
        // SAFETY: the program is between `ibv_wr_start` and the end of the post, in this thread.
        if let Some((post, _)) = unsafe { pair.begun() } {
            for key in keys.clone() {
                post.key(key);
            }
            for key in keys {
                if pair.device.work.is_idle(key) {
                    end_idle(&pair.device, key);
                }
            }
        }
        Some(its)
    }

    pub(super) unsafe extern "C" fn set_sge(qp: *mut IbvQpEx, key: u32, addr: u64, length: u32) {
        // SAFETY: the program is between `ibv_wr_start` and the end of the post, in this thread.
        let its = unsafe { note(qp, std::iter::once(key)) };
        if let Some(real) = its.and_then(|its| its.set_sge) {
            // SAFETY: the program made this call, so the arguments are its responsibility.
            unsafe { real(qp, key, addr, length) }
        }
    }

    pub(super) unsafe extern "C" fn set_sge_list(qp: *mut IbvQpEx, count: usize, list: *const Sge) {
        let list_of = || {
            // SAFETY: the program's list has `count` pieces.
            let list = unsafe { slice::from_raw_parts(list, count) };
            list.iter().map(|sge| sge.lkey)
        };
        let its = if list.is_null() || count == 0 {
            // SAFETY: the program passed this queue pair, and does not destroy it during the call.
            unsafe { extended_pair(qp) }.map(|(_, its)| its)
        } else {
            // SAFETY: the program is between `ibv_wr_start` and the end of the post, in this
            // thread.
            unsafe { note(qp, list_of()) }
        };
        if let Some(real) = its.and_then(|its| its.set_sge_list) {
            // SAFETY: the program made this call, so the arguments are its responsibility.
            unsafe { real(qp, count, list) }
        }
    }

    pub(super) unsafe extern "C" fn start(qp: *mut IbvQpEx) {
        // SAFETY: the program passed this queue pair, and does not destroy it during the call.
        let Some((pair, its)) = (unsafe { extended_pair(qp) }) else {
            return;
        };
        // SAFETY: this thread is in `ibv_wr_start`. The shim's lock is always taken before the
        // device's own.
        unsafe { pair.begin() };
        if let Some(real) = its.start {
            // SAFETY: the program made this call, so the arguments are its responsibility.
            unsafe { real(qp) }
        }
    }

    pub(super) unsafe extern "C" fn complete(qp: *mut IbvQpEx) -> c_int {
        // SAFETY: the program passed this queue pair, and does not destroy it during the call.
        let Some((pair, its)) = (unsafe { extended_pair(qp) }) else {
            return libc::EINVAL;
        };
        let _uncancelled = pair.device.in_software.then(Uncancelled::begin);
        // SAFETY: the program made this call, so the arguments are its responsibility.
        let refused = its
            .complete
            .map_or(libc::EINVAL, |real| unsafe { real(qp) });
        // SAFETY: this thread has begun the post.
        if let Some((mut post, mark)) = unsafe { pair.begun() }.take()
            && refused != 0
        {
            post.take_back_to(mark);
        }
        refused
    }

    pub(super) unsafe extern "C" fn abort(qp: *mut IbvQpEx) {
        // SAFETY: the program passed this queue pair, and does not destroy it during the call.
        let Some((pair, its)) = (unsafe { extended_pair(qp) }) else {
            return;
        };
        if let Some(real) = its.abort {
            // SAFETY: the program made this call, so the arguments are its responsibility.
            unsafe { real(qp) }
        }
        // SAFETY: this thread has begun the post.
        if let Some((mut post, mark)) = unsafe { pair.begun() }.take() {
            post.take_back_to(mark);
        }
    }
}
