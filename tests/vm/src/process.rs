//! Defines [`Child`], a child process that runs a closure and returns the result in its exit
//! status.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// The exit status of a child whose closure panicked.
const PANICKED: i32 = 101;

/// A forked child. Dropping the value kills the child, unless a method has already waited for the
/// child.
#[derive(Debug)]
pub struct Child(Option<Pid>);

impl Child {
    /// Forks a child that runs `body`. The child exits with 0 if `body` returns true, and with 1 if
    /// `body` returns false.
    ///
    /// The other threads of the test program do not exist in the child. So `body` must not wait for
    /// another thread. `body` should also allocate little.
    ///
    /// # Errors
    ///
    /// The error of `fork`.
    pub fn fork(body: impl FnOnce() -> bool) -> io::Result<Self> {
        // SAFETY: the caller promises that the child does not need the other threads. The child may
        // allocate, because glibc's malloc works in a forked child.
        match unsafe { fork() }? {
            ForkResult::Child => {
                let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
                let status = ran.map_or(PANICKED, |ok| i32::from(!ok));
                // SAFETY: `_exit` ends the child and runs none of the parent's exit handlers.
                unsafe { libc::_exit(status) }
            }
            ForkResult::Parent { child } => Ok(Self(Some(child))),
        }
    }

    /// Runs `body` in a child that shares the memory of this process, as after `vfork`. The child
    /// has a separate stack. Waits for the child, and returns the result of `body`.
    ///
    /// # Errors
    ///
    /// The error of `clone`.
    pub fn sharing_memory(body: fn(usize) -> bool, argument: usize) -> io::Result<bool> {
        struct Call(fn(usize) -> bool, usize);
        extern "C" fn run(call: *mut libc::c_void) -> i32 {
            // SAFETY: the pointer points to the `Call` below, and that `Call` outlives the child.
            let call = unsafe { &*call.cast::<Call>() };
            i32::from(!(call.0)(call.1))
        }
        let mut call = Call(body, argument);
        let mut stack = vec![0_u128; 64 << 10];
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = stack.as_mut_ptr_range().end.cast();
        // SAFETY: the stack is large enough. It outlives the child, because CLONE_VFORK suspends
        // this thread until the child has exited.
        let pid = unsafe { libc::clone(run, top, flags, (&raw mut call).cast()) };
        Self(Some(Pid::from_raw(Errno::result(pid)?))).succeeded()
    }

    /// Returns the process identifier of the child.
    ///
    /// # Panics
    ///
    /// The function panics only if the child was waited for. This cannot happen, because each
    /// method that waits for the child consumes the value.
    #[must_use]
    pub fn id(&self) -> Pid {
        self.0.expect("the child has been waited for")
    }

    /// Waits for the child. Returns true if the child exited with 0.
    ///
    /// # Errors
    ///
    /// The error of the call that waits.
    pub fn succeeded(mut self) -> io::Result<bool> {
        match self.0.take() {
            Some(pid) => Ok(waitpid(pid, None)? == WaitStatus::Exited(pid, 0)),
            None => Ok(false),
        }
    }
}

impl Child {
    /// Waits as [`succeeded`](Self::succeeded) does, but at most for `limit`. After that time, the
    /// function kills the child and returns false.
    ///
    /// # Errors
    ///
    /// The error of the call that waits.
    pub fn succeeded_within(self, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        while let Some(pid) = self.0 {
            // WNOWAIT leaves the child unreaped, so that `succeeded` can reap it.
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
