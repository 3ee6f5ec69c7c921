//! Compiles the programs of the tests, if the feature `vm` or `fake-driver` is on.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

/// The programs and libraries in `tests/c`: the source, the product, and the last arguments of the
/// compiler.
const PROGRAMS: &[(&str, &str, &[&str])] = &[
    ("hits", "hits", &["-lucp", "-lucs", "-lucm"]),
    ("layout", "layout", &[]),
    ("runner", "runner", &["-ldl"]),
    (
        "traps",
        "libtraps.so",
        &["-shared", "-fPIC", "-lucp", "-lucs", "-lucm", "-lpthread"],
    ),
    (
        "unknown",
        "libunknown.so",
        &["-shared", "-fPIC", "-Wl,-soname,libucp.so.0"],
    ),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=tests/c");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo::rustc-env=PROGRAMS={}", out.display());
    let features = ["CARGO_FEATURE_VM", "CARGO_FEATURE_FAKE_DRIVER"];
    if features.iter().all(|it| env::var_os(it).is_none()) {
        return Ok(());
    }
    for (source, product, last) in PROGRAMS {
        let compiler = cc::Build::new()
            .opt_level(2)
            .cargo_metadata(false)
            .get_compiler();
        let mut command = Command::new(compiler.path());
        command.args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]);
        command.arg("-o").arg(out.join(product));
        command.arg(format!("tests/c/{source}.c"));
        if !command.args(*last).status()?.success() {
            return Err(format!("{source}.c does not compile (libucx-dev is needed)").into());
        }
    }
    Ok(())
}
