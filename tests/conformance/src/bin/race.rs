//! Counts the rounds of [`thread_reuse`] in which a monitor reports the unmap too late.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use regcache::monitor::{Monitor, Ummunotify, Userfaultfd};
use regcache_conformance::thread_reuse;
use regcache_repro::{Device, Result, Uring};

/// Race two threads for an address, and count how often the device reads the old page
///
/// Exits with 1 if a sound monitor is late in any round, or if an unsound monitor is late in no
/// round.
#[derive(Parser)]
struct Options {
    /// Use this monitor
    #[arg(long, value_enum, default_value_t = Choice::Userfaultfd)]
    monitor: Choice,
    /// Run this many rounds
    #[arg(long, default_value_t = 100_000)]
    rounds: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// Use userfaultfd with strict checks
    Userfaultfd,
    /// Use only the events of userfaultfd, which is unsound
    UserfaultfdRacy,
    /// Use the driver ummunotify
    Ummunotify,
}

fn play<M: Monitor>(monitor: M, rounds: u32) -> Result<u32> {
    let device = Uring::new(monitor)?;
    let played = Cell::new(0_u32);
    let (stale, played) = thread_reuse(&device, rounds, |stale| {
        played.set(played.get() + 1);
        if played.get().is_multiple_of(10_000) {
            eprintln!("{} rounds, {stale} stale", played.get());
        }
        ControlFlow::Continue(())
    })?;
    println!("{}", device.cache().stats());
    println!(
        "race: device={} monitor={} stale={stale}/{played}",
        device.name(),
        device.monitor_name()
    );
    Ok(stale)
}

fn run(options: &Options) -> Result<bool> {
    let rounds = options.rounds;
    Ok(match options.monitor {
        Choice::Userfaultfd => play(Userfaultfd::open()?, rounds)? == 0,
        // SAFETY: this monitor is unsound, so a registration can be stale. That does no harm,
        // because the device only reads, and a stale registration reaches only pages that are
        // mapped nowhere.
        Choice::UserfaultfdRacy => play(unsafe { Userfaultfd::open_racy() }?, rounds)? > 0,
        Choice::Ummunotify => play(Ummunotify::open()?, rounds)? == 0,
    })
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("race: {error}");
            ExitCode::FAILURE
        }
    }
}
