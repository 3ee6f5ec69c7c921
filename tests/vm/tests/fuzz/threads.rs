//! Fuzzes the driver with several threads. The threads share one file, and each thread also has a
//! private file.
//!
//! Each thread changes only its own part of the arena. So each thread can predict every report of
//! its private file exactly. One additional thread reads the shared file. The reports of the shared
//! file depend on the order in which the threads run. So the threads check only conditions of the
//! shared file that hold in every order.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use ummunotify_sys::{self as abi, Event, Register};

use crate::child::Forked;
use crate::model::{Arena, Invalidation, PAGE, Span, Watch};
use crate::op::{Access, Dice, Op, Run};
use crate::run::{BUFFER, Check, File, ensure, failed, on_memory, prepare, read, same};
use crate::sys::{self, Counter};

const WORKERS: usize = 3;
/// The number of pages in a thread's part of the arena. The last page of the part stays free.
const PART: usize = 8;
/// The largest number of ranges that a thread watches on the shared file. Every cookie on the
/// thread's private file is also below this number.
const RANGES: usize = 8;
/// For each thread, the test keeps the counts of reports of this many recent ranges.
const REMEMBERED: u64 = 1 << 14;
/// The duration after which a missing report is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// The state of a range on the shared file. Two threads access this state: the thread that owns the
/// range, and the thread that reads the reports.
struct Range {
    /// The tick of the clock at which the range was unregistered.
    gone: AtomicU64,
    /// The number of reports of the range.
    reports: AtomicU64,
}

/// The shared file, and the state that all threads share.
struct Shared {
    fd: OwnedFd,
    counter: Counter,
    /// A logical clock. The clock ticks when a read begins, and when UNREGISTER_REGION has
    /// returned.
    clock: AtomicU64,
    /// The counter of the newest LAST. The reading thread first counts the reports that precede a
    /// LAST, and then stores the counter of this LAST.
    last: AtomicU64,
    /// The number of all reports.
    reports: AtomicU64,
    ranges: Vec<Range>,
    /// True if the workers are done, or if a thread has failed.
    stop: AtomicBool,
}

impl Shared {
    fn range(&self, cookie: u64) -> Result<&Range, String> {
        let (worker, number) = (cookie >> 32, cookie & 0xffff_ffff);
        let at = worker * REMEMBERED + number % REMEMBERED;
        let range = self.ranges.get(at as usize);
        range.ok_or_else(|| format!("an event for cookie {cookie:#x}, which no thread has used"))
    }

    /// Reads the reports, and counts the reports of each range. Returns when the workers have
    /// stopped and no report is left.
    fn serve(&self) -> Check {
        let mut events = [Event::default(); 20];
        let mut counter = 0;
        for turn in 0_usize.. {
            let stopping = self.stop.load(Acquire);
            let begun = self.clock.fetch_add(1, Relaxed);
            let room = 1 + turn * 7 % events.len();
            let address = events.as_mut_ptr().expose_provenance() as u64;
            let delivered = match sys::read(&self.fd, address, room * size_of::<Event>()) {
                Ok(bytes) => bytes / size_of::<Event>(),
                Err(Errno::EAGAIN) if stopping => return Ok(()),
                Err(Errno::EAGAIN) => {
                    thread::yield_now();
                    continue;
                }
                Err(errno) => return Err(format!("the reading thread's read returned {errno:?}")),
            };
            for (i, event) in events[..delivered].iter().enumerate() {
                let value = event.user_cookie_counter;
                if event.kind == abi::LAST {
                    ensure!(i + 1 == delivered, "an event follows LAST");
                    ensure!(value >= counter, "LAST {value} after LAST {counter}");
                    counter = value;
                    self.last.store(value, Release);
                    continue;
                }
                let range = self.range(value)?;
                let gone = range.gone.load(Acquire);
                ensure!(
                    gone > begun,
                    "an event for cookie {value:#x} by a read that began at {begun}, unregistered at {gone}"
                );
                range.reports.fetch_add(1, Release);
                self.reports.fetch_add(1, Release);
            }
        }
        Ok(())
    }
}

/// The state of a thread that makes steps. The state persists from round to round.
struct Worker {
    number: usize,
    dice: Dice,
    arena: Arena,
    own: File,
    /// The model of this thread's ranges on the shared file. The thread uses only those predictions
    /// that are certain.
    shared: Watch,
    /// The number of cookies that the thread has used so far.
    used: u64,
    /// The smallest and the largest amount by which this thread may have raised the shared counter.
    raised: (u64, u64),
}

impl Worker {
    fn new(number: usize, seed: u64) -> Result<Self, String> {
        Ok(Self {
            number,
            dice: Dice::new(seed),
            arena: Arena::new(),
            own: File::open(0)?,
            shared: Watch::new(),
            used: 0,
            raised: (0, 0),
        })
    }

