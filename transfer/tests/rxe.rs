//! The benchmark measures what it says: on an RDMA device, with the driver. Needs the VM.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::thread;

use regcache::monitor::Ummunotify;
use regcache_conformance::NeverReports;
use regcache_transfer::{
    Contestant, Error, Moved, Op, Policy, Remote, Verbs, Workload, contestant, move_bytes, serve,
};

const TRANSFERS: u64 = 12;

fn ummunotify() -> Result<Ummunotify, Error> {
    Ummunotify::open().map_err(|why| Error::Cannot(why.to_string()))
}

fn on_rxe(policy: Policy, workload: Workload) -> Box<dyn Contestant> {
    let verbs = Verbs::open(None).unwrap();
    let mut one = contestant(&verbs, ummunotify, policy, workload).unwrap();
    one.visit().unwrap();
    one.start().unwrap();
    one
}

#[test]
fn each_policy_moves_the_bytes_and_registers_as_often_as_it_says() {
    for op in Op::ALL {
        let workload = Workload {
            checked: true,
            ..Workload::plain(op, 5000).set(3)
        };
        for policy in Policy::ALL {
            let mut one = on_rxe(policy, workload);
            one.run(TRANSFERS).unwrap();
            let (tally, counts) = (one.tally().unwrap(), one.counts());
            assert_eq!(
                (tally.transfers, tally.wrong_bytes),
                (TRANSFERS, 0),
                "{op} {policy:?}"
            );
            let (calls, pinned) = match policy {
                Policy::RegisterEachTime => (TRANSFERS, 8192),
                Policy::Copy => (0, 8192),
                _ => (0, 3 * 8192),
            };
            assert_eq!(counts.registrations, calls, "{op} {policy:?}");
            assert_eq!(counts.deregistrations, calls, "{op} {policy:?}");
            assert_eq!(counts.most_pinned, pinned, "{op} {policy:?}");
            assert_eq!(counts.monitor_calls, 0, "{op} {policy:?}");
        }
    }
}

#[test]
fn with_unmaps_each_is_registered_once_more_and_no_byte_is_stale() {
    for op in Op::ALL {
        let mut one = on_rxe(Policy::Regcache, Workload::plain(op, 9000).unmap_every(3));
        one.run(TRANSFERS).unwrap();
        let (tally, counts) = (one.tally().unwrap(), one.counts());
        assert_eq!(
            (tally.remaps, tally.wrong_bytes),
            (TRANSFERS / 3, 0),
            "{op}"
        );
        assert_eq!(counts.registrations, tally.remaps, "{op}");
    }
}

#[test]
fn a_cache_that_is_told_nothing_is_found_out() {
    for op in Op::ALL {
        let mut one = on_rxe(Policy::Naive, Workload::plain(op, 9000).unmap_every(3));
        one.run(TRANSFERS).unwrap();
        // From the third transfer on the pages are others.
        let wrong = one.tally().unwrap().wrong_bytes;
        assert_eq!(wrong, (TRANSFERS - 2) * 9000, "{op}");
    }
}

#[test]
fn transfers_are_under_way_at_a_time_and_in_several_threads() {
    for op in Op::ALL {
        let workload = Workload::plain(op, 4096).set(5).depth(8).threads(2);
        let mut one = on_rxe(Policy::Regcache, workload);
        one.run(3 * TRANSFERS).unwrap();
        assert_eq!(one.tally().unwrap().transfers, 2 * 3 * TRANSFERS);
        assert_eq!(one.counts().registrations, 0);
    }
}

/// A server on this machine, for so many connections.
fn server(port: u16, clients: usize) -> (SocketAddr, thread::JoinHandle<Result<(), Error>>) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let (ready, is_ready) = mpsc::channel();
    let serving = move || serve(address, Some(clients), || ready.send(()).unwrap());
    let server = thread::spawn(serving);
    is_ready.recv().unwrap();
    (address, server)
}

#[test]
fn a_server_checks_what_is_moved_to_it_while_its_memory_is_freed() {
    const TOTAL: u64 = 5 << 20;
    let (address, server) = server(18_520, 2);
    let remote = Remote::open(address).unwrap();
    let moved = |by: Result<Moved, Error>| by.unwrap();
    let ours = moved(move_bytes(
        &remote,
        ummunotify().unwrap(),
        TOTAL,
        300_000,
        4,
        &mut |_| {},
    ));
    assert_eq!((ours.bytes, ours.wrong), (TOTAL, 0));
    assert!(ours.reused > 4, "{ours:?}");
    let naive = moved(move_bytes(
        &remote,
        NeverReports,
        TOTAL,
        300_000,
        4,
        &mut |_| {},
    ));
    assert_eq!(naive.bytes, TOTAL);
    assert!(naive.wrong > 100_000, "{naive:?}");
    server.join().unwrap().unwrap();
}

#[test]
fn a_benchmark_runs_against_a_server() {
    let (address, server) = server(18_521, 3);
    let remote = Remote::open(address).unwrap();
    for op in Op::ALL {
        let workload = Workload::plain(op, 10_000).depth(4);
        let mut one = contestant(&remote, ummunotify, Policy::Regcache, workload).unwrap();
        one.run(20).unwrap();
        assert_eq!(one.tally().unwrap().transfers, 20);
    }
    server.join().unwrap().unwrap();
}

#[test]
fn where_nobody_listens_it_says_so() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 18_522));
    let remote = Remote::open(address).unwrap();
    let refused = contestant(
        &remote,
        ummunotify,
        Policy::Regcache,
        Workload::plain(Op::Write, 64),
    );
    let message = refused.err().unwrap().to_string();
    assert!(message.contains("does anybody listen there?"), "{message}");
}
