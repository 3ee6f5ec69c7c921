//! [`Sample`]: the measurement of one variant in one round, by one thread or by two.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use crate::Pinned;

/// The measurement of one variant in one round.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Nanoseconds of an operation.
    pub ns: f64,
    /// False if the kernel took a CPU away during the sample.
    pub undisturbed: bool,
}

impl Sample {
    /// A sample that nothing disturbed, as far as anybody looked.
    #[must_use]
    pub fn of(ns: f64) -> Self {
        Self {
            ns,
            undisturbed: true,
        }
    }

    fn new(span: Duration, operations: usize, undisturbed: bool) -> Self {
        Self {
            ns: span.as_nanos() as f64 / operations as f64,
            undisturbed,
        }
    }
}

/// Times `operations` operations that `run` does in this thread.
#[inline]
pub fn timed(operations: usize, run: impl FnOnce()) -> Sample {
    let (span, undisturbed) = watched(run);
    Sample::new(span.1 - span.0, operations, undisturbed)
}

/// Times `operations` operations each of two threads, which `run` is told by 0 and 1, on two CPUs
/// at once. The time is from the start of the first to the end of the last.
pub fn timed_by_two(operations: usize, run: impl Fn(usize) + Sync) -> Sample {
    let alone = {
        let _here = Pinned::to(0);
        timed(1, arithmetic).ns
    };
    let barrier = Barrier::new(2);
    let ready = AtomicUsize::new(0);
    // The threads leave the barrier some time apart: they spin until both are there.
    let meet = |arrivals| {
        ready.fetch_add(1, Ordering::SeqCst);
        while ready.load(Ordering::SeqCst) < arrivals {
            std::hint::spin_loop();
        }
    };
    let one = |which: usize| {
        let _here = Pinned::to(which);
        barrier.wait();
        meet(2);
        let together = timed(1, || {
            arithmetic();
            meet(4);
        });
        let (span, undisturbed) = watched(|| run(which));
        (span, undisturbed && together.ns < alone * TWO_CPUS)
    };
    let [(first, a), (second, b)] = std::thread::scope(|scope| {
        let other = scope.spawn(|| one(1));
        let mine = one(0);
        [mine, other.join().expect("the loops do not panic")]
    });
    let span = first.1.max(second.1) - first.0.min(second.0);
    Sample::new(span, operations, a && b)
}

/// The time of two threads that share nothing, as a multiple of one thread's, below which each is
/// taken to have a CPU of its own.
const TWO_CPUS: f64 = 1.1;

/// Does some 50 us of work that needs a CPU and no memory.
fn arithmetic() {
    let mut lanes = [1_u64; 8];
    for i in 0..std::hint::black_box(100_000) {
        for lane in &mut lanes {
            *lane = lane.wrapping_mul(3).wrapping_add(i);
        }
    }
    std::hint::black_box(lanes);
}

/// Runs it; returns its start and end, and whether the kernel let this thread run all the time.
fn watched(run: impl FnOnce()) -> ((Instant, Instant), bool) {
    let before = preemptions();
    let start = Instant::now();
    run();
    let end = Instant::now();
    ((start, end), preemptions() == before)
}

/// How often the kernel took the CPU away from this thread.
fn preemptions() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.involuntary_context_switches())
}
