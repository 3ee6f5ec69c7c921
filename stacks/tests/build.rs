//! Compiles the test programs, if the feature `vm` is on.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The libraries of the programs that use libfabric.
const LIBFABRIC: &[&str] = &["-lfabric", "-libverbs", "-lpthread", "-ldl"];

/// The test programs: the name, the compiler if it is not the default, and the last arguments. The
/// source is `c/NAME.c`.
const PROGRAMS: &[(&str, Option<&str>, &[&str])] = &[
    ("libfabric", None, LIBFABRIC),
    ("libfabric-cost", None, LIBFABRIC),
    ("libfabric-life", None, LIBFABRIC),
    ("dlopened", None, &["-ldl"]),
    ("ucx", None, &["-lucp", "-lucs", "-lpthread", "-ldl"]),
    ("mpi", Some("mpicc"), &["-lpthread", "-ldl"]),
];

/// The programs that are also linked as libraries `libNAME.so`, for `dlopened`.
const LIBRARIES: &[(&str, &[&str])] = &[("libfabric", LIBFABRIC)];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=c");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo::rustc-env=PROGRAMS={}", out.display());
    if env::var_os("CARGO_FEATURE_VM").is_some() {
        // The programs interpose functions of libibverbs, so the stack must find these functions.
        for (name, compiler, last) in PROGRAMS {
            compile(name, *compiler, &["-rdynamic"], last, &out.join(name))?;
        }
        for (name, last) in LIBRARIES {
            let library = out.join(format!("lib{name}.so"));
            compile(name, None, &["-shared", "-fPIC"], last, &library)?;
        }
    }
    Ok(())
}

fn compile(
    name: &str,
    compiler: Option<&str>,
    kind: &[&str],
    last: &[&str],
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
    command.args(kind).arg("-o").arg(to);
    command.arg(format!("c/{name}.c")).args(last);
    let failed = "does not compile (the development packages of the stack are needed)";
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(format!("c/{name}.c {failed}").into()),
        Err(error) => Err(format!("c/{name}.c {failed}: {command:?}: {error}").into()),
    }
}
