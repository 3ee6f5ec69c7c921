//! [`Child`]: a child process that runs a closure and reports by its exit status.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// The exit status of a child whose closure panicked.
const PANICKED: i32 = 101;

/// A forked child. Dropping it kills the child, unless it was waited for.
#[derive(Debug)]
pub struct Child(Option<Pid>);

impl Child {
    /// Forks. The child runs `body`, and exits with 0 if it returns true and with 1 if not.
    ///
    /// The test program has other threads, which the child lacks. `body` must not wait for them,
    /// and must allocate little.
    ///
    /// # Errors
    ///
    /// If it cannot fork.
    pub fn fork(body: impl FnOnce() -> bool) -> io::Result<Self> {
        // SAFETY: the caller promises that the child does not need the other threads. glibc's
        // malloc works in it.
        match unsafe { fork() }? {
            ForkResult::Child => {
                let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
                let status = ran.map_or(PANICKED, |ok| i32::from(!ok));
                // SAFETY: ends the child without running exit handlers of the parent.
                unsafe { libc::_exit(status) }
            }
            ForkResult::Parent { child } => Ok(Self(Some(child))),
        }
    }

    /// Runs `body` in a child that shares this process's memory, as after vfork, on a stack of its
    /// own. Waits for the child, and returns the result of `body`.
    ///
    /// # Errors
    ///
    /// If the child cannot be made.
    pub fn sharing_memory(body: fn(usize) -> bool, argument: usize) -> io::Result<bool> {
        struct Call(fn(usize) -> bool, usize);
        extern "C" fn run(call: *mut libc::c_void) -> i32 {
            // SAFETY: points to the `Call` below, which outlives the child.
            let call = unsafe { &*call.cast::<Call>() };
            i32::from(!(call.0)(call.1))
        }
        let mut call = Call(body, argument);
        let mut stack = vec![0_u128; 64 << 10];
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = stack.as_mut_ptr_range().end.cast();
        // SAFETY: the stack is large enough and outlives the child, since CLONE_VFORK suspends this
        // thread until the child has exited.
        let pid = unsafe { libc::clone(run, top, flags, (&raw mut call).cast()) };
        Self(Some(Pid::from_raw(Errno::result(pid)?))).succeeded()
    }

    /// Returns its process id.
    ///
    /// # Panics
    ///
    /// Never: a child that was waited for is consumed.
    #[must_use]
    pub fn id(&self) -> Pid {
        self.0.expect("not waited for")
    }

    /// Waits for the child. Returns true if it exited with 0.
    ///
    /// # Errors
    ///
    /// If it cannot be waited for.
    pub fn succeeded(mut self) -> io::Result<bool> {
        match self.0.take() {
            Some(pid) => Ok(waitpid(pid, None)? == WaitStatus::Exited(pid, 0)),
            None => Ok(false),
        }
    }
}

impl Child {
    /// Waits like [`succeeded`](Self::succeeded), but kills the child and returns false after
    /// `limit`.
    ///
    /// # Errors
    ///
    /// If it cannot be waited for.
    pub fn succeeded_within(self, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        while let Some(pid) = self.0 {
            // WNOWAIT leaves the child for `succeeded` to reap.
            let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            if waitid(Id::Pid(pid), look)? != WaitStatus::StillAlive {
                return self.succeeded();
            }
            if Instant::now() > deadline {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(false)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.0.take() {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}
