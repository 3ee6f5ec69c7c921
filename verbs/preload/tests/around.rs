//! Runs a program that registers and deregisters around each transfer, and remaps the buffer
//! between some transfers. The program runs without a cache, under the shim, and under a naive
//! shim.
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use preload::{Summary, bounded, preloading, program, run, under_shim};

/// The number of transfers, which is small so that the test is short. docs/guide/preload.md has the
/// figures of longer runs.
const TRANSFERS: &str = "600";
const BYTES: &str = "65536";
const REMAP_EVERY: &str = "20";

fn around(command: &mut std::process::Command) -> (Summary, preload::Ran) {
    let ran = run(command.args([TRANSFERS, BYTES, REMAP_EVERY])).ok();
    let said = Summary::of(ran.stdout.trim_end());
    // Without enough remaps at the same address, the test would not provoke a stale registration.
    assert_eq!(said.number("remaps"), 29);
    assert!(said.number("same_address") > 20, "{said:?}");
    (said, ran)
}

#[test]
fn the_shim_registers_once_for_each_mapping_and_no_byte_is_wrong() {
    let (said, ran) = around(&mut under_shim(program("around")));
    assert_eq!(said.number("wrong_bytes"), 0, "{said:?}");
    assert_eq!(said.number("wrong_transfers"), 0, "{said:?}");
    assert_eq!(said.number("keys"), 30, "{said:?}");
    let summary = ran.summary();
    assert_eq!(summary.number("made"), 30, "{summary:?}");
    assert_eq!(summary.number("hits"), 570, "{summary:?}");
    // The shim passes one registration on to the device: that of the sink, which has remote access.
    assert_eq!(summary.number("passed_on"), 1, "{summary:?}");
}

#[test]
fn without_a_cache_each_transfer_is_a_registration() {
    let (said, _) = around(&mut bounded(program("around")));
    assert_eq!(said.number("wrong_bytes"), 0, "{said:?}");
    assert!(said.number("keys") > 590, "{said:?}");
}

#[test]
fn a_naive_shim_sends_bytes_of_pages_that_nobody_has_mapped() {
    let mut naive = preloading(&[program("libnaive.so")], program("around"));
    let (said, _) = around(&mut naive);
    assert!(said.number("wrong_transfers") > 0, "{said:?}");
    assert!(said.number("wrong_bytes") > 0, "{said:?}");
    assert_eq!(said.number("keys"), 1, "{said:?}");
}
