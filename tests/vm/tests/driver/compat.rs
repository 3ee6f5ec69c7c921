//! Tests that a 32-bit program can use the driver as a 64-bit program does.

use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn a_32_bit_program_is_served_the_same() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("compat32");
    let built = Command::new("gcc")
        .args([
            "-m32", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o",
        ])
        .arg(&program)
        .arg("-I")
        .arg(here.join("../../kernel/include/uapi"))
        .arg(here.join("tests/driver/compat32.c"))
        .output()
        .unwrap();
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let ran = Command::new(&program).output().unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}
