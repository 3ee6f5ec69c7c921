//! Checks the tool on the machine that runs the tests. This machine may have no driver and no
//! device.
#![cfg(not(any(sanitizer = "address", sanitizer = "thread")))]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const TOOL: &str = env!("CARGO_BIN_EXE_regcache");

fn output(command: &mut Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

fn tool(arguments: &[&str]) -> (i32, String, String) {
    output(Command::new(TOOL).args(arguments))
}

/// Makes an empty directory for a test.
fn dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tool-{name}"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn compile(source: &str, to: &Path, flags: &[&str]) {
    let file = to.with_extension("c");
    fs::write(&file, source).unwrap();
    let (status, _, said) = output(Command::new("gcc").args(flags).arg("-o").arg(to).arg(&file));
    assert_eq!(status, 0, "{said}");
}

/// Compiles a library that stands for the shim. When the library is preloaded into a program, it
/// prints a line with one setting of the shim.
fn shim(to: &Path) {
    let source = r#"
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void tell(void)
{
	char *setting = getenv("REGCACHE_SUMMARY");
	printf("preloaded, REGCACHE_SUMMARY=%s\n", setting ? setting : "");
	fflush(stdout);
}
"#;
    compile(source, to, &["-shared", "-fPIC"]);
}

#[test]
fn it_is_not_linked_with_libibverbs() {
    let (_, needed, _) = output(Command::new("readelf").args(["-dW", TOOL]));
    assert!(needed.contains("libc.so.6"), "{needed}");
    assert!(!needed.contains("libibverbs"), "{needed}");
}

#[test]
fn doctor_tells_of_every_part_and_its_commands_are_those_it_shows() {
    let (status, said, _) = tool(&["doctor"]);
    for part in [
        "\nMonitors\n",
        "\nRDMA\n",
        "\nio_uring\n",
        "\nLimits\n",
        "ummunotify: ",
        "userfaultfd: ",
        "libibverbs: ",
        "device",
        "pinned memory: ",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let expected = if said.contains("\nRegistrations are cached here") {
        0
    } else if said.contains("are not cached here") {
        1
    } else {
        3
    };
    assert_eq!(status, expected, "{said}");
    let shown: Vec<_> = said
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("# "))
        .collect();
    let (same, commands, _) = tool(&["doctor", "--commands"]);
    assert_eq!(same, status);
    assert_eq!(commands.lines().collect::<Vec<_>>(), shown);
}

#[test]
fn doctor_tells_a_script_the_same() {
    let (status, said, _) = tool(&["doctor"]);
    let (same, json, _) = tool(&["doctor", "--json"]);
    assert_eq!(same, status);
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["status"], status);
    assert_eq!(report["schema"], 1);
    assert!(said.ends_with(&format!("\n{}\n", report["verdict"].as_str().unwrap())));
    let mut findings = 0;
    for part in report["parts"].as_array().unwrap() {
        for finding in part["findings"].as_array().unwrap() {
            let text = |key: &str| finding[key].as_str().unwrap();
            let line = format!("{}: {}\n", text("subject"), text("message"));
            assert!(said.contains(&line), "{line}");
            assert!(["ok", "note", "missing"].contains(&text("level")));
            findings += 1;
        }
    }
    assert!(findings >= 8, "{json}");
    let (status, _, _) = tool(&["doctor", "--json", "--commands"]);
    assert_eq!(status, 2);
}

#[test]
fn repro_shows_the_bug_and_its_end() {
    let (status, said, errors) = tool(&["repro", "--rounds", "20"]);
    if status == 77 {
        assert!(said.contains("no io_uring here"), "{said}");
        return;
    }
    assert!(
        said.contains("\nreuse: device=io_uring monitor="),
        "{said}{errors}"
    );
    assert!(
        said.contains("naive_stale=20/20 regcache_stale=0/20"),
        "{said}"
    );
}

#[test]
fn repro_watches_both_caches_and_only_the_naive_one_gets_stale() {
    let (status, said, errors) = tool(&["repro", "--watch", "1"]);
    if status == 77 {
        assert!(said.contains("no io_uring here"), "{said}");
        return;
    }
    assert_eq!(status, 0, "{said}{errors}");
    let tables: Vec<_> = said.trim_end().split("\n\n").collect();
    assert!(tables.len() >= 2, "{said}");
    let row = |table: &str, name: &str| -> [u64; 2] {
        let line = table.lines().find_map(|line| line.strip_prefix(name));
        let numbers = line.unwrap().split_whitespace();
        let numbers: Vec<_> = numbers.map(|it| it.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    };
    let last = tables[tables.len() - 1];
    let [naive, regcache] = row(last, "stale transfers");
    assert!(naive > 0 && regcache == 0, "{last}");
    let [_, seen] = row(last, "invalidations");
    let cached =
        last.starts_with("io_uring, ummunotify") || last.starts_with("io_uring, userfaultfd");
    assert_eq!(seen > 0, cached, "{last}");
    assert!(row(last, "lookups") > row(tables[0], "lookups"));
    let (status, _, _) = tool(&["repro", "--watch", "--rounds", "3"]);
    assert_eq!(status, 2);
}

#[test]
fn run_preloads_the_shim_that_is_installed_with_it_and_ends_as_the_program_does() {
    let prefix = dir("installed");
    for part in ["bin", "lib"] {
        fs::create_dir(prefix.join(part)).unwrap();
    }
    let installed = prefix.join("bin/regcache");
    fs::copy(TOOL, &installed).unwrap();
    let library = prefix.join("lib/librcpreload.so");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&installed);
        output(
            command
                .arg("run")
                .args(arguments)
                .env_remove("REGCACHE_SUMMARY"),
        )
    };
    let (status, _, errors) = run(&["--", "true"]);
    assert_eq!(status, 126);
    assert!(errors.contains("there is no shim at"), "{errors}");

    shim(&library);
    let (status, said, errors) = run(&[
        "-e",
        "REGCACHE_SUMMARY=a=b",
        "--",
        "sh",
        "-c",
        "echo $0; exit 7",
        "x",
    ]);
    assert_eq!(
        (status, said.as_str()),
        (7, "preloaded, REGCACHE_SUMMARY=a=b\nx\n"),
        "{errors}"
    );

    // The tool must keep the libraries that LD_PRELOAD already names.
    let other = prefix.join("other.so");
    shim(&other);
    let mut command = Command::new(&installed);
    command
        .args(["run", "--", "true"])
        .env("LD_PRELOAD", &other);
    let (_, said, _) = output(&mut command);
    // Each preloaded library prints one line. Three lines are expected, because the other library
    // is preloaded into the tool and both libraries are preloaded into the program.
    assert_eq!(said.matches("preloaded").count(), 3, "{said}");
}

