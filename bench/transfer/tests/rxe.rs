//! Tests that the benchmark measures the transfers that it claims to measure. The tests use an RDMA
//! device and the driver, so they need the VM.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use regcache::monitor::Ummunotify;
use regcache_bench_transfer::{Error, Op, Provider, Strategy, Variant, Verbs, Workload, variant};

const TRANSFERS: u64 = 12;

/// Runs one test at a time, because some tests check the pinned memory of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ummunotify() -> Result<Ummunotify, Error> {
    Ummunotify::open().map_err(|why| Error::Cannot(why.to_string()))
}

fn on_rxe(strategy: Strategy, workload: Workload) -> Box<dyn Variant> {
    let verbs = Verbs::open(None).unwrap();
    let mut one = variant(&verbs, ummunotify, strategy, workload).unwrap();
    one.visit().unwrap();
    one.start().unwrap();
    one
}

#[test]
fn each_policy_moves_the_bytes_and_registers_as_often_as_it_says() {
    let _alone = alone();
    for op in Op::ALL {
        let workload = Workload {
            checked: true,
            ..Workload::plain(op, 5000).set(3)
        };
        for strategy in Strategy::ALL {
            let mut one = on_rxe(strategy, workload);
            one.run(TRANSFERS).unwrap();
            let (tally, counts) = (one.tally().unwrap(), one.counts());
            assert_eq!(
                (tally.transfers, tally.wrong_bytes),
                (TRANSFERS, 0),
                "{op} {strategy:?}"
            );
            let (calls, pinned) = match strategy {
                Strategy::PerTransfer => (TRANSFERS, 8192),
                Strategy::Copy => (0, 8192),
                _ => (0, 3 * 8192),
            };
            assert_eq!(counts.registrations, calls, "{op} {strategy:?}");
            assert_eq!(counts.deregistrations, calls, "{op} {strategy:?}");
            assert_eq!(counts.most_pinned, pinned, "{op} {strategy:?}");
            assert_eq!(counts.monitor_calls, 0, "{op} {strategy:?}");
        }
    }
}

/// Does transfers with this variant, which must unmap its buffer before every third transfer.
/// Checks that no byte is stale.
fn run_with_unmaps(one: &mut dyn Variant, op: Op) {
    one.run(TRANSFERS).unwrap();
    let tally = one.tally().unwrap();
    assert_eq!(
        (tally.remaps, tally.wrong_bytes),
        (TRANSFERS / 3, 0),
        "{op}"
    );
}

#[test]
fn with_unmaps_each_is_registered_once_more_and_no_byte_is_stale() {
    let _alone = alone();
    for op in Op::ALL {
        let mut one = on_rxe(Strategy::Regcache, Workload::plain(op, 9000).unmap_every(3));
        run_with_unmaps(&mut *one, op);
        assert_eq!(one.counts().registrations, TRANSFERS / 3, "{op}");
    }
}

/// Returns whether the kernel's rxe offers on-demand paging.
fn rxe_pages_on_demand() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let major = release.split('.').next().unwrap();
    major.parse::<u32>().unwrap() >= 7
}

/// Returns the size of the memory that this process has pinned, in KiB.
fn pinned() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse().unwrap()
}

#[test]
fn on_demand_nothing_is_pinned_and_what_is_mapped_now_is_what_is_moved() {
    const SIZE: usize = 9000;
    let _alone = alone();
    for op in Op::ALL {
        let verbs = Verbs::open(None).unwrap();
        let offered = verbs.offers_on_demand(op).unwrap();
        assert_eq!(offered, rxe_pages_on_demand(), "{op}");
        let workload = Workload::plain(op, SIZE).set(2).unmap_every(3);
        if !offered {
            // A device without on-demand paging must refuse a variant with the strategy odp.
            let refused = variant(&verbs, ummunotify, Strategy::Odp, workload);
            assert!(refused.is_err(), "{op}");
            println!("{op}: this kernel's rxe does not page on demand");
            continue;
        }
        let before = pinned();
        let mut one = on_rxe(Strategy::Odp, workload);
        // On-demand paging pins no buffer, so only the memory at the other end is pinned: 12 KiB.
        assert_eq!(pinned() - before, 12, "{op}");
        run_with_unmaps(&mut *one, op);
        assert_eq!(one.counts().registrations, 0, "{op}");
    }
}

#[test]
fn a_cache_that_is_told_nothing_is_found_out() {
    let _alone = alone();
    for op in Op::ALL {
        let mut one = on_rxe(Strategy::Naive, Workload::plain(op, 9000).unmap_every(3));
        one.run(TRANSFERS).unwrap();
        // The first unmap precedes the third transfer. From then on, the registration pins pages
        // that the buffer no longer has, so every byte is stale.
        let wrong = one.tally().unwrap().wrong_bytes;
        assert_eq!(wrong, (TRANSFERS - 2) * 9000, "{op}");
    }
}

#[test]
fn transfers_are_under_way_at_a_time_and_in_several_threads() {
    let _alone = alone();
    for op in Op::ALL {
        let workload = Workload::plain(op, 4096).set(5).depth(8).threads(2);
        let mut one = on_rxe(Strategy::Regcache, workload);
        one.run(3 * TRANSFERS).unwrap();
        assert_eq!(one.tally().unwrap().transfers, 2 * 3 * TRANSFERS);
        assert_eq!(one.counts().registrations, 0);
    }
}
