//! The regression suite of the reuse bug. The suite tests each basic scenario in each direction of
//! transfer. With a naive cache, the device must access the old pages. With regcache, the device
//! must access the new pages. The transferred bytes show which pages the device accessed.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use regcache::monitor::{Monitor, Ummunotify};
use regcache_conformance::BASIC;
use regcache_repro::{NeverReports, Outcome, Scenario};
use regcache_repro_rdma::{Direction, Rig};

fn expect<M: Monitor>(
    monitor: M,
    scenario: &Scenario,
    direction: Direction,
    expected: Outcome,
) -> Result<(), Failed> {
    let outcome = Rig::new(None, monitor)?.reuse(scenario, direction)?;
    if outcome == expected {
        return Ok(());
    }
    Err(format!("{outcome:?}, not {expected:?}").into())
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each test needs the kernel to return the same address again. So the tests do not run in
    // parallel.
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    for scenario in BASIC {
        for direction in Direction::ALL {
            let name = format!("{}::{}", scenario.name, direction.name());
            trials.push(Trial::test(format!("{name}::naive_is_stale"), move || {
                expect(NeverReports, scenario, direction, Outcome::Stale)
            }));
            trials.push(Trial::test(
                format!("{name}::regcache_is_fresh"),
                move || expect(Ummunotify::open()?, scenario, direction, Outcome::Fresh),
            ));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
