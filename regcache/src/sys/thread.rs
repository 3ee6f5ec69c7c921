//! [`spawn`]: starts the threads that the library runs.

use std::io;
use std::thread::{Builder, JoinHandle};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// Starts a thread with all signals blocked, so that the kernel delivers signals to the
/// application's own threads.
///
/// # Errors
///
/// Returns the system's error if it refuses the thread.
pub fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let mut before = SigSet::empty();
    // A new thread inherits the signal mask of the thread that creates it. So the signals are
    // blocked before the thread starts.
    pthread_sigmask(
        SigmaskHow::SIG_BLOCK,
        Some(&SigSet::all()),
        Some(&mut before),
    )?;
    let thread = Builder::new().name(name.to_owned()).spawn(run);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    thread
}
