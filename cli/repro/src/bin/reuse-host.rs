//! Shows the reuse bug on a machine that has neither the driver nor an adapter. The registrations
//! are io_uring's fixed buffers, and regcache's monitor is userfaultfd.

use std::process::ExitCode;

use clap::Parser;
use regcache::monitor::{NoMonitor, Userfaultfd, UserfaultfdError};
use regcache_repro::{NeverReports, Result, Uring, demonstrate};

/// The exit status on a machine without io_uring.
const NOT_HERE: u8 = 77;

/// Show the reuse bug with io_uring: a naive cache writes stale bytes, and regcache does not
///
/// Exits with 0 if stale bytes arrive in every round with a naive cache and in no round with
/// regcache. Exits with 77 if this machine has no io_uring, and with 1 otherwise.
#[derive(Parser)]
struct Options {
    /// Run this many rounds with each cache
    #[arg(long, default_value_t = 1000)]
    rounds: u32,
}

fn run(rounds: u32) -> Result<bool> {
    match Userfaultfd::open() {
        Ok(monitor) => demonstrate(monitor, rounds),
        Err(error @ UserfaultfdError::GuardPages { .. }) => {
            println!("{error}\n");
            // SAFETY: a program that calls `open_unprivileged` must put no guard pages on
            // registered memory. This program makes no guard pages.
            demonstrate(unsafe { Userfaultfd::open_unprivileged() }?, rounds)
        }
        Err(error) => {
            println!("{error}");
            println!(
                "So regcache retains no registration on this machine. Lookups are slow, but never stale.\n"
            );
            demonstrate(NoMonitor, rounds)
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(error) = Uring::new(NeverReports) {
        eprintln!("reuse-host: this machine has no io_uring: {error}");
        return ExitCode::from(NOT_HERE);
    }
    match run(options.rounds) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("reuse-host: {error}");
            ExitCode::FAILURE
        }
    }
}
