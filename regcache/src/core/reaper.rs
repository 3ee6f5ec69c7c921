//! [`Reaper`]: the background thread that deregisters freed memory if no lookup does so.
//!
//! The thread sleeps until the monitor has something to report. Then the thread drains the monitor
//! as a lookup would, and deregisters the invalidated entries that no guard holds. The thread does
//! not slow down hits. Lookups do not depend on the thread, because they drain the monitor
//! themselves.
//!
//! Without a pause, the thread would never sleep while memory changes all the time. So the thread
//! pauses after each round, and makes at most a thousand rounds a second.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::thread::JoinHandleExt;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::core::Core;
use crate::monitor::Monitor;
use crate::registrar::Registrar;
use crate::sys::sync::Arc;
use crate::sys::thread::spawn;

/// The pause after a successful round.
const PAUSE: Duration = Duration::from_millis(1);

/// The pause after a round in which the monitor failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);

/// The handle of the reaper's thread. Dropping the handle stops the thread.
#[derive(Debug)]
pub(crate) struct Reaper {
    stop: std::sync::Arc<EventFd>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Reaper {
    /// Starts the thread and returns its handle, if the monitor has a file descriptor to wait on.
    pub(crate) fn start<R: Registrar, M: Monitor>(
        core: &Arc<Core<R, M>>,
    ) -> io::Result<Option<Self>> {
        if core.monitor.descriptor().is_none() {
            return Ok(None);
        }
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let stop = std::sync::Arc::new(stop);
        let (core, stopped) = (Arc::clone(core), std::sync::Arc::clone(&stop));
        let run = move || run(&core, &stopped);
        let thread = spawn("regcache-reaper", run)?;
        Ok(Some(Self {
            stop,
            thread: Some(thread),
        }))
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // An eventfd refuses a write only if its counter would overflow. This eventfd is written
        // once, so the write cannot fail.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            && !is_this(&thread)
        {
            // The thread itself catches and logs panics of the registrar. So `join` returns no
            // error that matters.
            let _ = thread.join();
        }
    }
}

/// Returns true if `thread` is the calling thread. In a thread that Rust did not start,
/// `thread::current` would leak a record. So this function compares the ids of pthreads.
fn is_this<T>(thread: &thread::JoinHandle<T>) -> bool {
    // SAFETY: the call has no preconditions.
    let this = unsafe { libc::pthread_self() };
    // The type of the id is a pointer in musl, but a number in glibc and in std. So both ids are
    // cast to a number.
    thread.as_pthread_t() as usize == this as usize
}

fn run<R: Registrar, M: Monitor>(core: &Core<R, M>, stop: &EventFd) {
    let Some(descriptor) = core.monitor.descriptor() else {
        return;
    };
    loop {
        let watched = PollFd::new(descriptor, PollFlags::POLLIN);
        match poll(&mut [watched, stop_fd(stop)], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for the monitor: freed memory stays pinned");
                return;
            }
        }
        let mut pause = PAUSE;
        if let Err(error) = core.reap() {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the reaper could not drain the monitor, and will try again"
            );
            pause = PAUSE_AFTER_FAILURE;
        }
        let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::ZERO);
        if !matches!(
            poll(&mut [stop_fd(stop)], timeout),
            Ok(0) | Err(Errno::EINTR)
        ) {
            return;
        }
    }
}

fn stop_fd(stop: &EventFd) -> PollFd<'_> {
    PollFd::new(stop.as_fd(), PollFlags::POLLIN)
}