    /// Draws a run of pages in this thread's part of the arena.
    fn run(&mut self) -> Run {
        let first = self.dice.below(PART - 1);
        Run {
            first: self.number * PART + first,
            pages: 1 + self.dice.below(PART - 1 - first),
        }
    }

    fn span(&mut self) -> Span {
        Span::from(self.run())
    }

    fn step(&mut self, shared: &Shared) -> Check {
        match self.dice.below(100) {
            0..12 => self.register_shared(shared),
            12..20 => self.unregister_shared(shared),
            20..28 => self.register_own(),
            28..34 => self.unregister_own(),
            34..50 => {
                let events = self.dice.below(20);
                let room = if self.dice.percent(20) {
                    self.dice.below(600)
                } else {
                    PAGE as usize
                };
                read(
                    &mut self.own,
                    self.number,
                    events * size_of::<Event>(),
                    room,
                )
                .map(drop)
            }
            _ => self.change_memory(shared),
        }
    }

    fn register_shared(&mut self, shared: &Shared) -> Check {
        if self.shared.cookies().len() == RANGES {
            return Ok(());
        }
        let cookie = (self.number as u64) << 32 | self.used;
        self.used += 1;
        let span = self.span();
        let range = shared.range(cookie)?;
        range.reports.store(0, Relaxed);
        range.gone.store(u64::MAX, Release);
        let said = sys::register(&shared.fd, &region(span, cookie));
        same("REGISTER_REGION", &said, &Ok(()))?;
        self.shared.register(span, cookie);
        Ok(())
    }

    fn unregister_shared(&mut self, shared: &Shared) -> Check {
        let ranges = self.shared.cookies().len();
        if ranges == 0 {
            return Ok(());
        }
        let Some(cookie) = self.shared.cookies().nth(self.dice.below(ranges)) else {
            return Ok(());
        };
        let said = sys::unregister(&shared.fd, cookie);
        same("UNREGISTER_REGION", &said, &Ok(()))?;
        let now = shared.clock.fetch_add(1, Relaxed);
        shared.range(cookie)?.gone.store(now, Release);
        self.shared.unregister(cookie);
        Ok(())
    }

    fn register_own(&mut self) -> Check {
        let (span, cookie) = (self.span(), self.dice.below(RANGES) as u64);
        let said = sys::register(self.own.fd(), &region(span, cookie));
        let free = self.own.watch.register(span, cookie);
        let expected = free.then_some(()).ok_or(Errno::EINVAL);
        same("REGISTER_REGION", &said, &expected)
    }

    fn unregister_own(&mut self) -> Check {
        let cookie = self.dice.below(RANGES) as u64;
        let said = sys::unregister(self.own.fd(), cookie);
        let known = self.own.watch.unregister(cookie);
        let expected = known.then_some(()).ok_or(Errno::EINVAL);
        same("UNREGISTER_REGION", &said, &expected)
    }

    fn change_memory(&mut self, shared: &Shared) -> Check {
        let run = self.run();
        let op = self.dice.on_pages(run);
        let wait = self.dice.percent(5);
        self.change(shared, op, wait)
    }

    /// Makes a step on this thread's memory, and checks both files after the step.
    fn change(&mut self, shared: &Shared, op: Op, wait: bool) -> Check {
        // The reports are counted before the step. So a higher count after the step proves that a
        // report has arrived since.
        let reports = self.reports(shared)?;
        let before = shared.counter.load();
        let made = on_memory(&mut self.arena, op)?;
        let after = shared.counter.load();
        self.own.invalidated(&made)?;
        let (least, most) = self.shared.raised_by(&made);
        self.raised.0 += least;
        self.raised.1 += most;
        ensure!(
            after >= before + least,
            "the shared counter went from {before} to {after} after {made:?}, by less than {least}"
        );
        if wait {
            self.wait_for_reports(shared, &made, after, &reports)?;
        }
        Ok(())
    }

    /// Returns the cookie of each of this thread's ranges on the shared file, with the number of
    /// reports of the range.
    fn reports(&self, shared: &Shared) -> Result<[(u64, u64); RANGES], String> {
        let mut reports = [(0, 0); RANGES];
        for (report, cookie) in reports.iter_mut().zip(self.shared.cookies()) {
            *report = (cookie, shared.range(cookie)?.reports.load(Acquire));
        }
        Ok(reports)
    }

