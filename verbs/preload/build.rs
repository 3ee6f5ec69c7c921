//! Links librcpreload.so with symbol versions, for which rustc has no option, and compiles the
//! programs of the tests.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The test programs. Each is tests/c/NAME.c, and is linked with these libraries.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("around", &["-libverbs"]),
    ("contract", &["-libverbs", "-lpthread"]),
    ("dlopened", &["-ldl"]),
    ("posted", &["-libverbs", "-lpthread"]),
    ("situations", &["-libverbs", "-lpthread"]),
    ("stress", &["-libverbs"]),
];

/// The libraries that tests preload. Each is tests/c/NAME.c.
const LIBRARIES: &[(&str, &str)] = &[("naive", "-ldl"), ("early", "-libverbs"), ("waits", "-ldl")];

fn main() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    // The compiler looks for a linker in this directory first, so it finds this `ld.bfd` before the
    // system's.
    println!("cargo::rustc-cdylib-link-arg=-B{}", here.display());
    println!("cargo::rustc-cdylib-link-arg=-fuse-ld=bfd");
    println!(
        "cargo::rustc-cdylib-link-arg=-Wl,--version-script={}",
        here.join("exports.map").display()
    );
    for input in ["build.rs", "exports.map", "ld.bfd", "tests/c"] {
        println!("cargo::rerun-if-changed={input}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo::rustc-env=PROGRAMS={}", out.display());
    if env::var_os("CARGO_FEATURE_VM").is_some() {
        for (name, libraries) in PROGRAMS {
            compile(&here, name, &out.join(name), libraries)?;
        }
        for (name, needs) in LIBRARIES {
            let library = out.join(format!("lib{name}.so"));
            compile(&here, name, &library, &["-shared", "-fPIC", needs])?;
        }
    }
    Ok(())
}

fn compile(here: &Path, name: &str, to: &Path, last: &[&str]) -> Result<(), Box<dyn Error>> {
    let compiler = cc::Build::new()
        .opt_level(2)
        .cargo_metadata(false)
        .get_compiler();
    let mut command = Command::new(compiler.path());
    command.args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]);
    command.arg("-o").arg(to);
    command.arg(here.join(format!("tests/c/{name}.c")));
    let status = command.args(last).status()?;
    if !status.success() {
        return Err(format!("{name}.c does not compile (libibverbs-dev is needed)").into());
    }
    Ok(())
}
