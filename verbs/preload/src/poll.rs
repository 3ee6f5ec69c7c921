//! Polling: what takes the place of a device's functions for it.

use std::ffi::{c_int, c_void};
use std::slice;

use crate::abi::{IbvCq, IbvCqEx, Wc};
use crate::objects::{
    COMPLETION_QUEUES, CompletionQueue, Counting, DEVICES, ExtendedPoll, address,
};

pub(crate) unsafe extern "C" fn poll_cq(cq: *mut IbvCq, most: c_int, to: *mut Wc) -> c_int {
    // SAFETY: the program does not destroy it meanwhile.
    let Some(known) = (unsafe { COMPLETION_QUEUES.get(address(cq)) }) else {
        // Its completions are not counted, so what they belong to stays outstanding.
        // SAFETY: the program's queue, on a device that it does not close meanwhile.
        let device = unsafe { DEVICES.get(address((*cq).context)) };
        let real = device.and_then(|device| device.ops.poll_cq);
        // SAFETY: the program's call.
        return real.map_or(-libc::EOPNOTSUPP, |real| unsafe { real(cq, most, to) });
    };
    let Some(real) = known.poll_cq else {
        return -libc::EOPNOTSUPP;
    };
    let mut counting = known.counting();
    // SAFETY: the program's call.
    let got = unsafe { real(cq, most, to) };
    if got > 0 {
        // SAFETY: the device has written so many.
        counting.add_all(unsafe { slice::from_raw_parts(to, got.cast_unsigned() as usize) });
    }
    if (0..most).contains(&got) {
        counting.seen_empty();
    }
    got
}

/// Has a queue with extended polling use the shim's functions; what it had before. `None` if it has
/// not all that is needed.
///
/// # Safety
///
/// `cq` was just created.
pub(crate) unsafe fn extend(cq: *mut IbvCqEx) -> Option<ExtendedPoll> {
    // SAFETY: by the contract.
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

/// # Safety
///
/// The program does not destroy the queue meanwhile.
unsafe fn extended<'a>(cq: *mut IbvCqEx) -> Option<(&'a CompletionQueue, &'a ExtendedPoll)> {
    // SAFETY: by the contract.
    let known = unsafe { COMPLETION_QUEUES.get(address(cq)) }?;
    Some((known, known.extended.as_ref()?))
}

/// Counts the completion that the queue shows.
///
/// # Safety
///
/// The queue shows one.
unsafe fn count(counting: &mut Counting, cq: *mut IbvCqEx) {
    // SAFETY: by the contract.
    let (status, read_opcode, read_qp_num) = unsafe {
        let cq = &*cq;
        (cq.status, cq.read_opcode, cq.read_qp_num)
    };
    if let (Some(opcode), Some(number)) = (read_opcode, read_qp_num) {
        // SAFETY: by the contract.
        counting.add(status, unsafe { number(cq) }, || unsafe { opcode(cq) });
    }
}

unsafe extern "C" fn start_poll(cq: *mut IbvCqEx, attr: *mut c_void) -> c_int {
    // SAFETY: the program's queue.
    let Some((known, its)) = (unsafe { extended(cq) }) else {
        return libc::EINVAL;
    };
    // SAFETY: this is `ibv_start_poll`. The device's own lock comes second.
    unsafe { known.begin() };
    // SAFETY: the program's call.
    let result = unsafe { (its.start)(cq, attr) };
    // SAFETY: this thread has begun it.
    let begun = unsafe { known.begun() };
    if let Some(counting) = begun {
        match result {
            0 => {
                // SAFETY: the queue shows a completion.
                unsafe { count(counting, cq) };
                return 0;
            }
            libc::ENOENT => counting.seen_empty(),
            _ => {}
        }
    }
    // The program ends only a poll that was started.
    // SAFETY: this thread has begun it.
    unsafe { known.end() };
    result
}

unsafe extern "C" fn next_poll(cq: *mut IbvCqEx) -> c_int {
    // SAFETY: the program's queue.
    let Some((known, its)) = (unsafe { extended(cq) }) else {
        return libc::EINVAL;
    };
    // SAFETY: the program's call.
    let result = unsafe { (its.next)(cq) };
    // SAFETY: this thread has begun it.
    let begun = unsafe { known.begun() };
    if let Some(counting) = begun {
        match result {
            // SAFETY: the queue shows a completion.
            0 => unsafe { count(counting, cq) },
            libc::ENOENT => counting.seen_empty(),
            _ => {}
        }
    }
    result
}

unsafe extern "C" fn end_poll(cq: *mut IbvCqEx) {
    // SAFETY: the program's queue.
    let Some((known, its)) = (unsafe { extended(cq) }) else {
        return;
    };
    // SAFETY: the program's call.
    unsafe { (its.end)(cq) };
    // SAFETY: this thread has begun it.
    unsafe { known.end() };
}