    /// Waits for the reports of the ranges that these invalidations met. `after` is the counter
    /// after the invalidations. Each report must arrive before a LAST whose counter is `after` or
    /// higher.
    fn wait_for_reports(
        &self,
        shared: &Shared,
        made: &[Invalidation],
        after: u64,
        before: &[(u64, u64)],
    ) -> Check {
        let met = self.shared.met_by(made);
        let started = Instant::now();
        loop {
            let last = shared.last.load(Acquire);
            let mut missing = None;
            for &(cookie, reports) in before {
                let now = shared.range(cookie)?.reports.load(Acquire);
                if met.contains(&cookie) && now == reports {
                    missing = Some(cookie);
                }
            }
            let Some(cookie) = missing else {
                return Ok(());
            };
            ensure!(
                last < after,
                "cookie {cookie:#x} was invalidated at counter {after}, but LAST {last} came before its report"
            );
            ensure!(
                started.elapsed() < PATIENCE,
                "cookie {cookie:#x} was invalidated by {made:?} and never reported"
            );
            if shared.stop.load(Relaxed) {
                return Ok(());
            }
            thread::yield_now();
        }
    }

    /// Invalidates each of this thread's ranges at least once, and unmaps this thread's part of the
    /// arena.
    fn finish(&mut self, shared: &Shared) -> Check {
        let run = Run {
            first: self.number * PART,
            pages: PART - 1,
        };
        let access = Access::Write;
        self.change(shared, Op::Map { run, access }, false)?;
        self.change(shared, Op::Unmap { run }, true)
    }
}

fn region(span: Span, cookie: u64) -> Register {
    Register {
        start: span.start,
        end: span.end,
        user_cookie: cookie,
        ..Register::default()
    }
}

/// Runs the steps of all threads in rounds. All threads stop between two rounds. Returns the number
/// of steps.
pub(crate) fn run(seed: u64, steps: u64) -> Result<u64, String> {
    /// The number of steps of each worker in a round.
    const ROUND: u64 = 2000;
    prepare()?;
    let fd = sys::open().map_err(failed("open"))?;
    let fresh = || Range {
        gone: AtomicU64::new(0),
        reports: AtomicU64::new(0),
    };
    let shared = Shared {
        counter: Counter::map(&fd).map_err(failed("mmap"))?,
        fd,
        clock: AtomicU64::new(1),
        last: AtomicU64::new(0),
        reports: AtomicU64::new(0),
        ranges: (0..WORKERS as u64 * REMEMBERED).map(|_| fresh()).collect(),
        stop: AtomicBool::new(false),
    };
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        let seed = seed ^ (number as u64 + 1) << 56;
        workers.push(Worker::new(number, seed)?);
    }
    let mut done = 0;
    while done < steps {
        shared.stop.store(false, Release);
        thread::scope(|scope| {
            let all = workers.iter_mut().map(|worker| {
                scope.spawn(|| {
                    let mut steps = || {
                        (0..ROUND).try_for_each(|_| worker.step(&shared))?;
                        worker.finish(&shared)
                    };
                    let result = steps();
                    if result.is_err() {
                        shared.stop.store(true, Release);
                    }
                    result
                })
            });
            let all: Vec<_> = all.collect();
            let reader = scope.spawn(|| shared.serve());
            let mut result = Ok(());
            for worker in all {
                let said = worker
                    .join()
                    .unwrap_or_else(|_| Err("a worker panicked".to_owned()));
                result = result.and(said);
            }
            shared.stop.store(true, Release);
            let said = reader
                .join()
                .unwrap_or_else(|_| Err("the reader panicked".to_owned()));
            said.and(result)
        })?;
        at_rest(&shared, &workers)?;
        done += WORKERS as u64 * ROUND;
    }
    Ok(done)
}

/// Checks the shared file after all threads have stopped and all reports have been read.
fn at_rest(shared: &Shared, workers: &[Worker]) -> Check {
    let counter = shared.counter.load();
    let least: u64 = workers.iter().map(|worker| worker.raised.0).sum();
    let most: u64 = workers.iter().map(|worker| worker.raised.1).sum();
    // If a report is read while its invalidation is in flight, the invalidation raises the counter
    // twice.
    let again = shared.reports.load(Acquire);
    ensure!(
        (least..=most + again).contains(&counter),
        "the shared counter is {counter}, not {least} to {most} plus at most {again}"
    );
    // If each thread has a range, each thread ends the round with an invalidation of its ranges. So
    // a LAST follows the last increment of the counter. This LAST must carry the final counter.
    //
    // The check does not apply if a thread has no range. The last counted invalidation may be that
    // of a range that was unregistered afterwards. The driver does not report such a range, so no
    // LAST follows.
    if workers
        .iter()
        .all(|worker| worker.shared.cookies().len() > 0)
    {
        same("the newest LAST", &shared.last.load(Acquire), &counter)?;
    }
    let child = Forked::new(std::iter::once(&shared.fd), BUFFER).map_err(failed("fork"))?;
    ensure!(child.was_refused(), "a child was not refused");
    Ok(())
}
