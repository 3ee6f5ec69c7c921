//! [`Worker`]: one background thread that works for several owners.
//!
//! Each owner has a file descriptor that polls readable when there is something to do. The thread
//! sleeps until a descriptor is readable or an owner's [`Wake`] was called. Then the thread does
//! the work in pieces, one piece for each owner that has work left. So a large piece of work of one
//! owner does not delay the others.
//!
//! Without a pause, the thread would never sleep if there is work all the time. So the thread
//! pauses after each round that leaves no work, and makes at most a thousand such rounds a second.
//!
//! The thread starts with the first owner, and ends with the last one.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::descriptor::{Private, Signal};
use super::thread::spawn;

/// The pause after a round that leaves no work.
const PAUSE: Duration = Duration::from_millis(1);

/// The pause after a round in which some work failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);

/// The work of one owner.
pub trait Work: Send + Sync {
    /// Prepares for the work that the descriptor has announced. Returns false if it fails.
    fn begin(&self) -> bool;

    /// Does a piece of the work. Returns true if there is more.
    fn continue_work(&self) -> bool;
}

/// The thread and its owners; see the head of this file.
#[derive(Debug, Default)]
pub struct Worker {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    jobs: Vec<Arc<Job>>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    /// The signal to the thread. It is raised when an owner has left work, and when the list of
    /// owners has changed. It ends when the thread has to stop.
    signal: Arc<Signal>,
    thread: thread::JoinHandle<()>,
}

/// The flag that the owner has left work for the thread, and the signal to the thread.
#[derive(Debug)]
struct Notice {
    woken: AtomicBool,
    signal: Arc<Signal>,
}

struct Job {
    /// A duplicate of the descriptor of the work, because the owner may close its own descriptor
    /// while the thread waits on this one.
    descriptor: Private<OwnedFd>,
    notice: Arc<Notice>,
    /// The work, or `None` if the owner has left. The thread holds the lock while it works.
    work: Mutex<Option<Box<dyn Work>>>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").finish_non_exhaustive()
    }
}

/// The handle of an owner. Dropping the handle waits until the thread no longer works for the
/// owner.
#[derive(Debug)]
pub struct Owner {
    worker: Arc<Worker>,
    job: Arc<Job>,
}

/// Tells the thread that an owner has work.
#[derive(Debug)]
pub struct Wake(Arc<Notice>);

