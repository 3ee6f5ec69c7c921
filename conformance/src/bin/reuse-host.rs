//! The reuse bug on a machine that has nothing: io_uring for a device, userfaultfd for a monitor.

use std::hint::black_box;
use std::process::ExitCode;
use std::ptr;
use std::time::Instant;

use clap::Parser;
use memmap2::MmapMut;
use regcache::monitor::{Monitor, Nothing, Userfaultfd};
use regcache::{Registrar, VaRange};
use regcache_conformance::remap::WAYS;
use regcache_conformance::{Device, NeverReports, Outcome, PAGE, Result, Uring, reuse};

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
    costs(&naive, &regcache)?;
    println!();
    println!(
        "reuse: device={} monitor={} naive_stale={naive_stale}/{rounds} regcache_stale={regcache_stale}/{rounds}",
        regcache.name(),
        regcache.monitor_name(),
    );
    Ok(naive_stale == rounds && regcache_stale == 0)
}

/// A table of what things cost, in the median.
fn costs<M: Monitor>(naive: &Uring<NeverReports>, regcache: &Uring<M>) -> Result<()> {
    const TIMES: usize = 2000;
    let memory = MmapMut::map_anon(16 * PAGE)?;
    let (start, len) = (memory.as_ptr(), memory.len());
    let range = VaRange::new(start, len)?;
    let registrar = naive.cache().registrar();
    let lines: [(&str, f64); 7] = [
        (
            "hit, nothing checked (naive)",
            nanoseconds(TIMES, 64, || {
                black_box(naive.cache().get(start, len, ())?);
                Ok(())
            })?,
        ),
        (
            "hit, regcache",
            nanoseconds(TIMES, 8, || {
                black_box(regcache.cache().get(start, len, ())?);
                Ok(())
            })?,
        ),
        (
            "registration of 64 KiB, and its end",
            nanoseconds(TIMES, 1, || {
                Ok(registrar.deregister(registrar.register(range, ())?)?)
            })?,
        ),
        (
            "miss of 64 KiB, and giving it up, naive",
            nanoseconds(TIMES, 1, || {
                naive.cache().flush()?;
                naive.cache().prefetch(start, len, ())?;
                Ok(())
            })?,
        ),
        (
            "miss of 64 KiB, and giving it up, regcache",
            nanoseconds(TIMES, 1, || {
                regcache.cache().flush()?;
                regcache.cache().prefetch(start, len, ())?;
                Ok(())
            })?,
        ),
        ("munmap of a page", unmap(TIMES, |_| Ok(()))?),
        (
            "munmap of a page that is cached",
            unmap(TIMES, |page| {
                Ok(regcache.cache().prefetch(page, PAGE, ())?)
            })?,
        ),
    ];
    println!("| what it costs (median of {TIMES}) | ns |");
    println!("|---|---|");
    for (what, ns) in lines {
        println!("| {what} | {ns:.0} |");
    }
    Ok(())
}

/// What one call takes, called `batch` times in a row.
fn nanoseconds(times: usize, batch: u32, mut what: impl FnMut() -> Result<()>) -> Result<f64> {
    what()?;
    let mut samples = Vec::with_capacity(times);
    for _ in 0..times {
        let started = Instant::now();
        for _ in 0..batch {
            what()?;
        }
        samples.push(started.elapsed().as_nanos() as f64 / f64::from(batch));
    }
    Ok(median(samples))
}

/// What `munmap` takes after `before`.
fn unmap(times: usize, before: impl Fn(*const u8) -> Result<()>) -> Result<f64> {
    let mut samples = Vec::with_capacity(times);
    for _ in 0..times {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: where the kernel likes; unmapped below.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, protection, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        before(page.cast())?;
        let started = Instant::now();
        // SAFETY: mapped above, and no reference is left.
        unsafe { libc::munmap(page, PAGE) };
        samples.push(started.elapsed().as_nanos() as f64);
    }
    Ok(median(samples))
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn run(rounds: u32) -> Result<bool> {
    match Userfaultfd::open() {
        Ok(monitor) => show(monitor, rounds),
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
