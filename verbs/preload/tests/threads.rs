//! Runs programs with several threads on the fake device. A fake driver accepts every watch.
#![cfg(not(any(sanitizer = "address", sanitizer = "thread")))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use std::fs;
use std::path::{Path, PathBuf};

use regcache_test_support::fake_driver;

use preload::{Ran, on_fake_device, preloading, run, shim};

#[test]
fn registrations_pass_from_thread_to_thread() {
    let program = on_fake_device("handover", "mlx5", "threads", None);
    let mut command = preloading(&[fake_driver(), shim()], program);
    let ran = run(command.arg("500")).ok();
    let summary = ran.summary();
    assert_eq!(ran.stdout, format!("asked={}\n", summary.number("asked")));
    assert_eq!(summary.number("cached"), summary.number("asked"));
    assert_eq!(summary.number("kept"), summary.number("cached"));
}

/// Runs snapshot.c, which sends itself the signal 12 (SIGUSR2). Returns its output and the file.
fn with_snapshot(name: &str, more: &[&str]) -> (Ran, PathBuf) {
    let suite = format!("snapshot-{name}");
    let program = on_fake_device("snapshot", "mlx5", &suite, None);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{suite}.txt"));
    let _ = fs::remove_file(&file);
    let mut command = preloading(&[fake_driver(), shim()], program);
    command.arg("12").arg(&file).args(more);
    command.env("REGCACHE_SNAPSHOT", &file);
    command.env("REGCACHE_SNAPSHOT_SIGNAL", "USR2");
    (run(&mut command).ok(), file)
}

/// Fails unless the text is a table of two registrations, of which the program holds the first.
fn is_table(text: &str) {
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].ends_with(" registrations:"), "{text}");
    for (line, in_use, access) in [
        (lines[2], "yes", "Access(LOCAL_WRITE)"),
        (lines[3], "no", "Access(0x0)"),
    ] {
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(
            words[1..],
            ["4096", "cached", "yes", in_use, access],
            "{text}"
        );
    }
}

#[test]
fn a_table_of_the_registrations_is_written_at_a_signal_and_at_exit() {
    let (_, file) = with_snapshot("both", &[]);
    let text = fs::read_to_string(file).unwrap();
    let (first, second) = text[1..].split_at(text[1..].find("regcache: ").unwrap());
    is_table(&format!("{}{first}", &text[..1]));
    is_table(second);
}

#[test]
fn a_programs_own_handler_of_the_signal_stays() {
    let (ran, file) = with_snapshot("own", &["own"]);
    assert!(
        ran.stderr.contains("a handler of its own"),
        "{}",
        ran.stderr
    );
    is_table(&fs::read_to_string(file).unwrap());
}
