//! The matrix, on io_uring: the program `matrix`, which has a negative control that no other program is to be linked with,
//! ends well only if every cell is as it has to be.

use std::process::{Command, Stdio};

#[test]
#[cfg_attr(
    sanitizer = "address",
    ignore = "of libc's malloc, which is the sanitizer's then"
)]
#[cfg_attr(
    sanitizer = "thread",
    ignore = "ThreadSanitizer stops at a clone that shares the memory"
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
    assert!(kept.count() >= 20, "too few scenarios had anything cached");
}
