//! Shows the reuse bug on this machine's RDMA device: a naive cache has the bug, and regcache does
//! not.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use regcache::monitor::{Auto, Monitor, Ummunotify, auto};
use regcache_repro::{MUNMAP_THEN_MMAP, NeverReports, Outcome, Result};
use regcache_repro_rdma::{Direction, Rig};

/// Show the reuse bug with an RDMA device: a naive cache sends stale bytes, and regcache does not
///
/// Each round sends a page, unmaps the page, maps a new page at the same address, and sends the new
/// page. Exits with 0 if the device sends old pages in every round with a naive cache and in no
/// round with regcache. Exits with 1 otherwise.
#[derive(Parser)]
struct Options {
    /// Use this RDMA device instead of the first one
    #[arg(long)]
    device: Option<String>,
    /// Run this many rounds with each cache
    #[arg(long, default_value_t = 1000)]
    rounds: u32,
    /// Use this monitor
    #[arg(long, value_enum, default_value_t = Choice::Ummunotify)]
    monitor: Choice,
}

#[derive(Clone, Copy, ValueEnum)]
enum Choice {
    /// Use the driver ummunotify
    Ummunotify,
    /// Use the best monitor that this machine has
    Auto,
}

/// Runs one round. Returns 1 if the device sent an old page, and 0 otherwise.
fn round(rig: &mut Rig<impl Monitor>) -> Result<u32> {
    Ok(u32::from(
        rig.reuse(MUNMAP_THEN_MMAP, Direction::Send)? == Outcome::Stale,
    ))
}

fn run(options: &Options) -> Result<bool> {
    let (device, rounds) = (options.device.as_deref(), options.rounds);
    let mut naive = Rig::new(device, NeverReports)?;
    let mut naive_stale = 0;
    for _ in 0..rounds {
        naive.cache().flush()?;
        naive_stale += round(&mut naive)?;
    }
    let monitor = match options.monitor {
        Choice::Ummunotify => Auto::Ummunotify(Ummunotify::open()?),
        Choice::Auto => auto(),
    };
    let mut regcache = Rig::new(device, monitor)?;
    let mut regcache_stale = 0;
    for _ in 0..rounds {
        regcache_stale += round(&mut regcache)?;
    }
    println!("naive:    {}", naive.cache().stats());
    println!("regcache: {}", regcache.cache().stats());
    println!(
        "reuse: device={} monitor={} naive_stale={naive_stale}/{rounds} regcache_stale={regcache_stale}/{rounds}",
        regcache.device(),
        regcache.cache().monitor_name(),
    );
    Ok(naive_stale == rounds && regcache_stale == 0)
}

fn main() -> ExitCode {
    regcache_repro::end_if_output_fails();
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("reuse: {}", regcache::error::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