impl Wake {
    /// Makes the thread do a round of the owner's work.
    pub fn wake(&self) {
        // If the flag is set already, the thread was signalled and has not looked at it yet.
        if !self.0.woken.swap(true, Ordering::AcqRel) {
            self.0.signal.raise();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    /// Adds an owner, and starts the thread if this is the first one. The descriptor polls readable
    /// when there is something to do.
    ///
    /// # Errors
    ///
    /// Returns an error if the descriptor cannot be duplicated, or the thread cannot be started.
    pub fn add(
        self: &Arc<Self>,
        descriptor: BorrowedFd<'_>,
        work: Box<dyn Work>,
    ) -> io::Result<(Owner, Wake)> {
        let descriptor = Private::new(descriptor.try_clone_to_owned()?)?;
        let mut state = lock(&self.state);
        let signal = match &state.running {
            Some(running) => Arc::clone(&running.signal),
            None => {
                let signal = Arc::new(Signal::new()?);
                // The thread waits for the lock before it looks at its owners.
                let (worker, its) = (Arc::clone(self), Arc::clone(&signal));
                let thread = spawn("regcache-reaper", move || worker.run(&its))?;
                state.running = Some(Running {
                    signal: Arc::clone(&signal),
                    thread,
                });
                signal
            }
        };
        let notice = Arc::new(Notice {
            woken: AtomicBool::new(false),
            signal,
        });
        let job = Arc::new(Job {
            descriptor,
            notice: Arc::clone(&notice),
            work: Mutex::new(Some(work)),
        });
        state.jobs.push(Arc::clone(&job));
        drop(state);
        notice.signal.raise();
        let owner = Owner {
            worker: Arc::clone(self),
            job,
        };
        Ok((owner, Wake(notice)))
    }

    fn run(&self, signal: &Signal) {
        let mut jobs = lock(&self.state).jobs.clone();
        loop {
            // Other code may have closed descriptors. The thread must not wait for the files of the
            // program that have these numbers now.
            jobs.retain(|job| job.descriptor.get().is_ok());
            if !signal.is_open() {
                tracing::error!("the reaper's descriptors were closed: freed memory stays pinned");
                return;
            }
            let stops = PollFd::new(signal.as_fd(), PollFlags::POLLIN);
            let mut fds = vec![stops];
            fds.extend(jobs.iter().map(|job| readable(job.descriptor.unchecked())));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot wait for the monitor: freed memory stays pinned");
                    return;
                }
            }
            if has_stopped(&fds[0]) {
                return;
            }
            let is_ready = fds[1..].iter().map(|fd| fd.any() != Some(false));
            let ready: Vec<_> = jobs.iter().cloned().zip(is_ready).collect();
            let _ = signal.lower();
            // An owner may have come and left work since the list was made. The signal is lowered
            // already, so the new list must be used.
            jobs = lock(&self.state).jobs.clone();
            let failed = round(&jobs, &ready);
            let pause = if failed { PAUSE_AFTER_FAILURE } else { PAUSE };
            let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::ZERO);
            let mut stop = [PollFd::new(signal.as_fd(), PollFlags::empty())];
            let polled = poll(&mut stop, timeout);
            if !matches!(polled, Ok(_) | Err(Errno::EINTR)) || has_stopped(&stop[0]) {
                return;
            }
        }
    }
}

/// Returns true if the signal has ended, or its sockets were closed.
fn has_stopped(signal: &PollFd<'_>) -> bool {
    let ended = PollFlags::POLLHUP | PollFlags::POLLNVAL;
    signal.revents().is_none_or(|it| it.intersects(ended))
}

/// Works for the owners that are ready or were woken, until no work is left. Returns true if some
/// work failed.
fn round(jobs: &[Arc<Job>], ready: &[(Arc<Job>, bool)]) -> bool {
    let mut failed = false;
    let mut working = Vec::new();
    for job in jobs {
        let woken = job.notice.woken.swap(false, Ordering::AcqRel);
        let is_ready = |(other, ready): &(_, bool)| *ready && Arc::ptr_eq(other, job);
        let ready = ready.iter().any(is_ready);
        if ready || woken {
            failed |= job.unless_left(|work| ready && !work.begin());
            working.push(job);
        }
    }
    while !working.is_empty() {
        working.retain(|job| job.unless_left(|work| work.continue_work()));
    }
    failed
}

impl Job {
    /// Calls `run`. Returns false if the owner has left.
    fn unless_left(&self, run: impl FnOnce(&dyn Work) -> bool) -> bool {
        lock(&self.work).as_deref().is_some_and(run)
    }
}

fn readable(descriptor: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(descriptor, PollFlags::POLLIN)
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut state = lock(&self.worker.state);
        state.jobs.retain(|job| !Arc::ptr_eq(job, &self.job));
        let is_worker = state.running.as_ref().is_some_and(|it| is_this(&it.thread));
        let last = match state.jobs.is_empty() {
            true => state.running.take(),
            false => None,
        };
        drop(state);
        if let Some(running) = last {
            // If the program has closed the thread's descriptors, the thread may never wake. It has
            // no owner any more, so it does no harm.
            if running.signal.end() && !is_worker {
                // The thread itself catches and logs panics of the registrar. So `join` returns no
                // error that matters.
                let _ = running.thread.join();
            }
        } else {
            // The thread must not wait on the descriptor of an owner that has left.
            self.job.notice.signal.raise();
        }
        // If the thread itself drops the handle, it holds the lock of this job, and drops the job
        // after this round.
        if !is_worker {
            let work = lock(&self.job.work).take();
            drop(work);
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
