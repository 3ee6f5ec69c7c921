//! Writes the table of registrations at a signal.
//!
//! A handler of a signal may interrupt a thread that holds a lock, so the handler only posts a
//! semaphore. A thread of the shim waits for the semaphore and writes the table.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::mem::{self, MaybeUninit};
use std::ptr;

use regcache::internal::spawn;

use crate::notice::notice;
use crate::process::Process;
use crate::summary::write_snapshot;

struct Semaphore(UnsafeCell<MaybeUninit<libc::sem_t>>);

// SAFETY: any thread, and any handler of a signal, may post and wait.
unsafe impl Sync for Semaphore {}

static SIGNALLED: Semaphore = Semaphore(UnsafeCell::new(MaybeUninit::uninit()));

impl Semaphore {
    fn at(&self) -> *mut libc::sem_t {
        self.0.get().cast()
    }
}

/// The handler of the signal.
extern "C" fn post(_: c_int) {
    // SAFETY: the location belongs to this thread. The semaphore was initialised before the handler
    // was installed. `sem_post` is safe in a handler.
    unsafe {
        let errno = *libc::__errno_location();
        libc::sem_post(SIGNALLED.at());
        *libc::__errno_location() = errno;
    }
}

/// Installs the handler of the signal, and starts the thread. A process calls this once.
pub(crate) fn write_snapshot_at_each(signal: c_int, process: &'static Process) {
    // SAFETY: no other thread uses the semaphore yet: this process has not started its thread, and
    // a handler that was inherited from the parent only posts.
    if unsafe { libc::sem_init(SIGNALLED.at(), 0, 0) } != 0 {
        return;
    }
    let wait = move || {
        loop {
            // SAFETY: the semaphore was initialised above.
            if unsafe { libc::sem_wait(SIGNALLED.at()) } == 0 {
                write_snapshot(process);
            }
        }
    };
    if let Err(error) = spawn("regcache-table", wait) {
        notice(format_args!("no table is written at a signal: {error}"));
        return;
    }
    if !install(signal) {
        notice(format_args!(
            "no table is written at signal {signal}: the program has a handler of its own"
        ));
    }
}

/// Installs the handler, unless the program has one. Returns true if ours is installed.
fn install(signal: c_int) -> bool {
    let ours = post as extern "C" fn(c_int) as libc::sighandler_t;
    // SAFETY: zeros are a valid `sigaction`. The calls write and read the two structures, which
    // live until the calls return. The handler only calls functions that are safe in a handler.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        if libc::sigaction(signal, ptr::null(), &raw mut action) != 0 {
            return false;
        }
        if action.sa_sigaction == ours {
            return true;
        }
        if action.sa_sigaction != libc::SIG_DFL {
            return false;
        }
        action.sa_sigaction = ours;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &raw const action, ptr::null_mut()) == 0
    }
}
