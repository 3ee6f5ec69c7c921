//! Blocks: how a noisy machine is measured.
//!
//! What is compared runs in turns, in blocks of a millisecond or so, many times over. The figure is
//! the median of the blocks, and the ratio the median of the ratios within each turn, in which both
//! had the same neighbours. A turn in which the kernel took the processor away is thrown away; so is one of two
//! threads while the machine has not two processors to give, as a virtual one that shares its own has not.

use std::io;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Turns that count.
    pub turns: usize,
    /// How long a block shall be.
    pub block: Duration,
}

/// What one block took.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// Nanoseconds an operation.
    pub ns: f64,
    /// False if a processor was taken away meanwhile.
    pub undisturbed: bool,
}

/// What the turns took, of contestants that ran by turns.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    /// Nanoseconds an operation of each contestant, turn by turn.
    ns: Vec<Vec<f64>>,
    disturbed: usize,
}

impl Turns {
    /// How many took turns.
    pub fn contestants(&self) -> usize {
        self.ns.first().map_or(0, Vec::len)
    }

    /// Median nanoseconds an operation of this contestant.
    pub fn ns(&self, contestant: usize) -> f64 {
        median(self.ns.iter().map(|turn| turn[contestant]).collect())
    }

    /// Median of what one contestant took divided by what another took in the same turn.
    pub fn ratio(&self, contestant: usize, other: usize) -> f64 {
        median(
            self.ns
                .iter()
                .map(|turn| turn[contestant] / turn[other])
                .collect(),
        )
    }

    /// Turns thrown away, and all that there were.
    pub fn disturbed(&self) -> (usize, usize) {
        (self.disturbed, self.disturbed + self.ns.len())
    }

    /// One more turn: nanoseconds an operation of each.
    pub fn push(&mut self, ns: Vec<f64>, undisturbed: bool) {
        if undisturbed {
            self.ns.push(ns);
        } else {
            self.disturbed += 1;
        }
    }

    /// Turns that count.
    pub fn len(&self) -> usize {
        self.ns.len()
    }

    /// True if none counts.
    pub fn is_empty(&self) -> bool {
        self.ns.is_empty()
    }

    /// Turns of the same contestants, set up anew.
    pub fn extend(&mut self, more: Self) {
        self.ns.extend(more.ns);
        self.disturbed += more.disturbed;
    }
}

/// Something that runs so many operations when asked to.
pub type Contestant<'a> = dyn FnMut(usize) -> Block + 'a;

/// Lets the contestants run by turns.
pub fn take_turns(effort: Effort, contestants: &mut [&mut Contestant<'_>]) -> Turns {
    let operations: Vec<usize> = contestants
        .iter_mut()
        .map(|run| calibrate(effort.block, run))
        .collect();
    let mut turns = Turns::default();
    let mut ns = vec![0.0; contestants.len()];
    let mut turn = 0;
    while turns.len() < effort.turns {
        let mut undisturbed = true;
        for place in 0..contestants.len() {
            // Nobody always comes first.
            let which = (place + turn) % contestants.len();
            let block = contestants[which](operations[which]);
            ns[which] = block.ns;
            undisturbed &= block.undisturbed;
        }
        turn += 1;
        // On a machine that is busy all the time a disturbed turn is better than none.
        turns.push(
            ns.clone(),
            undisturbed || turns.disturbed >= 4 * effort.turns,
        );
    }
    turns
}

/// How many operations fill a block.
fn calibrate(block: Duration, run: &mut Contestant<'_>) -> usize {
    let mut operations = 100;
    // The first block warms up.
    for _ in 0..4 {
        let ns = run(operations).ns.max(0.1);
        operations = ((block.as_nanos() as f64 / ns) as usize).clamp(16, 10_000_000);
    }
    operations
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Times what this thread does.
#[inline]
pub fn timed(operations: usize, run: impl FnOnce()) -> Block {
    let (span, undisturbed) = watched(run);
    block(span.1 - span.0, operations, undisturbed)
}

/// Times the same on two processors at once, for the first and for the second thread: `operations`
/// each. Counts from when the first starts to when the last ends.
pub fn timed_by_two(operations: usize, run: impl Fn(usize) + Sync) -> Block {
    let alone = {
        let _here = Pinned::to(0);
        timed(1, arithmetic).ns
    };
    let barrier = Barrier::new(2);
    let ready = AtomicUsize::new(0);
    // What the barrier leaves of a difference, waiting does away with.
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
        (span, undisturbed && together.ns < alone * TWO_PROCESSORS)
    };
    let [(first, a), (second, b)] = std::thread::scope(|scope| {
        let other = scope.spawn(|| one(1));
        let mine = one(0);
        [mine, other.join().expect("the loops do not panic")]
    });
    let span = first.1.max(second.1) - first.0.min(second.0);
    block(span, operations, a && b)
}

/// What two threads that share nothing may take, as a part of what one takes, if there is a processor for each.
const TWO_PROCESSORS: f64 = 1.1;

/// Some 50 us of work that fills a processor and needs no memory.
fn arithmetic() {
    let mut lanes = [1_u64; 8];
    for i in 0..std::hint::black_box(100_000) {
        for lane in &mut lanes {
            *lane = lane.wrapping_mul(3).wrapping_add(i);
        }
    }
    std::hint::black_box(lanes);
}

fn block(span: Duration, operations: usize, undisturbed: bool) -> Block {
    Block {
        ns: span.as_nanos() as f64 / operations as f64,
        undisturbed,
    }
}

fn watched(run: impl FnOnce()) -> ((Instant, Instant), bool) {
    let before = preemptions();
    let start = Instant::now();
    run();
    let end = Instant::now();
    ((start, end), preemptions() == before)
}

/// How often the kernel took the processor away from this thread.
fn preemptions() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.involuntary_context_switches())
}

/// Keeps this thread on one of the processors that it may use, until dropped.
#[derive(Debug)]
pub struct Pinned(Option<CpuSet>);

impl Pinned {
    /// To the processor of this number among those allowed, if there is one.
    pub fn to(which: usize) -> Self {
        let pin = || -> io::Result<CpuSet> {
            let allowed = sched_getaffinity(Pid::from_raw(0))?;
            if let Some(cpu) = processors(&allowed).nth(which) {
                let mut one = CpuSet::new();
                one.set(cpu)?;
                sched_setaffinity(Pid::from_raw(0), &one)?;
            }
            Ok(allowed)
        };
        Self(pin().ok())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(allowed) = &self.0 {
            // It was allowed before.
            let _ = sched_setaffinity(Pid::from_raw(0), allowed);
        }
    }
}

/// How many processors this thread may use.
pub fn processor_count() -> usize {
    sched_getaffinity(Pid::from_raw(0)).map_or(1, |allowed| processors(&allowed).count())
}

fn processors(allowed: &CpuSet) -> impl Iterator<Item = usize> {
    (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false))
}
