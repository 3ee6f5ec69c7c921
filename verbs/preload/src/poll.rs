//! Polls completion queues: the functions that replace the device's own.

use std::ffi::{c_int, c_void};
use std::slice;

use crate::abi::{IbvCq, IbvCqEx, Wc};
use crate::objects::{
    COMPLETION_QUEUES, CompletionQueue, Counting, DEVICES, ExtendedPoll, address,
};

pub(crate) unsafe extern "C" fn poll_cq(cq: *mut IbvCq, most: c_int, to: *mut Wc) -> c_int {
    // SAFETY: the program does not destroy the queue during this call.
    let Some(known) = (unsafe { COMPLETION_QUEUES.get(address(cq)) }) else {
        // The shim counts no completion of this queue. So the requests stay outstanding, which is
        // safe.
        // SAFETY: the queue is the program's, and the program does not close its device during this
        // call.
        let device = unsafe { DEVICES.get(address((*cq).context)) };
        let real = device.and_then(|device| device.ops.poll_cq);
        // SAFETY: the program made this call, so the arguments are its responsibility.
        return real.map_or(-libc::EOPNOTSUPP, |real| unsafe { real(cq, most, to) });
    };
    let Some(real) = known.poll_cq else {
        return -libc::EOPNOTSUPP;
    };
    let mut counting = known.counting();
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let got = unsafe { real(cq, most, to) };
    if got > 0 {
        // SAFETY: the device has written `got` completions at `to`.
        counting.add_all(unsafe { slice::from_raw_parts(to, got.cast_unsigned() as usize) });
    }
    if (0..most).contains(&got) {
        counting.seen_empty();
    }
    got
}

/// Replaces the functions of a queue with extended polling. Returns the functions that the queue
/// had before; `None` if the queue lacks a function that the shim needs.
///
/// # Safety
///
/// `cq` was just created.
pub(crate) unsafe fn extend(cq: *mut IbvCqEx) -> Option<ExtendedPoll> {
    // SAFETY: the caller keeps the contract of this function.
    let cq = unsafe { &mut *cq };
    cq.read_opcode.and(cq.read_qp_num)?;
    let its = ExtendedPoll {
        start: cq.start_poll?,
        next: cq.next_poll?,
        end: cq.end_poll?,
    };
    cq.start_poll = Some(start_poll);
    cq.next_poll = Some(next_poll);
    cq.end_poll = Some(end_poll);
    Some(its)
}

/// Returns the record of the queue, and the device's functions for extended polling.
///
/// # Safety
///
/// The program does not destroy the queue during the call.
unsafe fn extended<'a>(cq: *mut IbvCqEx) -> Option<(&'a CompletionQueue, &'a ExtendedPoll)> {
    // SAFETY: the caller keeps the contract of this function.
    let known = unsafe { COMPLETION_QUEUES.get(address(cq)) }?;
    Some((known, known.extended.as_ref()?))
}

/// Counts the completion at which the extended poll is.
///
/// # Safety
///
/// The extended poll is at a completion.
unsafe fn count(counting: &mut Counting, cq: *mut IbvCqEx) {
    // SAFETY: the caller keeps the contract of this function.
    let (status, read_opcode, read_qp_num) = unsafe {
        let cq = &*cq;
        (cq.status, cq.read_opcode, cq.read_qp_num)
    };
    if let (Some(opcode), Some(number)) = (read_opcode, read_qp_num) {
        // SAFETY: the caller keeps the contract of this function.
        counting.add(status, unsafe { number(cq) }, || unsafe { opcode(cq) });
    }
}

unsafe extern "C" fn start_poll(cq: *mut IbvCqEx, attr: *mut c_void) -> c_int {
    // SAFETY: the program passed this queue, and does not destroy it during the call.
    let Some((known, its)) = (unsafe { extended(cq) }) else {
        return libc::EINVAL;
    };
    // SAFETY: this thread is in `ibv_start_poll`. The shim's lock is always taken before the
    // device's own.
    unsafe { known.begin() };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let result = unsafe { (its.start)(cq, attr) };
    // SAFETY: this thread has begun the poll.
    let begun = unsafe { known.begun() };
    if let Some(counting) = begun {
        match result {
            0 => {
                // SAFETY: the device returned 0, so the poll is at a completion.
                unsafe { count(counting, cq) };
                return 0;
            }
            libc::ENOENT => counting.seen_empty(),
            _ => {}
        }
    }
    // The program calls `ibv_end_poll` only if `ibv_start_poll` succeeded. So a failed poll ends
    // here.
    // SAFETY: this thread has begun the poll.
    unsafe { known.end() };
    result
}

unsafe extern "C" fn next_poll(cq: *mut IbvCqEx) -> c_int {
    // SAFETY: the program passed this queue, and does not destroy it during the call.
    let Some((known, its)) = (unsafe { extended(cq) }) else {
        return libc::EINVAL;
    };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    let result = unsafe { (its.next)(cq) };
    // SAFETY: this thread has begun the poll.
    let begun = unsafe { known.begun() };
    if let Some(counting) = begun {
        match result {
            // SAFETY: the device returned 0, so the poll is at a completion.
            0 => unsafe { count(counting, cq) },
            libc::ENOENT => counting.seen_empty(),
            _ => {}
        }
    }
    result
}

unsafe extern "C" fn end_poll(cq: *mut IbvCqEx) {
    // SAFETY: the program passed this queue, and does not destroy it during the call.
    let Some((known, its)) = (unsafe { extended(cq) }) else {
        return;
    };
    // SAFETY: the program made this call, so the arguments are its responsibility.
    unsafe { (its.end)(cq) };
    // SAFETY: this thread has begun the poll.
    unsafe { known.end() };
}
