//! Checks which functions librcpreload.so interposes, and which it does not. Needs no device.
#![cfg(not(any(sanitizer = "address", sanitizer = "thread")))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use preload::{bounded, on_fake_device, preloading, run, shim, under_shim};

/// Returns the names that a library defines, with versions, as nm prints them.
fn defined(library: &Path) -> BTreeSet<String> {
    let nm = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(library)
        .output()
        .unwrap();
    assert!(nm.status.success());
    let text = String::from_utf8(nm.stdout).unwrap();
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2));
    names
        .filter(|name| name.contains('@'))
        .map(str::to_owned)
        .collect()
}

/// Returns the path at which the loader finds a library.
fn loaded(name: &str) -> PathBuf {
    let cache = Command::new("/sbin/ldconfig").arg("-p").output().unwrap();
    let text = String::from_utf8(cache.stdout).unwrap();
    let line = text
        .lines()
        .find(|line| line.contains(name) && line.contains("x86-64"));
    let path = line.and_then(|line| line.split("=> ").nth(1));
    PathBuf::from(path.unwrap_or_else(|| panic!("{name} is not installed")))
}

#[test]
fn every_name_has_the_version_that_the_library_has() {
    let ours = defined(&shim());
    let mut theirs = defined(&loaded("libibverbs.so.1 "));
    theirs.extend(defined(&loaded("libc.so.6 ")));
    let unknown: Vec<_> = ours
        .difference(&theirs)
        .filter(|it| !it.ends_with("@0"))
        .collect();
    let expected = [
        "dlsym@@GLIBC_2.34",
        "dlsym@GLIBC_2.2.5",
        "dlvsym@@GLIBC_2.34",
        "dlvsym@GLIBC_2.2.5",
        "ibv_alloc_pd@@IBVERBS_1.1",
        "ibv_close_device@@IBVERBS_1.1",
        "ibv_create_ah@@IBVERBS_1.1",
        "ibv_create_cq@@IBVERBS_1.1",
        "ibv_create_qp@@IBVERBS_1.1",
        "ibv_create_srq@@IBVERBS_1.1",
        "ibv_dealloc_pd@@IBVERBS_1.1",
        "ibv_dereg_mr@@IBVERBS_1.1",
        "ibv_destroy_cq@@IBVERBS_1.1",
        "ibv_destroy_qp@@IBVERBS_1.1",
        "ibv_destroy_srq@@IBVERBS_1.1",
        "ibv_import_device@@IBVERBS_1.10",
        "ibv_modify_qp@@IBVERBS_1.1",
        "ibv_open_device@@IBVERBS_1.1",
        "ibv_reg_mr@@IBVERBS_1.1",
        "ibv_reg_mr_iova2@@IBVERBS_1.8",
        "ibv_reg_mr_iova@@IBVERBS_1.7",
        "ibv_rereg_mr@@IBVERBS_1.1",
        "ibv_unimport_pd@@IBVERBS_1.10",
    ];
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(ours.iter().eq(expected), "{ours:?}");
}

/// Compiles tests/c/lookup.c and the library that it loads, once.
fn lookup() -> PathBuf {
    static DONE: std::sync::Once = std::sync::Once::new();
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let source = |name: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/c")
            .join(name)
    };
    DONE.call_once(|| {
        let gcc = |args: &[&str], name: &str, to: &Path| {
            let mut gcc = Command::new("gcc");
            gcc.args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]);
            let built = gcc.arg(to).arg(source(name)).args(args).output().unwrap();
            assert!(
                built.status.success(),
                "{}",
                String::from_utf8_lossy(&built.stderr)
            );
        };
        gcc(&["-shared", "-fPIC"], "next.c", &dir.join("libnext.so"));
        gcc(&["-ldl"], "lookup.c", &dir.join("lookup"));
    });
    dir.join("lookup")
}

/// Runs the program that looks functions up. `ours` is "under the shim" if the program must find
/// the shim's functions, or empty if it must find libibverbs's.
fn looks_up(mut program: Command, ours: &str) {
    let ran = program
        .args([ours, env!("CARGO_TARGET_TMPDIR")])
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

#[test]
fn lookups_by_name_find_ours_where_they_would_find_libibverbs() {
    looks_up(preloading(&[shim()], lookup()), "under the shim");
}

/// Without the shim the program finds libibverbs's own functions. So the program's checks can tell
/// the shim's functions from libibverbs's.
#[test]
fn lookups_without_the_shim_find_libibverbs() {
    looks_up(bounded(lookup()), "");
}

/// Compiles a program or a library of tests/c with these arguments.
fn compile(source: &str, to: &str, arguments: &[&str]) -> PathBuf {
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(to);
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/c")
        .join(source);
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]);
    let built = gcc.arg(&to).arg(source).args(arguments).output().unwrap();
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    to
}

fn starts(mut command: Command) {
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{command:?}: {ran:?}");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "started\n");
    assert_eq!(String::from_utf8_lossy(&ran.stderr), "");
}

#[test]
fn programs_with_sanitizers_start() {
    let thread = compile("starts.c", "starts-thread", &["-fsanitize=thread", "-ldl"]);
    starts(preloading(&[shim()], thread));
    // AddressSanitizer refuses to start if another library is before it.
    let address = compile(
        "starts.c",
        "starts-address",
        &["-fsanitize=address", "-ldl"],
    );
    let mut gcc = Command::new("gcc");
    let library = gcc.arg("-print-file-name=libasan.so").output().unwrap();
    let library = PathBuf::from(String::from_utf8(library.stdout).unwrap().trim());
    starts(preloading(&[library, shim()], address));
}

#[test]
fn programs_start_beside_a_library_that_stands_before_dlsym() {
    let program = compile("starts.c", "starts", &["-ldl"]);
    let wrapper = compile("wrapper.c", "libwrapper.so", &["-shared", "-fPIC", "-ldl"]);
    starts(preloading(&[shim(), wrapper.clone()], &program));
    starts(preloading(&[wrapper, shim()], &program));
}

#[test]
fn programs_that_register_nothing_are_told_nothing() {
    for value in ["keep", "nonsense"] {
        let ran = preloading(&[shim()], "sh")
            .args(["-c", "echo said; exec true"])
            .envs([("REGCACHE_SUMMARY", "1"), ("REGCACHE_REMOTE", value)])
            .output()
            .unwrap();
        assert!(ran.status.success());
        assert_eq!(String::from_utf8_lossy(&ran.stdout), "said\n");
        assert_eq!(String::from_utf8_lossy(&ran.stderr), "");
    }
}

/// Debian 12's libibverbs does not have `ibv_reg_mr_ex` and `ibv_reg_buf_mr`, so a fake stands for
/// a newer one.
#[test]
fn registrations_of_newer_libibverbs_reach_a_fake_of_it() {
    let program = on_fake_device("newer", "rxe", "newer", None);
    let without = run(&mut bounded(&program)).ok();
    assert_eq!(without.stdout, "9 calls\n");
    let with = run(&mut under_shim(&program)).ok();
    assert_eq!(with.stdout, without.stdout);
    // The summary counts only the call of `ibv_reg_mr`.
    assert_eq!(with.summary().number("asked"), 1, "{:?}", with.summaries);
}

/// The last registrations end with the domain, at the latest.
#[test]
fn threads_on_a_fake_device_leave_no_registration() {
    let program = on_fake_device("together", "rxe", "together", None);
    let mut command = under_shim(program);
    let ran = run(command.arg("500").env("REGCACHE_MONITOR", "auto")).ok();
    assert_eq!(ran.stdout, "together: ok\n");
}
