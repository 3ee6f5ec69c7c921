//! Polls completion queues: the functions that replace the device's own.

use std::ffi::{c_int, c_void};
use std::slice;
use std::sync::atomic::Ordering;

use crate::abi::{IbvCq, IbvCqEx, RECEIVED, SUCCESS, Wc};
use crate::objects::{
    COMPLETION_QUEUES, CompletionQueue, Counting, DEVICES, ExtendedPoll, address,
};
use crate::slots::{SLOTS, Slot};

/// Polls, and counts in the device's cells. This is the common way, so it has few instructions.
pub(crate) unsafe extern "C" fn poll_and_count<const SLOT: usize>(
    cq: *mut IbvCq,
    most: c_int,
    to: *mut Wc,
) -> c_int {
    let slot = &SLOTS[SLOT];
    // SAFETY: this is the program's call, with its arguments, and its device is in the slot.
    let got = unsafe { slot.poll_cq()(cq, most, to) };
    if got == 1 {
        // SAFETY: the device has written one completion at `to`. The device is in the slot.
        unsafe { count_in_cell(slot, to) };
    } else if got > 1 {
        // SAFETY: the device has written `got` completions at `to`. The device is in the slot.
        unsafe { count_in_cells(slot, to, got.cast_unsigned() as usize) };
    }
    got
}

/// Counts one completion.
///
/// # Safety
///
/// `wc` points to a completion. A device is in the slot.
#[inline]
unsafe fn count_in_cell(slot: &Slot, wc: *const Wc) {
    /// The bits of the status and the opcode that are 0 for a send that succeeded.
    const MASK: u64 = u32::MAX as u64 | (RECEIVED as u64) << 32;
    // SAFETY: the caller keeps the contract of this function.
    let (wc, cell) = unsafe { (&*wc, slot.cell((*wc).qp_num)) };
    // The orderings of sends and receives differ so that the compiler does not merge the two
    // branches, which would take another instruction. `Release` suffices.
    if wc.status_and_opcode() & MASK == 0 {
        cell.sends.fetch_add(1, Ordering::Release);
    // The status is loaded again, so that the first condition needs no register for it.
    // SAFETY: the caller keeps the contract of this function.
    } else if unsafe { (&raw const wc.status).read_volatile() } == SUCCESS {
        cell.receives.fetch_add(1, Ordering::AcqRel);
    } else {
        cell.errors.fetch_add(1, Ordering::Release);
    }
}

/// Counts several completions.
///
/// # Safety
///
/// `wc` points to so many completions. A device is in the slot.
#[inline(never)]
unsafe fn count_in_cells(slot: &Slot, wc: *const Wc, got: usize) {
    for at in 0..got {
        // SAFETY: the caller keeps the contract of this function.
        unsafe { count_in_cell(slot, wc.add(at)) };
    }
}

/// Polls, and counts in the records of the queues, under the lock of the completion queue. So no
/// completion is uncounted when a poll finds the queue empty.
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
