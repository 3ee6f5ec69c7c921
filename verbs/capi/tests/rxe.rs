//! The C library on the driver and an RDMA device: the example of the README, and the programs in C with a monitor that valgrind
//! knows nothing against. Needs the virtual machine, and the library installed: `cargo xtask test` does that.
#![expect(clippy::unwrap_used, reason = "a test")]

mod site;

use std::env;
use std::path::PathBuf;
use std::process::Command;

use site::{Site, clean_under_valgrind, succeeds};

fn site() -> Site {
    let prefix = env::var_os("REGCACHE_PREFIX").expect(
        "REGCACHE_PREFIX must say where the library is installed, by cargo xtask install --prefix DIR",
    );
    Site::at(PathBuf::from(prefix))
}

#[test]
fn the_example_of_the_readme_sends_the_right_bytes() {
    let example = include_str!("../examples/first.c");
    let readme = include_str!("../../../README.md");
    assert!(
        readme.contains(example.trim_end()),
        "the README has another"
    );
    succeeds(&mut Command::new(site().compile("examples/first.c", false)));
}

#[test]
fn registrations_are_libibverbs_own_and_valgrind_is_content() {
    let program = site().compile("tests/c/verbs.c", false);
    succeeds(&mut Command::new(&program));
    let said = clean_under_valgrind(&program, &[]);
    assert!(said.contains("verbs: ok"), "{said}");
}

#[test]
fn a_device_of_callbacks_is_served_by_the_driver_and_valgrind_is_content() {
    let program = site().compile("tests/c/device.c", false);
    succeeds(Command::new(&program).arg("ummunotify"));
    let said = clean_under_valgrind(&program, &["ummunotify"]);
    assert!(said.contains("device: ok"), "{said}");
}
