//! Runs the C library on the driver and an RDMA device. There are three programs. `first` is the
//! guide's example. `verbs` uses a cache of a protection domain, and also runs under valgrind.
//! `device` uses a cache on a device of callbacks. `cargo xtask test` runs this suite in the
//! virtual machine, with the library installed.
#![expect(clippy::unwrap_used, reason = "a test")]

mod site;

use std::env;
use std::path::PathBuf;
use std::process::Command;

use site::{Site, clean_under_valgrind, succeeds};

fn site() -> Site {
    let prefix = env::var_os("REGCACHE_PREFIX").expect(
        "REGCACHE_PREFIX must say where the library is installed, by cargo xtask install --dev --prefix DIR",
    );
    Site::at(PathBuf::from(prefix))
}

#[test]
fn the_example_of_the_guide_sends_the_right_bytes() {
    let example = include_str!("../examples/first.c");
    let guide = include_str!("../../../docs/guide/c.md");
    assert!(
        guide.contains(example.trim_end()),
        "docs/guide/c.md has another"
    );
    succeeds(&mut Command::new(site().program("first")));
}

#[test]
fn registrations_are_libibverbs_own_and_valgrind_is_content() {
    let program = site().program("verbs");
    succeeds(&mut Command::new(&program));
    let said = clean_under_valgrind(&program, &[]);
    assert!(said.contains("verbs: ok"), "{said}");
}

#[test]
fn a_device_of_callbacks_is_served_by_the_driver() {
    let mut program = Command::new(site().program("device"));
    let said = succeeds(program.arg("ummunotify"));
    assert!(said.contains("device: ok"), "{said}");
}
