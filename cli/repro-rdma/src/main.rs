//! The reuse bug on this machine's RDMA device, with a naive cache and with regcache.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use regcache::monitor::{Auto, Monitor, Ummunotify, auto};
use regcache_repro::{MUNMAP_THEN_MMAP, NeverReports, Outcome, Result};
use regcache_repro_rdma::{Direction, Rig};

/// Sends a page, unmaps it, maps a new one at the same address, sends it again; counts how often the
/// device sends the old page. Exits with 1 if regcache ever does, or a naive cache not each time.
#[derive(Parser)]
struct Options {
    /// RDMA device; the first one if not given
    #[arg(long)]
    device: Option<String>,
    /// How often with each cache
    #[arg(long, default_value_t = 1000)]
    rounds: u32,
    /// What regcache is on
    #[arg(long, value_enum, default_value_t = Choice::Ummunotify)]
    monitor: Choice,
}

#[derive(Clone, Copy, ValueEnum)]
enum Choice {
    /// The driver, or it fails
    Ummunotify,
    /// The best that there is
    Auto,
}

/// One round; 1 if it was stale.
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
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("reuse: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}
