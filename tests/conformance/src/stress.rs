//! A stress test that searches for deadlocks between the cache and malloc. Its threads allocate,
//! free, fork and look up. The cache holds registrations of the memory that malloc returns.
//!
//! With userfaultfd, a thread that unmaps memory sleeps until the monitor has read the event of
//! that unmap. The sleeping thread may hold the cache's lock. A thread that sleeps in `free` may
//! also hold malloc's lock. The thread that reads the events must wait for neither lock. Otherwise
//! each thread would wait for the other.

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

/// The counts of the operations that all threads have done so far.
#[derive(Debug, Default)]
pub struct Progress {
    /// The number of lookups of malloc's memory.
    pub lookups: AtomicU64,
    /// The number of lookups after which the bytes that the device read were checked.
    pub checked: AtomicU64,
    /// The number of checked lookups that returned a stale registration.
    pub stale: AtomicU64,
    /// The number of forks.
    pub forks: AtomicU64,
}

/// Runs `threads` threads for the duration `time`.
///
/// # Errors
///
/// The errors of the kernel or the device. The function also returns an error if no thread
/// completes a lookup for the duration `patience`. In that case the deadlocked threads still exist,
/// so the process should exit.
pub fn allocate_free_fork_and_look_up<M: Monitor>(
    device: &'static Uring<M>,
    threads: u64,
    time: Duration,
    patience: Duration,
) -> Result<&'static Progress> {
    let progress: &'static Progress = Box::leak(Box::default());
    let stop: &'static AtomicBool = Box::leak(Box::default());
    // The device passes all bytes through one pipe. This lock lets only one thread use the pipe at
    // a time.
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
            return Err(format!("no lookup has returned for {patience:?}, so the threads are deadlocked: {progress:?}").into());
        }
    }
    stop.store(true, Ordering::Relaxed);
    let ending = Instant::now();
    while !running.iter().all(thread::JoinHandle::is_finished) {
        if ending.elapsed() > patience {
            return Err(format!("a thread has not ended within {patience:?}: {progress:?}").into());
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
        // malloc serves the first two sizes from its bins, the third from its heap, and the fourth
        // by `mmap`.
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
            // SAFETY: the child only calls `_exit`.
            match unsafe { fork() }? {
                // SAFETY: `_exit` ends the child and runs none of the parent's exit handlers.
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

/// Allocate, free, fork and look up in several threads, while malloc's memory is cached
///
/// The monitor is userfaultfd. Exits with 1 if a lookup returns a stale registration, and aborts if
/// the threads are deadlocked.
#[derive(Parser)]
struct Options {
    /// Run for this many seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Run this many threads
    #[arg(long, default_value_t = 4)]
    threads: u64,
}

/// If no lookup completes for this duration, the threads count as deadlocked.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the stress test. `allocator` names the program's global allocator, for the report.
pub fn stress_program(allocator: &str) -> ExitCode {
    match stress(&Options::parse(), allocator) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("stress: {error}");
            // A return from `main` would run exit handlers. An exit handler may need a lock that a
            // deadlocked thread holds. So the process aborts.
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
