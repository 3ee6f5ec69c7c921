//! Keeps a cache at its limits for a long time, on the real driver and device. Threads map, look up
//! and unmap buffers of many sizes. The resident memory of the process must not grow, and the
//! pinned memory must stay within the cache's limit.
//!
//! The program needs the VM: `cargo xtask vm --timeout 4000 -- target/release/churn --minutes 60`

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use memmap2::MmapMut;
use regcache::Cache;
use regcache::monitor::Ummunotify;
use regcache_tests_vm::{PAGE, Random, pinned, resident};
use regcache_verbs::{Access, Context, MrRegistrar, Pd};

const MAX_ENTRIES: u32 = 256;
const MAX_BYTES: usize = 32 << 20;

/// The number of buffers of each thread.
const BUFFERS: usize = 300;
/// The largest number of pages of a buffer.
const PAGES: usize = 128;

/// Keep a cache busy at its limits, and check that the memory of the process does not grow
#[derive(Parser)]
struct Cli {
    /// Run for this many minutes
    #[arg(long, default_value_t = 1)]
    minutes: u64,
    /// Run this many threads
    #[arg(long, default_value_t = 2)]
    threads: u64,
}

fn buffer(random: &mut Random) -> MmapMut {
    MmapMut::map_anon((1 + random.below(PAGES)) * PAGE).expect("a buffer cannot be mapped")
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cli = Cli::parse();
    let pd = Pd::alloc(&Context::open_first()?)?;
    let cache = Cache::builder(MrRegistrar::new(&pd))
        .monitor(Ummunotify::open()?)
        .max_entries(MAX_ENTRIES)
        .max_bytes(MAX_BYTES)
        .build()?;
    let (stop, lookups) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut held = Vec::new();
    thread::scope(|scope| {
        for seed in 1..=cli.threads {
            let (cache, stop, lookups) = (&cache, &stop, &lookups);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                let mut buffers: Vec<_> = (0..BUFFERS).map(|_| buffer(&mut random)).collect();
                while !stop.load(Ordering::Relaxed) {
                    let i = random.below(BUFFERS);
                    match random.below(4) {
                        0 => buffers[i] = buffer(&mut random),
                        _ => {
                            let buffer = &buffers[i];
                            let guard =
                                cache.get(buffer.as_ptr(), buffer.len(), Access::LOCAL_WRITE);
                            drop(guard.expect("a buffer cannot be registered"));
                        }
                    }
                    lookups.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        println!("minute lookups resident_kB pinned_kB entries bytes misses");
        let started = Instant::now();
        for minute in 1..=cli.minutes {
            let due = Duration::from_secs(60 * minute);
            thread::sleep(due.saturating_sub(started.elapsed()));
            let stats = cache.stats();
            let (resident, pinned) = (resident(), pinned());
            println!(
                "{minute} {} {resident} {pinned} {} {} {}",
                lookups.load(Ordering::Relaxed),
                stats.entries,
                stats.bytes,
                stats.misses
            );
            held.push((resident, pinned));
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{}", cache.stats());
    let mut left = cache.close()?;
    if left.in_use() > 0 {
        return Err("registrations are still in use".into());
    }
    drop((left, pd));
    verdict(&held)
}

/// Returns an error in two cases. First, the resident memory was larger in the last quarter of the
/// run than in the first. Second, more memory was pinned than the limit allows.
fn verdict(held: &[(u64, u64)]) -> Result<(), Box<dyn std::error::Error>> {
    let quarter = held.len().div_ceil(4);
    let most = |part: &[(u64, u64)]| part.iter().map(|it| it.0).max().unwrap_or(0);
    let (first, last) = (most(&held[..quarter]), most(&held[held.len() - quarter..]));
    let pinned_most = held.iter().map(|it| it.1).max().unwrap_or(0);
    println!(
        "resident: at most {first} kB in the first quarter, {last} kB in the last; pinned: at most {pinned_most} kB"
    );
    // The resident memory varies by some per cent, because the sizes of the buffers are random.
    if last > first + first / 10 {
        return Err("the resident memory grows".into());
    }
    if pinned_most > (MAX_BYTES + 2 * PAGES * PAGE) as u64 / 1024 {
        return Err("more is pinned than the limit allows".into());
    }
    Ok(())
}