/// The settings of a stack reach the program, and a setting of the user has precedence.
#[test]
fn run_switches_the_cache_of_a_stack_off() {
    let library = dir("stack").join("shim.so");
    shim(&library);
    let run = |stack: &[&str], settings: &[&str]| {
        let shim = ["run", "--shim", library.to_str().unwrap()];
        let print = ["--", "env"];
        let (status, said, errors) = tool(&[&shim, stack, settings, &print].concat());
        assert_eq!(status, 0, "{errors}");
        said
    };
    let has = |said: &str, setting: &str| said.lines().any(|line| line == setting);
    for (stack, settings) in [
        ("ucx", ["UCX_IB_REG_METHODS=direct", "UCX_RCACHE_ENABLE=n"]),
        (
            "libfabric",
            ["FI_MR_CACHE_MAX_COUNT=0", "FI_MR_CACHE_MONITOR=disabled"],
        ),
    ] {
        let said = run(&["--stack", stack], &[]);
        for setting in settings {
            assert!(has(&said, setting), "no {setting} in {said}");
        }
        assert!(has(&said, "REGCACHE_REMOTE=keep"), "{said}");
        let said = run(&["--stack", stack], &["-e", "REGCACHE_REMOTE=revoke"]);
        assert!(has(&said, "REGCACHE_REMOTE=revoke"), "{said}");
        assert!(!has(&run(&[], &[]), settings[0]));
    }
    let (status, _, errors) = tool(&["run", "--stack", "mpi", "--", "true"]);
    assert!(status == 2 && errors.contains("ucx, libfabric"), "{errors}");
}

#[test]
fn output_that_fails_is_an_error_and_no_panic() {
    for arguments in [
        &["doctor"][..],
        &["doctor", "--json"],
        &["repro", "--rounds", "1"],
    ] {
        let full = fs::File::create("/dev/full").unwrap();
        let (status, _, errors) = output(Command::new(TOOL).args(arguments).stdout(full));
        assert_eq!(status, 1, "{errors}");
        let expected = "regcache: failed printing to stdout: No space left";
        assert!(errors.starts_with(expected), "{errors}");
    }
}

#[test]
fn no_rounds_prove_nothing_and_are_refused() {
    for arguments in [["repro", "--rounds=0"], ["repro", "--watch=0"]] {
        assert_eq!(tool(&arguments).0, 2);
    }
}

#[test]
fn run_refuses_what_the_shim_cannot_reach() {
    let dir = dir("refused");
    let library = dir.join("shim.so");
    shim(&library);
    let library = library.to_str().unwrap();
    let refused = |program: &Path, status: i32, why: &str| {
        let program = program.to_str().unwrap();
        let (is, said, errors) = tool(&["run", "--shim", library, "--", program]);
        assert_eq!(is, status, "{said}{errors}");
        assert!(errors.contains(why), "{errors}");
    };
    refused(
        Path::new("no-such-program"),
        127,
        "there is no program \"no-such-program\"",
    );
    refused(
        Path::new("-e"),
        127,
        "options of regcache run stand before the --",
    );
    refused(&dir, 126, "it is not a file");
    refused(&dir.join("none"), 127, "there is no program");
    let fixed = dir.join("fixed");
    compile("int main(void) { return 0; }", &fixed, &["-static"]);
    refused(&fixed, 126, "linked statically");
    let narrow = dir.join("narrow");
    compile("int main(void) { return 0; }", &narrow, &["-m32"]);
    refused(&narrow, 126, "32-bit");
    let other_user = dir.join("setuid");
    compile("int main(void) { return 0; }", &other_user, &[]);
    fs::set_permissions(&other_user, fs::Permissions::from_mode(0o4755)).unwrap();
    refused(&other_user, 126, "changes its user");

    let spaced = dir.join("a b.so");
    fs::copy(library, &spaced).unwrap();
    let (status, _, errors) = tool(&["run", "--shim", spaced.to_str().unwrap(), "--", "true"]);
    assert_eq!(status, 126);
    assert!(errors.contains("no space and no colon"), "{errors}");
    let (status, _, errors) = tool(&["run", "--shim", library, "-e", "PATH=/", "--", "true"]);
    assert_eq!(status, 2);
    assert!(errors.contains("REGCACHE_NAME=VALUE"), "{errors}");
    // The shim can be preloaded into the interpreter of a script.
    let script = dir.join("script");
    fs::write(&script, "#!/bin/sh\necho script\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let (status, said, _) = tool(&["run", "--shim", library, "--", script.to_str().unwrap()]);
    assert_eq!(
        (
            status,
            said.contains("preloaded") && said.contains("script\n")
        ),
        (0, true)
    );
}
