//! The functions of the monitor that libfabric calls.
//!
//! libfabric calls `subscribe`, `unsubscribe` and `valid` under one lock of the process. None of
//! them calls libfabric, and none waits for a thread that calls libfabric.

use std::cell::Cell;
use std::ffi::{c_int, c_void};

use regcache::VaRange;

use crate::libfabric::{EAGAIN, ENOMEM, ENOSYS, MemMonitor, MonitorOps};
use crate::process::Process;
use crate::watches::{Note, Refused};

pub(crate) static OPS: MonitorOps = MonitorOps {
    size: size_of::<MonitorOps>(),
    start,
    stop,
    subscribe,
    unsubscribe,
    valid,
};

thread_local! {
    /// The calling thread's note; `watches.rs` describes it. No destructor makes it inaccessible.
    static NOTE: Cell<Note> = const { Cell::new(Note::NONE) };
}

/// Calls `f` with the note of the calling thread.
pub(crate) fn with_note<T>(f: impl FnOnce(&mut Note) -> T) -> T {
    NOTE.with(|cell| {
        let mut note = cell.get();
        let result = f(&mut note);
        cell.set(note);
        result
    })
}

fn range(address: *const c_void, len: usize) -> Option<VaRange> {
    VaRange::new(address.cast(), len).ok()
}

unsafe extern "C" fn start(_: *mut MemMonitor) -> c_int {
    Process::get().map_or(-ENOSYS, Process::start)
}

unsafe extern "C" fn stop(_: *mut MemMonitor) {
    if let Some(process) = Process::get() {
        process.stop();
    }
}

unsafe extern "C" fn subscribe(_: *mut MemMonitor, address: *const c_void, len: usize) -> c_int {
    let (Some(process), Some(range)) = (Process::get(), range(address, len)) else {
        return -ENOSYS;
    };
    let decided = with_note(|note| process.watches.subscribe(range, note));
    process.wake_if_stale();
    match decided {
        Ok(()) => 0,
        Err(Refused::Unseen | Refused::Stale | Refused::Unreadable(_)) => -EAGAIN,
        Err(Refused::Unwatchable(_)) => -ENOMEM,
        Err(Refused::Forked) => -ENOSYS,
    }
}

unsafe extern "C" fn unsubscribe(_: *mut MemMonitor, address: *const c_void, len: usize) {
    if let (Some(process), Some(range)) = (Process::get(), range(address, len)) {
        process.watches.unsubscribe(range);
    }
}

unsafe extern "C" fn valid(_: *mut MemMonitor, address: *const c_void, len: usize) -> bool {
    let Some(process) = Process::get() else {
        return false;
    };
    if process.watches.is_current() {
        return true;
    }
    let Some(range) = range(address, len) else {
        return false;
    };
    let valid = with_note(|note| process.watches.valid(range, note));
    process.wake_if_stale();
    valid
}
