//! The reuse bug on a machine that has nothing: io_uring for a device, userfaultfd for a monitor.

use std::process::ExitCode;

use clap::Parser;
use regcache::monitor::{NoMonitor, Userfaultfd, UserfaultfdError};
use regcache_repro::{NeverReports, Result, Uring, demonstrate};

/// Exit status where io_uring is not to be had.
const NOT_HERE: u8 = 77;

/// Has io_uring write a page to a pipe, unmaps it, maps a new one at the same address, writes that; counts
/// how often the old page's bytes arrive. Exits with 1 if they ever do with regcache, or not each time
/// with a naive cache, and with 77 where there is no io_uring.
#[derive(Parser)]
struct Options {
    /// How often with each cache
    #[arg(long, default_value_t = 1000)]
    rounds: u32,
}

fn run(rounds: u32) -> Result<bool> {
    match Userfaultfd::open() {
        Ok(monitor) => demonstrate(monitor, rounds),
        Err(error @ UserfaultfdError::GuardPages { .. }) => {
            println!("{error}\n");
            // SAFETY: this program makes no guard pages.
            demonstrate(unsafe { Userfaultfd::open_unprivileged() }?, rounds)
        }
        Err(error) => {
            println!("{error}");
            println!("So nothing is cached: slow, and never stale.\n");
            demonstrate(NoMonitor, rounds)
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(error) = Uring::new(NeverReports) {
        eprintln!("reuse-host: no io_uring here: {error}");
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
