//! Checks which functions libregcache-fi.so exports.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::env;
use std::process::Command;

/// Prints the dynamic symbols of the library with this option of nm.
fn symbols(option: &str) -> BTreeSet<String> {
    let library = env::current_exe()
        .unwrap()
        .with_file_name("libregcache_fi.so");
    let nm = Command::new("nm")
        .args(["-D", option])
        .arg(library)
        .output()
        .unwrap();
    assert!(nm.status.success());
    let text = String::from_utf8(nm.stdout).unwrap();
    let last = text
        .lines()
        .filter_map(|line| line.split_whitespace().last());
    last.map(str::to_owned).collect()
}

#[test]
fn only_the_entry_and_the_interposed_functions_are_exported() {
    let ours: Vec<_> = symbols("--defined-only")
        .into_iter()
        .filter(|it| !it.starts_with("IBVERBS") && !it.starts_with("REGCACHE_FI"))
        .collect();
    let expected = [
        "fi_prov_ini@@REGCACHE_FI",
        "ibv_reg_mr@@IBVERBS_1.1",
        "ibv_reg_mr_iova2@@IBVERBS_1.8",
    ];
    assert_eq!(ours, expected);
}

/// The library must load in programs without libfabric and libibverbs, if it is preloaded.
#[test]
fn neither_libfabric_nor_libibverbs_is_needed() {
    let needed = symbols("--undefined-only");
    let foreign = |it: &&String| it.starts_with("fi_") || it.starts_with("ibv_");
    assert_eq!(needed.iter().find(foreign), None);
}
