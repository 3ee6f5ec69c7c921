//! Threads that allocate, free, fork and look up, with malloc's own memory cached.
//!
//! With userfaultfd, an unmapping thread sleeps until its event has been read, in `free`, with malloc's
//! lock held, or in the cache, with the cache's. If the one that reads ever waited for such a lock,
//! all would stand still.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use regcache::monitor::{Monitor, Userfaultfd};

use regcache_repro::{Device, Result, Uring};
use regcache_test_support::Random;

/// What was done.
#[derive(Debug, Default)]
pub struct Progress {
    /// Lookups of memory that malloc gave.
    pub lookups: AtomicU64,
    /// Of those, the ones whose bytes were checked.
    pub checked: AtomicU64,
    /// Of those, the ones that were stale.
    pub stale: AtomicU64,
    /// Children.
    pub forks: AtomicU64,
}

/// Runs `threads` threads for so long.
///
/// # Errors
///
/// What the kernel or the device says; and if nothing moves for `patience`, but then the threads that
/// stand still are left behind, and the process had better end.
pub fn allocate_free_fork_and_look_up<M: Monitor>(
    device: &'static Uring<M>,
    threads: u64,
    time: Duration,
    patience: Duration,
) -> Result<&'static Progress> {
    let progress: &'static Progress = Box::leak(Box::default());
    let stop: &'static AtomicBool = Box::leak(Box::default());
    // The pipe is one thread's at a time.
    let pipe: &'static Mutex<()> = Box::leak(Box::default());
    let running: Vec<_> = (0..threads)
        .map(|seed| thread::spawn(move || run(device, seed, progress, stop, pipe)))
        .collect();
    let until = Instant::now() + time;
    let (mut seen, mut moved) = (0, Instant::now());
    while Instant::now() < until && !running.iter().any(thread::JoinHandle::is_finished) {
        thread::sleep(Duration::from_millis(50));
        let now = progress.lookups.load(Ordering::Relaxed);
        if now != seen {
            (seen, moved) = (now, Instant::now());
        } else if moved.elapsed() > patience {
            return Err(format!("nothing has moved for {patience:?}: {progress:?}").into());
        }
    }
    stop.store(true, Ordering::Relaxed);
    let ending = Instant::now();
    while !running.iter().all(thread::JoinHandle::is_finished) {
        if ending.elapsed() > patience {
            return Err(format!("a thread does not end: {progress:?}").into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    for thread in running {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    Ok(progress)
}

fn run<M: Monitor>(
    device: &Uring<M>,
    seed: u64,
    progress: &Progress,
    stop: &AtomicBool,
    pipe: &Mutex<()>,
) -> Result<()> {
    let mut random = Random::new(seed);
    let mut next = move |below| random.below(below);
    let mut kept: Vec<Vec<u8>> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // From malloc's bins, its heap, and by mmap.
        let len = [64, 4096, 60_000, 300_000][next(4)] + next(5000);
        let mut bytes = vec![0; len];
        bytes.fill(next(256) as u8);
        if next(16) == 0 {
            let pipe = pipe.lock().unwrap_or_else(PoisonError::into_inner);
            let (arrived, _) = device.read_out(&bytes)?;
            drop(pipe);
            progress.checked.fetch_add(1, Ordering::Relaxed);
            let stale = arrived != bytes;
            progress
                .stale
                .fetch_add(u64::from(stale), Ordering::Relaxed);
        } else {
            device.cache().prefetch(bytes.as_ptr(), bytes.len(), ())?;
        }
        progress.lookups.fetch_add(1, Ordering::Relaxed);
        if next(500) == 0 {
            // SAFETY: the child only ends.
            match unsafe { fork() }? {
                // SAFETY: without running anything of the parent's.
                ForkResult::Child => unsafe { libc::_exit(0) },
                ForkResult::Parent { child } => {
                    waitpid(child, None)?;
                    progress.forks.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        if next(4) == 0 {
            kept.push(bytes);
        }
        if kept.len() > 32 {
            let from = next(16);
            kept.drain(from..);
        }
    }
    Ok(())
}

/// Allocates, frees, forks and looks up in several threads, with malloc's own memory cached by userfaultfd. Exits with
/// 1 if anything stands still, or a lookup was stale.
#[derive(Parser)]
struct Options {
    /// How long
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// In how many threads
    #[arg(long, default_value_t = 4)]
    threads: u64,
}

/// How long nothing may move.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a program does whose global allocator is `allocator`.
pub fn stress_program(allocator: &str) -> ExitCode {
    match stress(&Options::parse(), allocator) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("stress: {error}");
            // Returning would wait for those that stand still.
            std::process::abort()
        }
    }
}

fn stress(options: &Options, allocator: &str) -> Result<bool> {
    let device: &'static _ = Box::leak(Box::new(Uring::new(Userfaultfd::open()?)?));
    let time = Duration::from_secs(options.seconds);
    let done = allocate_free_fork_and_look_up(device, options.threads, time, PATIENCE)?;
    println!("{}", device.cache().stats());
    let count = |it: &AtomicU64| it.load(Ordering::Relaxed);
    let stale = count(&done.stale);
    println!(
        "stress: allocator={allocator:?} monitor={} seconds={} threads={} lookups={} forks={} stale={stale}/{}",
        device.monitor_name(),
        options.seconds,
        options.threads,
        count(&done.lookups),
        count(&done.forks),
        count(&done.checked),
    );
    Ok(stale == 0 && count(&done.checked) > 0)
}
