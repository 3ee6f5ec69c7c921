//! A model-based fuzzer of the driver. The fuzzer makes random steps, and compares the result of
//! each step with the prediction of a model in Rust. Most steps change the *arena*, a few pages at
//! a fixed address. The driver is needed, so `cargo xtask test` runs the fuzzer in a virtual
//! machine.
//!
//! `REGCACHE_FUZZ_OPS` sets the number of steps. `REGCACHE_FUZZ_SEED` sets the seed. A failure
//! prints its seed. A run with this seed repeats the failure.
#![expect(clippy::unwrap_used, reason = "a test")]

mod child;
mod model;
mod op;
mod run;
mod sys;
mod threads;

use std::cell::Cell;
use std::env;
use std::fmt::Debug;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use op::Sequences;
use run::World;

/// The number of steps in a sequence.
const SEQUENCE: usize = 400;
/// The number of steps that the fuzzer makes before it takes the next seed.
const PER_SEED: u64 = 20_000;

/// A lock that each test holds. Only one test runs at a time, because the tests use the same
/// addresses. Also, a fork in one test would make the pages of another test shared.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Returns the number in this environment variable, or `None` if the variable is not set.
fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap())
}

fn steps(default: u64) -> u64 {
    number("REGCACHE_FUZZ_OPS").unwrap_or(default)
}

fn seed() -> u64 {
    let clock = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap().as_millis() as u64 * PER_SEED
    };
    number("REGCACHE_FUZZ_SEED").unwrap_or_else(clock)
}

/// Prints a line at once. The line is printed even if the test passes.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "fuzz: {line}");
}

fn rate(what: &str, steps: u64, since: Instant, seed: u64) {
    let seconds = since.elapsed().as_secs_f64();
    say(&format!(
        "{what}: {steps} steps in {seconds:.1} s, {:.0} a second; seed {seed}",
        steps as f64 / seconds
    ));
}

fn one_per_line<T: Debug>(items: &[T]) -> String {
    items.iter().map(|item| format!("    {item:?}\n")).collect()
}

/// Runs about `steps` steps with this seed. Returns the number of steps that were run. If a step
/// fails, the function panics with the shortest failing sequence that it finds.
fn run_seed(seed: u64, steps: u64) -> u64 {
    let config = Config {
        cases: u32::try_from(steps.div_ceil(SEQUENCE as u64)).unwrap(),
        failure_persistence: None,
        max_shrink_iters: 4000,
        max_shrink_time: 120_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let done = Cell::new(0);
    let sequences = Sequences { steps: SEQUENCE };
    let result = TestRunner::new_with_rng(config, rng).run(&sequences, |ops| {
        let mut world = World::new().map_err(TestCaseError::fail)?;
        for (i, &op) in ops.iter().enumerate() {
            done.set(done.get() + 1);
            world
                .step(op)
                .map_err(|why| TestCaseError::fail(format!("step {i}, {op:?}: {why}")))?;
        }
        Ok(())
    });
    match result {
        Ok(()) => done.get(),
        Err(TestError::Fail(why, ops)) => panic!(
            "REGCACHE_FUZZ_SEED={seed}: {why}\nthe shortest sequence found:\n{}",
            one_per_line(&ops)
        ),
        Err(TestError::Abort(why)) => panic!("REGCACHE_FUZZ_SEED={seed}: {why}"),
    }
}

/// Disables huge pages, because all pages of the model have the same size.
fn small_pages() {
    // SAFETY: the call accesses no memory.
    let set = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    assert_eq!(set, 0);
}

#[test]
fn the_driver_does_what_the_model_says_step_by_step() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    small_pages();
    let (seed, steps, started) = (seed(), steps(40_000), Instant::now());
    say(&format!(
        "REGCACHE_FUZZ_SEED={seed} REGCACHE_FUZZ_OPS={steps}"
    ));
    let (mut done, mut next) = (0, seed);
    let mut reported = Instant::now();
    while done < steps {
        done += run_seed(next, PER_SEED.min(steps - done));
        next += 1;
        if reported.elapsed().as_secs() >= 60 {
            rate("so far", done, started, seed);
            reported = Instant::now();
        }
    }
    rate("one thread", done, started, seed);
}

#[test]
fn of_several_threads_none_misses_a_report_or_gets_one_that_is_not_its() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    small_pages();
    let (seed, steps, started) = (seed(), steps(20_000), Instant::now());
    say(&format!(
        "REGCACHE_FUZZ_SEED={seed} REGCACHE_FUZZ_OPS={steps}, threads"
    ));
    let (mut done, mut next) = (0, seed);
    let mut reported = Instant::now();
    while done < steps {
        let result = threads::run(next, PER_SEED.min(steps - done));
        done += result.unwrap_or_else(|why| panic!("REGCACHE_FUZZ_SEED={next}: {why}"));
        next += 1;
        if reported.elapsed().as_secs() >= 60 {
            rate("so far", done, started, seed);
            reported = Instant::now();
        }
    }
    rate("several threads", done, started, seed);
}
