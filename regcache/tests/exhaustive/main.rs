//! These tests check the protocol of cache and driver in every interleaving of a model. The model
//! consists of the memory, the driver, the cache and a few application threads. Some tests break
//! one rule on purpose. The checker must then find a violation, and print the steps that lead to
//! the violation.
//!
//! `docs/design/proof.md` defines the scope of the model. `state.rs` has the state, `kernel.rs` and
//! `cache.rs` have the steps, and `model.rs` has the properties.
#![cfg(not(any(loom, sanitizer = "address", sanitizer = "thread")))]

mod cache;
mod fault;
mod kernel;
mod model;
mod spread;
mod state;
mod symmetry;

use std::time::Instant;

use fault::Fault;
use model::{Protocol, Scenario, Sight, tell};
use spread::Counts;
use stateright::{Checker, HasDiscoveries, Model};

/// The scenarios that every test run explores completely. Each scenario takes a few seconds.
const SCENARIOS: &[Scenario] = &[
    scenario(2, 3, 1, 1),
    scenario(2, 3, 1, 2),
    scenario(2, 3, 2, 1),
    scenario(2, 3, 2, 2),
];

/// The scenarios with three threads, which take longer.
const THREE_THREADS: &[Scenario] = &[scenario(3, 2, 1, 1), scenario(3, 2, 1, 2)];

const fn scenario(threads: usize, operations: u8, pages: u8, slots: usize) -> Scenario {
    Scenario {
        threads,
        operations,
        pages,
        slots,
    }
}

fn explore(scenarios: &[Scenario], expected: &[(Sight, &str)]) {
    let (mut sights, mut states, mut depth) = (0, 0, 0);
    for &scenario in scenarios {
        let started = Instant::now();
        let checker = Protocol::new(scenario, None)
            .checker()
            .threads(std::thread::available_parallelism().map_or(1, usize::from))
            .symmetry()
            .spawn_dfs()
            .join();
        let Scenario {
            threads,
            operations,
            pages,
            slots,
        } = scenario;
        println!(
            "model: threads={threads} operations={operations} pages={pages} slots={slots}: \
             states={} depth={} ({:.1} s)",
            checker.unique_state_count(),
            checker.max_depth(),
            started.elapsed().as_secs_f32()
        );
        if let Some((property, path)) = checker.discoveries().into_iter().next() {
            println!("{}", tell(checker.model(), path));
            panic!("violated: {property}");
        }
        sights |= checker.model().sights();
        states += checker.unique_state_count();
        depth = depth.max(checker.max_depth());
    }
    for (sight, words) in expected {
        assert!(sights & 1 << *sight as u32 != 0, "never seen: {words}");
        println!("model: seen: {words}");
    }
    println!("model: states={states} depth={depth}: contract holds");
}

#[test]
fn the_contract_holds_in_every_interleaving() {
    explore(SCENARIOS, &Sight::ALL);
}

#[test]
#[ignore = "takes a minute: cargo xtask model"]
fn the_contract_holds_among_three_threads() {
    explore(THREE_THREADS, &[]);
}

#[test]
fn each_injected_fault_is_found() {
    for fault in Fault::ALL {
        // Without the fault, the contract holds in all scenarios of `SCENARIOS`. So a violation
        // shows that the checker has found the fault.
        let found = SCENARIOS.iter().find_map(|&scenario| {
            let checker = Protocol::new(scenario, Some(fault))
                .checker()
                .finish_when(HasDiscoveries::AnyFailures)
                .spawn_bfs()
                .join();
            let (property, path) = checker.discoveries().into_iter().next()?;
            let states = checker.unique_state_count();
            Some((property, states, tell(checker.model(), path)))
        });
        let name = fault.name();
        let (property, states, trace) = found.unwrap_or_else(|| panic!("not found: {name}"));
        println!("fault: {name}: found, states={states}; violated: {property}:\n{trace}");
        assert!(fault.breaks().contains(&property), "{name}");
    }
}

/// The counts of the model of spread counts, and the fault that it has.
fn counts(lookups: u8, registrations: u8, fault: Option<spread::Fault>) -> Counts {
    Counts {
        lookups,
        registrations,
        fault,
    }
}

/// Explores the model of spread counts.
fn explore_counts(counts: Counts) {
    let started = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = counts.checker().threads(threads).spawn_dfs().join();
    checker.assert_properties();
    println!(
        "model of spread counts: {counts:?}: states={} ({:.1} s)",
        checker.unique_state_count(),
        started.elapsed().as_secs_f32()
    );
}

#[test]
fn spread_counts_hold_in_every_interleaving() {
    explore_counts(counts(1, 3, None));
}

#[test]
#[ignore = "takes a minute: cargo xtask model"]
fn spread_counts_hold_with_more_lookups() {
    explore_counts(counts(2, 3, None));
}

#[test]
fn each_fault_of_spread_counts_is_found() {
    for fault in spread::Fault::ALL {
        let checker = counts(2, 3, Some(fault))
            .checker()
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        let states = checker.unique_state_count();
        let found = checker.discoveries();
        assert!(!found.is_empty(), "not found: {fault:?}");
        println!("fault: {fault:?}: found, states={states}");
    }
}
