//! [`Sample`]: the measurement of one variant in one round, by one thread or by two.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use crate::Pinned;

/// The measurement of one variant in one round.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// The time of one operation, in nanoseconds.
    pub ns: f64,
    /// False if the sample was disturbed: the kernel preempted a thread, or two threads shared a
    /// CPU.
    pub undisturbed: bool,
}

impl Sample {
    /// Makes a sample of a measurement that did not check for disturbances. The sample counts as
    /// undisturbed.
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

/// Runs `run` in this thread and returns its sample. `run` must do `operations` operations.
#[inline]
pub fn timed(operations: usize, run: impl FnOnce()) -> Sample {
    let (span, undisturbed) = watched(run);
    Sample::new(span.1 - span.0, operations, undisturbed)
}

/// Runs two threads at the same time on two CPUs and returns their sample. Each thread calls `run`
/// with the thread's number, 0 or 1. In each thread, `run` must do `operations` operations.
///
/// The time starts when the first thread starts and ends when the last thread ends.
pub fn timed_by_two(operations: usize, run: impl Fn(usize) + Sync) -> Sample {
    let alone = {
        let _here = Pinned::to(0);
        timed(1, arithmetic).ns
    };
    let barrier = Barrier::new(2);
    let ready = AtomicUsize::new(0);
    // The threads leave the barrier at slightly different times. So each thread spins until
    // both threads have arrived.
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

/// The limit that shows whether each of two threads has its own CPU. The limit is a multiple of the
/// time that one thread takes for the work alone. The two threads do the same work and share no
/// data. So if each has its own CPU, both finish within this limit.
const TWO_CPUS: f64 = 1.1;

/// Computes for about 50 us. The computation accesses no memory.
fn arithmetic() {
    let mut lanes = [1_u64; 8];
    for i in 0..std::hint::black_box(100_000) {
        for lane in &mut lanes {
            *lane = lane.wrapping_mul(3).wrapping_add(i);
        }
    }
    std::hint::black_box(lanes);
}

/// Runs `run`. Returns the start and the end of the call, and whether the kernel left this thread
/// running during the whole call.
fn watched(run: impl FnOnce()) -> ((Instant, Instant), bool) {
    let before = preemptions();
    let start = Instant::now();
    run();
    let end = Instant::now();
    ((start, end), preemptions() == before)
}

/// Returns how often the kernel has preempted this thread.
fn preemptions() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.involuntary_context_switches())
}
