//! Runs the matrix on io_uring. The test starts the program `matrix`, which succeeds only if every
//! cell has an outcome that its column allows. The matrix is a separate program, because it
//! contains the hooks. The hooks replace functions of libc in the whole program that contains them.

use std::process::{Command, Stdio};

#[test]
#[cfg_attr(
    sanitizer = "address",
    ignore = "needs libc's malloc, which the sanitizer replaces"
)]
#[cfg_attr(
    sanitizer = "thread",
    ignore = "ThreadSanitizer does not support a clone that shares memory"
)]
fn no_sound_monitor_is_stale_and_the_others_are_where_they_must_be() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_matrix"));
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    println!("{table}");
    assert!(output.status.success(), "{}", output.status);
    let rows: Vec<Vec<_>> = table
        .lines()
        .map(|line| line.split(" | ").collect())
        .collect();
    let Some(column) = rows[0]
        .iter()
        .position(|name| name.trim_end_matches(" |") == "io_uring, userfaultfd")
    else {
        eprintln!("userfaultfd is not tested here");
        return;
    };
    let kept = rows[2..]
        .iter()
        .filter(|row| row[column].trim_end_matches(" |") == "ok");
    assert!(
        kept.count() >= 20,
        "the cache retained a registration in too few scenarios"
    );
}
