//! Compiles the test programs, if the feature `vm` is on.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A test program: its name, the compiler if it is not the default, and its libraries. The source
/// is `c/NAME.c`.
const PROGRAMS: &[(&str, Option<&str>, &[&str])] = &[
    (
        "libfabric",
        None,
        &["-lfabric", "-libverbs", "-lpthread", "-ldl"],
    ),
    ("ucx", None, &["-lucp", "-lucs", "-lpthread", "-ldl"]),
    ("mpi", Some("mpicc"), &["-lpthread", "-ldl"]),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=c");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo::rustc-env=PROGRAMS={}", out.display());
    if env::var_os("CARGO_FEATURE_VM").is_some() {
        for (name, compiler, libraries) in PROGRAMS {
            compile(name, *compiler, libraries, &out.join(name))?;
        }
    }
    Ok(())
}

fn compile(
    name: &str,
    compiler: Option<&str>,
    libraries: &[&str],
    to: &Path,
) -> Result<(), Box<dyn Error>> {
    let mut command = match compiler {
        Some(compiler) => Command::new(compiler),
        None => Command::new(
            cc::Build::new()
                .opt_level(2)
                .cargo_metadata(false)
                .get_compiler()
                .path(),
        ),
    };
    command.args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]);
    // The programs interpose functions of libibverbs, so the stack must find these functions.
    command.arg("-rdynamic").arg("-o").arg(to);
    command.arg(format!("c/{name}.c")).args(libraries);
    let failed = "does not compile (the development packages of the stack are needed)";
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(format!("c/{name}.c {failed}").into()),
        Err(error) => Err(format!("c/{name}.c {failed}: {command:?}: {error}").into()),
    }
}
