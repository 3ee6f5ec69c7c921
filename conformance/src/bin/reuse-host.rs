//! The reuse bug on a machine that has nothing: io_uring for a device, userfaultfd for a monitor.

use std::process::ExitCode;

use clap::Parser;
use regcache::monitor::{Monitor, Nothing, Userfaultfd, UserfaultfdError};
use regcache_conformance::remap::WAYS;
use regcache_conformance::{Device, NeverReports, Outcome, Result, Uring, costs, reuse};

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

fn count(device: &impl Device, rounds: u32) -> Result<u32> {
    let mut stale = 0;
    for _ in 0..rounds {
        stale += u32::from(reuse(device, &WAYS[0])? == Outcome::Stale);
    }
    Ok(stale)
}

/// Returns whether it went as it should.
fn show<M: Monitor>(monitor: M, rounds: u32) -> Result<bool> {
    let naive = Uring::new(NeverReports)?;
    let mut naive_stale = 0;
    for _ in 0..rounds {
        naive.flush()?;
        naive_stale += count(&naive, 1)?;
    }
    println!("the bug: a page is written to a pipe by a registered buffer, unmapped, another one");
    println!("mapped at the same address, and that written");
    println!("  with a naive cache the old page's bytes arrived {naive_stale} times of {rounds}");
    let regcache = Uring::new(monitor)?;
    let regcache_stale = count(&regcache, rounds)?;
    println!(
        "  with regcache {regcache_stale} times: {}",
        regcache.cache().stats()
    );
    println!();
    costs(&[("naive", &naive), ("regcache", &regcache)], 2000)?;
    println!();
    println!(
        "reuse: device={} monitor={} naive_stale={naive_stale}/{rounds} regcache_stale={regcache_stale}/{rounds}",
        regcache.name(),
        regcache.monitor_name(),
    );
    Ok(naive_stale == rounds && regcache_stale == 0)
}

fn run(rounds: u32) -> Result<bool> {
    match Userfaultfd::open() {
        Ok(monitor) => show(monitor, rounds),
        Err(error @ UserfaultfdError::GuardPages { .. }) => {
            println!("{error}\n");
            // SAFETY: this program makes no guard pages.
            show(unsafe { Userfaultfd::open_unprivileged() }?, rounds)
        }
        Err(error) => {
            println!("{error}");
            println!("So nothing is cached: slow, and never stale.\n");
            show(Nothing, rounds)
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
